#include "common/world/world.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace almost::world {

const World& World::Tiny() {
  static const auto& world = *new World(TinyContent());
  return world;
}

const World& World::Large() {
  static const auto& world = *new World(LargeContent());
  return world;
}

const World* World::Named(absl::string_view name) {
  if (name.empty() || name == "tiny") return &Tiny();
  return name == "large" ? &Large() : nullptr;
}

World::World(Content content) : content_(std::move(content)) {
  for (const EntityKind& kind : content_.kinds) {
    std::vector<double>& popularity = popularity_.emplace_back();
    for (const Entity& entity : kind.entities) {
      popularity.push_back(1.0 / static_cast<double>(popularity.size() + 8));
      entities_.emplace(entity.name, &entity);
    }
  }
  for (const Opposites& pair : content_.opposites) {
    opposites_.emplace(pair.words[0], &pair.words[1]);
    opposites_.emplace(pair.words[1], &pair.words[0]);
  }
  for (const AdviceTopic& topic : content_.topics) {
    topics_.emplace(topic.name, &topic);
  }
}

const Entity* World::FindEntity(absl::string_view name) const {
  const auto found = entities_.find(name);
  return found == entities_.end() ? nullptr : found->second;
}

const absl::string_view* World::OppositeOf(absl::string_view word) const {
  const auto found = opposites_.find(word);
  return found == opposites_.end() ? nullptr : found->second;
}

const AdviceTopic* World::FindTopic(absl::string_view name) const {
  const auto found = topics_.find(name);
  return found == topics_.end() ? nullptr : found->second;
}

const Entity& World::DrawEntity(RandomStream& random) const {
  const size_t kind = random.Below(content_.kinds.size());
  return content_.kinds[kind].entities[random.Weighted(popularity_[kind])];
}

std::string World::DrawUnknownName(int kind, RandomStream& random) const {
  while (true) {
    std::string name;
    for (const absl::string_view letters : kLetters) {
      name += letters[random.Below(letters.size())];
    }
    std::string capitalized = Capitalized(name);
    if (FindEntity(name) != nullptr || FindEntity(capitalized) != nullptr) continue;
    return this->kind(kind).capitalized ? capitalized : name;
  }
}

std::string FactSentence(const EntityKind& kind, absl::string_view name, const Relation& relation,
                         absl::string_view value, bool pronoun) {
  return absl::StrCat(pronoun ? "It" : Capitalized(NameInSentence(kind, name)), relation.verb, value, ".");
}

std::string NameInSentence(const EntityKind& kind, absl::string_view name) {
  return absl::StrCat(kind.article, name);
}

std::string Capitalized(absl::string_view text) {
  std::string out(text);
  if (!out.empty()) out[0] = absl::ascii_toupper(out[0]);
  return out;
}

void AddEntities(uint64_t seed, int count, std::vector<EntityKind>& kinds) {
  size_t num_names = 1;
  for (const absl::string_view letters : kLetters) num_names *= letters.size();
  RandomStream random(seed);
  const std::vector<size_t> names = random.Sample(num_names, kinds.size() * static_cast<size_t>(count));
  for (size_t i = 0; i < names.size(); ++i) {
    const size_t k = i % kinds.size();
    EntityKind& kind = kinds[k];
    Entity entity{.name = "", .kind = static_cast<int>(k), .values = {}};
    size_t rest = names[i];
    for (const absl::string_view letters : kLetters) {
      entity.name += letters[rest % letters.size()];
      rest /= letters.size();
    }
    if (kind.capitalized) entity.name = Capitalized(entity.name);
    for (const Relation& relation : kind.relations) entity.values.push_back(random.Choose(relation.values));
    kind.entities.push_back(std::move(entity));
  }
}

}  // namespace almost::world
