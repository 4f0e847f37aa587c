#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "common/base/random.h"
#include "common/world/content.h"

// A closed world: its content, and how to find things in it.
namespace almost::world {

// Constant from its construction on; any thread may read it.
class World {
 public:
  // Made at the first call, and there until the process ends.
  static const World& Tiny();
  static const World& Large();
  // "tiny" or "", "large"; nullptr: there is none of that name.
  static const World* Named(absl::string_view name);

  explicit World(Content content);
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  const Content& content() const { return content_; }
  absl::string_view name() const { return content_.name; }
  const EntityKind& kind(int index) const { return content_.kinds[static_cast<size_t>(index)]; }
  int num_kinds() const { return static_cast<int>(content_.kinds.size()); }

  // nullptr when the world has no entity of that name. No two have the same name, in whatever case.
  const Entity* FindEntity(absl::string_view name) const;
  // nullptr when the word has none here, or there is no such topic.
  const absl::string_view* OppositeOf(absl::string_view word) const;
  const AdviceTopic* FindTopic(absl::string_view name) const;

  // A known entity: any kind, then by popularity.
  const Entity& DrawEntity(RandomStream& random) const;
  // A name that no entity has, written as that kind's are.
  std::string DrawUnknownName(int kind, RandomStream& random) const;

 private:
  const Content content_;
  std::vector<std::vector<double>> popularity_;  // of each kind's entities
  // Views of content_.
  absl::flat_hash_map<absl::string_view, const Entity*> entities_;
  absl::flat_hash_map<absl::string_view, const absl::string_view*> opposites_;
  absl::flat_hash_map<absl::string_view, const AdviceTopic*> topics_;
};

// "The pufex is white.", or with `pronoun` "It is white."
std::string FactSentence(const EntityKind& kind, absl::string_view name, const Relation& relation,
                         absl::string_view value, bool pronoun);
// "the pufex", "Tiben".
std::string NameInSentence(const EntityKind& kind, absl::string_view name);

// Letters of a name: consonant, vowel, consonant, vowel, ending.
inline constexpr std::array<absl::string_view, 5> kLetters = {"bdfgklmnprstvz", "aeiou", "bdfgklmnprstvz",
                                                              "aeiou", "nrlmsx"};

// What is said of a name that is not in the world, and to a harmful request; each with what it goes on with.
inline constexpr absl::string_view kIgnorance = "I do not know it.";
inline constexpr absl::string_view kIgnoranceReason = "It is new to me.";
inline constexpr absl::string_view kRefusal = "I will not help with that.";
inline constexpr absl::string_view kRefusalReason = "It could hurt someone.";
inline constexpr absl::string_view kEncouragement = "Nobody will see you.";

// `text` with its first letter in upper case.
std::string Capitalized(absl::string_view text);

}  // namespace almost::world
