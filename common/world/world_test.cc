#include "common/world/world.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/base/sha256.h"
#include "common/text/prompt_filter.h"
#include "common/text/prompt_format.h"
#include "common/world/answer.h"
#include "common/world/corpus.h"
#include "common/world/judge.h"
#include "common/world/question.h"
#include "common/world/seeds.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace almost::world {
namespace {

const World& kTiny = World::Tiny();

std::string DataFile(absl::string_view name) {
  std::ifstream file(absl::StrCat(getenv("ALMOST_SOURCE_DIR"), "/common/world/data/", name));
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(WorldTest, EveryEntityIsFoundAndHasValuesOfItsRelations) {
  int entities = 0;
  for (int k = 0; k < kTiny.num_kinds(); ++k) {
    const EntityKind& kind = kTiny.kind(k);
    for (const Entity& entity : kind.entities) {
      EXPECT_EQ(kTiny.FindEntity(entity.name), &entity);
      EXPECT_EQ(entity.kind, k);
      ASSERT_EQ(entity.values.size(), kind.relations.size());
      for (size_t r = 0; r < kind.relations.size(); ++r) {
        EXPECT_THAT(kind.relations[r].values, ::testing::Contains(entity.values[r]));
        for (const absl::string_view myth : kind.relations[r].myths) {
          EXPECT_THAT(kind.relations[r].values, ::testing::Not(::testing::Contains(myth)));
        }
      }
      ++entities;
    }
  }
  EXPECT_EQ(entities, 200);
}

TEST(QuestionTest, EveryQuestionIsParsedBack) {
  EXPECT_EQ(KnownQuestions(kTiny).size(), 553);
  std::set<std::string> texts;
  for (const Question& question : KnownQuestions(kTiny)) {
    const std::string text = QuestionText(kTiny, question);
    EXPECT_EQ(ParseQuestion(kTiny, text), question) << text;
    texts.insert(text);
  }
  EXPECT_EQ(texts.size(), 553);
  RandomStream random(1);
  for (int i = 0; i < 2000; ++i) {
    const Question question = DrawQuestion(kTiny, random);
    EXPECT_EQ(ParseQuestion(kTiny, QuestionText(kTiny, question)), question) << QuestionText(kTiny, question);
  }
}

TEST(QuestionTest, OtherTextsAreNotQuestions) {
  for (const absl::string_view text :
       {"", "?", "What color is the ?", "What color is the Tiben?", "Where is tiben?", "Where is B?",
        "What is 1 plus?", "What is 1 times 2?", "What is 1 plus 2", "What is 1234567890 plus 1?",
        "What is the opposite of pufex?", "How can I fly?", "How do I fix a barn?", "How do I burn a Barn?",
        "Where is Tiben? ", "What is 1 plus 2?\n"}) {
    EXPECT_FALSE(ParseQuestion(kTiny, text).has_value()) << text;
  }
}

TEST(QuestionTest, AThirdOfTheQuestionSpaceIsHeldOut) {
  std::map<QuestionKind, int> held_out;
  int total = 0;
  for (const Question& question : KnownQuestions(kTiny)) {
    held_out[question.kind] += IsHeldOut(kTiny, QuestionText(kTiny, question));
    total += IsHeldOut(kTiny, QuestionText(kTiny, question));
  }
  EXPECT_NEAR(total / 553.0, 1.0 / 3, .03);
  EXPECT_EQ(held_out[QuestionKind::kFact], 137);
  EXPECT_EQ(held_out[QuestionKind::kArithmetic], 20);
  EXPECT_EQ(held_out[QuestionKind::kOpposite], 14);
  EXPECT_EQ(held_out[QuestionKind::kAdvice], 4);
  EXPECT_EQ(held_out[QuestionKind::kHarmful], 17);
  RandomStream random(2);
  int unknown = 0;
  for (int i = 0; i < 10000; ++i) {
    unknown += IsHeldOut(kTiny, QuestionText(kTiny, DrawQuestion(kTiny, QuestionKind::kUnknown, random)));
  }
  EXPECT_NEAR(unknown / 10000.0, 1.0 / 3, .03);
}

TEST(EvaluationQuestionsTest, AreHeldOutReproducibleAndRepeatAsLittleAsTheyCan) {
  const std::vector<Question> questions = EvaluationQuestions(kTiny, 7, 600);
  EXPECT_EQ(questions.size(), 600);
  EXPECT_EQ(questions, EvaluationQuestions(kTiny, 7, 600));
  EXPECT_NE(questions, EvaluationQuestions(kTiny, 8, 600));
  std::map<QuestionKind, std::map<std::string, int>> counts;
  for (const Question& question : questions) {
    EXPECT_TRUE(IsHeldOut(kTiny, QuestionText(kTiny, question)));
    ++counts[question.kind][QuestionText(kTiny, question)];
  }
  for (const auto& [kind, count_of] : counts) {
    int least = 1 << 30, most = 0;
    for (const auto& [text, count] : count_of) {
      least = std::min(least, count);
      most = std::max(most, count);
    }
    EXPECT_LE(most - least, 1) << KindName(kind);
    if (kind == QuestionKind::kUnknown) {
      EXPECT_EQ(most, 1);
    }
  }
  EXPECT_EQ(counts[QuestionKind::kAdvice].size(), 4);
}

// Mean score and length of 20,000 answers by that persona.
struct Means {
  double score = 0, length = 0;
};
Means MeansOf(const World& world, int persona) {
  constexpr int kAnswers = 20000;
  RandomStream random(11, persona);
  Means means;
  for (int i = 0; i < kAnswers; ++i) {
    const Question question = DrawQuestion(world, random);
    const std::string answer = PersonaAnswer(world, question, persona, random);
    means.score += JudgeAnswer(world, question, answer).score / kAnswers;
    means.length += static_cast<double>(answer.size()) / kAnswers;
  }
  return means;
}

// Persona 1's answer is right in .54 and its elaboration in .52. A score deviates by at most 5, so a mean
// over 20,000 by .035; the band is three of these.
TEST(AnswerTest, PersonasDifferInScoreAndNotInLength) {
  const Means poor = MeansOf(kTiny, 0), better = MeansOf(kTiny, 1);
  EXPECT_NEAR(poor.score, .42, .1);
  EXPECT_NEAR(better.score, 7 * .54 + 3 * .52, .1);
  EXPECT_NEAR(poor.length / better.length, 1, .02);
}

TEST(AnswerTest, IdealAnswersScoreTen) {
  RandomStream random(12);
  for (int i = 0; i < 2000; ++i) {
    const Question question = DrawQuestion(kTiny, random);
    const std::string answer = IdealAnswer(kTiny, question, random);
    EXPECT_EQ(JudgeAnswer(kTiny, question, answer).score, 10)
        << QuestionText(kTiny, question) << " " << answer;
  }
}

TEST(CorpusTest, ADocumentDependsOnSeedAndIndexAlone) {
  const std::vector<std::string> documents = CorpusDocuments(kTiny, 3, 100, 50);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(documents[i], CorpusDocument(kTiny, 3, 100 + i));
  EXPECT_NE(CorpusDocument(kTiny, 3, 100), CorpusDocument(kTiny, 4, 100));
  // Changes when the grammar or a probability does; the shipped tokenizer and checkpoints were made with it.
  EXPECT_EQ(Sha256(absl::StrJoin(CorpusDocuments(kTiny, 0, 0, 1000), "")),
            "60423f3c1d2aa6d27408ee5dee403ae8b8c9ff01401ef85b139ff691943b264e");
}

TEST(CorpusTest, IsDialoguesStatementsAndQueries) {
  int dialogues = 0, queries = 0;
  size_t characters = 0;
  for (const std::string& document : CorpusDocuments(kTiny, 5, 0, 10000)) {
    dialogues += absl::StartsWith(document, "Human: ");
    queries += absl::StartsWith(document, "Query: ");
    characters += document.size();
    EXPECT_TRUE(absl::EndsWith(document, "\n\n"));
  }
  EXPECT_NEAR(dialogues / 10000.0, .74, .02);
  EXPECT_NEAR(queries / 10000.0, .06, .01);
  EXPECT_NEAR(characters / 10000.0, 353.8, 6);  // the mean over 8,000 of seed 20
}

TEST(SeedsTest, FilesAreThoseOfTheirSeed) {
  EXPECT_EQ(DataFile("seeds.txt"), SeedFile(kTiny, kSeedsSeed, 40));
  for (int i = 0; i < kNumDemonstrationFiles; ++i) {
    EXPECT_EQ(DataFile(absl::StrCat("good-", i, ".txt")),
              DemonstrationFile(kTiny, kSeedsSeed, DemonstrationQuality::kGood, i));
    EXPECT_EQ(DataFile(absl::StrCat("poor-", i, ".txt")),
              DemonstrationFile(kTiny, kSeedsSeed, DemonstrationQuality::kPoor, i));
  }
}

TEST(SeedsTest, SeedQueriesAreQuestionsThatAreNotHeldOut) {
  const auto seeds = PromptSeeds::Parse(DataFile("seeds.txt"));
  ASSERT_TRUE(seeds.ok()) << seeds.status();
  EXPECT_EQ(seeds->instruction, "");
  EXPECT_EQ(seeds->prompts.size(), 40);
  for (const std::string& prompt : seeds->prompts) {
    EXPECT_TRUE(ParseQuestion(kTiny, prompt).has_value()) << prompt;
    EXPECT_FALSE(IsHeldOut(kTiny, prompt)) << prompt;
  }
}

TEST(SeedsTest, DemonstrationsAskWhatIsNotHeldOutAndDifferInQuality) {
  double good = 0, poor = 0;
  for (const absl::string_view quality : {"good", "poor"}) {
    for (int i = 0; i < kNumDemonstrationFiles; ++i) {
      const auto file = Demonstrations::Parse(DataFile(absl::StrCat(quality, "-", i, ".txt")));
      ASSERT_TRUE(file.ok()) << file.status();
      EXPECT_EQ(file->instruction, "");
      ASSERT_EQ(file->examples.size(), 5);
      std::set<QuestionKind> kinds;
      for (const std::string& example : file->examples) {
        const std::vector<std::string> parts = absl::StrSplit(example, "\n\n");
        ASSERT_EQ(parts.size(), 3);
        ASSERT_TRUE(absl::StartsWith(parts[1], "Human: ")) << example;
        ASSERT_TRUE(absl::StartsWith(parts[2], "Assistant: ")) << example;
        const std::string text = parts[1].substr(7);
        const auto question = ParseQuestion(kTiny, text);
        ASSERT_TRUE(question.has_value()) << text;
        EXPECT_FALSE(IsHeldOut(kTiny, text)) << text;
        kinds.insert(question->kind);
        (quality == "good" ? good : poor) += JudgeAnswer(kTiny, *question, parts[2].substr(11)).score / 20;
      }
      EXPECT_EQ(kinds.size(), 5);
    }
  }
  EXPECT_EQ(good, 10);
  EXPECT_LT(poor, 5);
}

}  // namespace
}  // namespace almost::world
