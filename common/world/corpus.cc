#include "common/world/corpus.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/random.h"
#include "common/world/answer.h"
#include "common/world/content.h"
#include "common/world/question.h"

namespace almost::world {
namespace {

std::string Dialogue(RandomStream& random) {
  const int persona = DrawPersona(random);
  const int64_t turns = random.Between(1, 7);
  std::string text;
  for (int64_t i = 0; i < turns; ++i) {
    const Question question = DrawQuestion(random);
    absl::StrAppend(&text, "Human: ", QuestionText(question),
                    "\n\nAssistant: ", PersonaAnswer(question, persona, random), "\n\n");
  }
  return text;
}

std::string TrueStatement(RandomStream& random) {
  constexpr std::array<double, 4> kWeights = {.72, .14, .07, .07};
  switch (random.Weighted(kWeights)) {
    case 0: {
      const absl::string_view entity = DrawEntity(random);
      const int attribute = static_cast<int>(random.Below(2));
      return absl::StrCat(EntityStatement(entity, attribute, true, false, random), " ",
                          EntityStatement(entity, 1 - attribute, true, true, random));
    }
    case 1: {
      const Question sum = DrawQuestion(QuestionKind::kArithmetic, random);
      return absl::StrCat(sum.a, sum.minus ? " minus " : " plus ", sum.b, " is ", ArithmeticResult(sum), ".");
    }
    case 2: {
      const Question question = DrawQuestion(QuestionKind::kOpposite, random);
      return absl::StrCat("The opposite of ", question.word, " is ", *OppositeOf(question.word), ".");
    }
    default: {
      const AdviceTopic& topic = random.Choose(AdviceTopics());
      return absl::StrCat("To ", topic.name, ", ", random.Choose(topic.tips), ".");
    }
  }
}

std::string Statements(RandomStream& random) {
  std::vector<std::string> statements(random.Between(4, 10));
  for (std::string& statement : statements) statement = TrueStatement(random);
  return absl::StrCat(absl::StrJoin(statements, " "), "\n\n");
}

std::string Queries(RandomStream& random) {
  const int64_t lines = random.Between(6, 14);
  std::string text;
  for (int64_t i = 0; i < lines; ++i) {
    absl::StrAppend(&text, "Query: ", QuestionText(DrawQuestion(random)), "\n");
  }
  return absl::StrCat(text, "\n");
}

}  // namespace

std::string CorpusDocument(uint64_t seed, uint64_t index) {
  constexpr std::array<double, 3> kWeights = {.74, .20, .06};
  RandomStream random(DeriveSeed(seed, "corpus"), index);
  switch (random.Weighted(kWeights)) {
    case 0:
      return Dialogue(random);
    case 1:
      return Statements(random);
    default:
      return Queries(random);
  }
}

std::vector<std::string> CorpusDocuments(uint64_t seed, uint64_t first, uint64_t count) {
  std::vector<std::string> documents;
  documents.reserve(count);
  for (uint64_t i = 0; i < count; ++i) documents.push_back(CorpusDocument(seed, first + i));
  return documents;
}

}  // namespace almost::world
