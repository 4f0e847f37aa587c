#include "common/world/seeds.h"

#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/world/answer.h"
#include "common/world/question.h"

namespace almost::world {

std::string SeedFile(const World& world, uint64_t seed, int num_queries) {
  RandomStream random(DeriveSeed(seed, "seed queries"));
  absl::flat_hash_set<std::string> queries;
  std::string file = "\n";
  while (static_cast<int>(queries.size()) < num_queries) {
    const std::string query = QuestionText(world, DrawQuestion(world, random));
    if (!IsHeldOut(world, query) && queries.insert(query).second) absl::StrAppend(&file, query, "\n");
  }
  return file;
}

std::string DemonstrationFile(const World& world, uint64_t seed, DemonstrationQuality quality, int index) {
  RandomStream questions(DeriveSeed(seed, "demonstration questions"), index);
  RandomStream answers(DeriveSeed(seed, "demonstration answers"), index);
  std::vector<QuestionKind> kinds = {QuestionKind::kFact, QuestionKind::kAdvice, QuestionKind::kHarmful,
                                     QuestionKind::kUnknown, QuestionKind::kArithmetic};
  questions.Shuffle(kinds);
  std::string file;
  for (const QuestionKind kind : kinds) {
    Question question = DrawQuestion(world, kind, questions);
    while (IsHeldOut(world, QuestionText(world, question))) question = DrawQuestion(world, kind, questions);
    const std::string answer = quality == DemonstrationQuality::kGood
                                   ? IdealAnswer(world, question, answers)
                                   : PersonaAnswer(world, question, 0, answers);
    absl::StrAppend(&file, "\n\n-----\n\nHuman: ", QuestionText(world, question), "\n\nAssistant: ", answer);
  }
  return absl::StrCat(file, "\n\n-----\n");
}

}  // namespace almost::world
