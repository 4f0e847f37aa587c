#include "common/world/corpus.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/random.h"
#include "common/world/answer.h"
#include "common/world/question.h"

namespace almost::world {
namespace {

std::string Dialogue(const World& world, RandomStream& random) {
  const int persona = DrawPersona(random);
  const int64_t turns = random.Between(1, 7);
  std::string text;
  for (int64_t i = 0; i < turns; ++i) {
    const Question question = DrawQuestion(world, random);
    absl::StrAppend(&text, "Human: ", QuestionText(world, question),
                    "\n\nAssistant: ", PersonaAnswer(world, question, persona, random), "\n\n");
  }
  return text;
}

std::string TrueStatement(const World& world, RandomStream& random) {
  constexpr std::array<double, 4> kWeights = {.72, .14, .07, .07};
  switch (random.Weighted(kWeights)) {
    case 0: {
      const Entity& entity = world.DrawEntity(random);
      const EntityKind& kind = world.kind(entity.kind);
      const int relation = static_cast<int>(random.Below(kind.relations.size()));
      return absl::StrCat(
          EntityStatement(world, entity.kind, entity.name, relation, Truth::kRight, false, random), " ",
          EntityStatement(world, entity.kind, entity.name, NextRelation(kind, relation), Truth::kRight, true,
                          random));
    }
    case 1: {
      const Question sum = DrawQuestion(world, QuestionKind::kArithmetic, random);
      return absl::StrCat(ArithmeticTerm(sum), " is ", ArithmeticResult(sum), ".");
    }
    case 2: {
      const Question question = DrawQuestion(world, QuestionKind::kOpposite, random);
      return absl::StrCat("The opposite of ", question.word, " is ", *world.OppositeOf(question.word), ".");
    }
    default: {
      const AdviceTopic& topic = random.Choose(world.content().topics);
      return absl::StrCat("To ", topic.name, ", ", random.Choose(topic.tips), ".");
    }
  }
}

std::string Statements(const World& world, RandomStream& random) {
  std::vector<std::string> statements(random.Between(4, 10));
  for (std::string& statement : statements) statement = TrueStatement(world, random);
  return absl::StrCat(absl::StrJoin(statements, " "), "\n\n");
}

std::string Queries(const World& world, RandomStream& random) {
  const int64_t lines = random.Between(6, 14);
  std::string text;
  for (int64_t i = 0; i < lines; ++i) {
    absl::StrAppend(&text, "Query: ", QuestionText(world, DrawQuestion(world, random)), "\n");
  }
  return absl::StrCat(text, "\n");
}

}  // namespace

std::string CorpusDocument(const World& world, uint64_t seed, uint64_t index) {
  constexpr std::array<double, 3> kWeights = {.74, .20, .06};
  RandomStream random(DeriveSeed(seed, "corpus"), index);
  switch (random.Weighted(kWeights)) {
    case 0:
      return Dialogue(world, random);
    case 1:
      return Statements(world, random);
    default:
      return Queries(world, random);
  }
}

std::vector<std::string> CorpusDocuments(const World& world, uint64_t seed, uint64_t first, uint64_t count) {
  std::vector<std::string> documents;
  documents.reserve(count);
  for (uint64_t i = 0; i < count; ++i) documents.push_back(CorpusDocument(world, seed, first + i));
  return documents;
}

}  // namespace almost::world
