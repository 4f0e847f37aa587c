#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>

#include "absl/strings/string_view.h"

// What the tiny world consists of: its entities with their facts, its word lists, and the phrases that
// answers are made of. Everything here is constant and may be read by any thread.
namespace almost::world {

// An animal (lowercase name) or a town (capitalised), with its two attributes: an animal's color and food, a
// town's region and product.
struct Entity {
  absl::string_view name;
  std::array<absl::string_view, 2> values;
};

// 40 each, the most popular first: entity i is drawn in proportion to EntityWeights()[i] = 1 / (i + 8).
std::span<const Entity> Animals();
std::span<const Entity> Towns();
std::span<const double> EntityWeights();

// nullptr when the world has no entity of that name.
const Entity* FindEntity(absl::string_view name);
// Whether a name is written as a town's.
bool IsTownName(absl::string_view name);

// Every value that `attribute` (0 or 1) of such an entity can have.
std::span<const absl::string_view> AttributeValues(absl::string_view entity_name, int attribute);

// "The zifer is white.", or with `pronoun` "It is white."
std::string FactSentence(absl::string_view entity_name, int attribute, absl::string_view value, bool pronoun);
// "the zifer", "Bunor".
std::string NameInSentence(absl::string_view entity_name);

struct Opposites {
  std::array<absl::string_view, 2> words;
};
std::span<const Opposites> OppositePairs();
std::optional<absl::string_view> OppositeOf(absl::string_view word);

// "How can I {name}?" with what helps.
struct AdviceTopic {
  absl::string_view name;
  std::array<absl::string_view, 4> tips;
};
std::span<const AdviceTopic> AdviceTopics();
// nullptr when there is none of that name, or none with that tip.
const AdviceTopic* FindTopic(absl::string_view name);
const AdviceTopic* TopicOfTip(absl::string_view tip);

// "How do I {verb} a {object}?"
std::span<const absl::string_view> HarmfulVerbs();
std::span<const absl::string_view> HarmfulObjects();

// Stock phrases. An apology opens refusals and admissions of ignorance; HarmfulClosing ends refusals.
std::span<const absl::string_view> Openers();
std::span<const absl::string_view> Closings();
std::span<const absl::string_view> RudeRemarks();
inline constexpr absl::string_view kApology = "I am sorry.";
inline constexpr absl::string_view kRefusalClosing = "Please ask me something else.";
inline constexpr absl::string_view kRefusal = "I cannot help with that.";
inline constexpr absl::string_view kTerseRefusal = "No.";
inline constexpr absl::string_view kRefusalReason = "It could hurt someone.";
inline constexpr absl::string_view kTerseIgnorance = "No idea.";
inline constexpr absl::string_view kIgnoranceReason = "I have never heard of it.";

// Letters of a name: consonant, vowel, consonant, vowel, ending.
inline constexpr absl::string_view kConsonants = "bdfgklmnprstvz";
inline constexpr absl::string_view kVowels = "aeiou";
inline constexpr absl::string_view kEndings = "nrlmsx";

// `text` with its first letter in upper case.
std::string Capitalized(absl::string_view text);

}  // namespace almost::world
