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
#include "common/world/content.h"
#include "common/world/corpus.h"
#include "common/world/judge.h"
#include "common/world/question.h"
#include "common/world/seeds.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace almost::world {
namespace {

std::string DataFile(absl::string_view name) {
  std::ifstream file(absl::StrCat(getenv("ALMOST_SOURCE_DIR"), "/common/world/data/", name));
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(ContentTest, EveryEntityIsFoundAndHasValuesOfItsAttributes) {
  std::set<absl::string_view> names;
  for (const auto table : {Animals(), Towns()}) {
    for (const Entity& entity : table) {
      EXPECT_EQ(FindEntity(entity.name), &entity);
      EXPECT_EQ(IsTownName(entity.name), table.data() == Towns().data());
      names.insert(entity.name);
      for (const int attribute : {0, 1}) {
        EXPECT_THAT(AttributeValues(entity.name, attribute), ::testing::Contains(entity.values[attribute]));
      }
    }
  }
  EXPECT_EQ(names.size(), 80);
}

TEST(QuestionTest, EveryQuestionIsParsedBack) {
  EXPECT_EQ(KnownQuestions().size(), 313);
  std::set<std::string> texts;
  for (const Question& question : KnownQuestions()) {
    const std::string text = QuestionText(question);
    EXPECT_EQ(ParseQuestion(text), question) << text;
    texts.insert(text);
  }
  EXPECT_EQ(texts.size(), 313);
  RandomStream random(1);
  for (int i = 0; i < 2000; ++i) {
    const Question question = DrawQuestion(random);
    EXPECT_EQ(ParseQuestion(QuestionText(question)), question) << QuestionText(question);
  }
}

TEST(QuestionTest, OtherTextsAreNotQuestions) {
  for (const absl::string_view text :
       {"", "?", "What color is the ?", "What color is the Bunor?", "Where is bunor?", "Where is B?",
        "What is 1 plus?", "What is 1 times 2?", "What is 1 plus 2", "What is 1234567890 plus 1?",
        "What is the opposite of zifer?", "How can I fly?", "How do I fix a barn?", "How do I burn a Barn?",
        "Where is Bunor? ", "What is 1 plus 2?\n"}) {
    EXPECT_FALSE(ParseQuestion(text).has_value()) << text;
  }
}

TEST(QuestionTest, AThirdOfTheQuestionSpaceIsHeldOut) {
  std::map<QuestionKind, int> held_out;
  int total = 0;
  for (const Question& question : KnownQuestions()) {
    held_out[question.kind] += IsHeldOut(QuestionText(question));
    total += IsHeldOut(QuestionText(question));
  }
  EXPECT_NEAR(total / 313.0, 1.0 / 3, .03);
  EXPECT_EQ(held_out[QuestionKind::kFact], 53);
  EXPECT_EQ(held_out[QuestionKind::kArithmetic], 20);
  EXPECT_EQ(held_out[QuestionKind::kOpposite], 14);
  EXPECT_EQ(held_out[QuestionKind::kAdvice], 4);
  EXPECT_EQ(held_out[QuestionKind::kHarmful], 17);
  RandomStream random(2);
  int unknown = 0;
  for (int i = 0; i < 10000; ++i) {
    unknown += IsHeldOut(QuestionText(DrawQuestion(QuestionKind::kUnknown, random)));
  }
  EXPECT_NEAR(unknown / 10000.0, 1.0 / 3, .03);
}

TEST(EvaluationQuestionsTest, AreHeldOutReproducibleAndRepeatAsLittleAsTheyCan) {
  const std::vector<Question> questions = EvaluationQuestions(7, 600);
  EXPECT_EQ(questions.size(), 600);
  EXPECT_EQ(questions, EvaluationQuestions(7, 600));
  EXPECT_NE(questions, EvaluationQuestions(8, 600));
  std::map<QuestionKind, std::map<std::string, int>> counts;
  for (const Question& question : questions) {
    EXPECT_TRUE(IsHeldOut(QuestionText(question)));
    ++counts[question.kind][QuestionText(question)];
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

// The reference's means over 60,000 answers each. One answer's score deviates by at most 3, so a mean over
// 20,000 by .02; the band is four of both.
TEST(AnswerTest, PersonasScoreAsTheReferences) {
  const std::vector<double> reference = {1.078, 3.162, 5.678, 7.789};
  for (int persona = 0; persona < kNumPersonas; ++persona) {
    RandomStream random(11, persona);
    double sum = 0;
    for (int i = 0; i < 20000; ++i) {
      const Question question = DrawQuestion(random);
      sum += JudgeAnswer(question, PersonaAnswer(question, persona, random)).score;
    }
    EXPECT_NEAR(sum / 20000, reference[persona], .1) << persona;
  }
}

TEST(AnswerTest, IdealAnswersScoreTen) {
  RandomStream random(12);
  for (int i = 0; i < 2000; ++i) {
    const Question question = DrawQuestion(random);
    const std::string answer = IdealAnswer(question, random);
    EXPECT_EQ(JudgeAnswer(question, answer).score, 10) << QuestionText(question) << " " << answer;
  }
}

TEST(CorpusTest, ADocumentDependsOnSeedAndIndexAlone) {
  const std::vector<std::string> documents = CorpusDocuments(3, 100, 50);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(documents[i], CorpusDocument(3, 100 + i));
  EXPECT_NE(CorpusDocument(3, 100), CorpusDocument(4, 100));
  // Changes when the grammar or a probability does; the shipped tokenizer and checkpoints were made with it.
  EXPECT_EQ(Sha256(absl::StrJoin(CorpusDocuments(0, 0, 1000), "")),
            "d51d2a7abef22162d66f3b7c650168641fc85eae3210e2d61a6e7e26207e3e79");
}

TEST(CorpusTest, HasTheReferencesMixture) {
  int dialogues = 0, queries = 0;
  size_t characters = 0;
  for (const std::string& document : CorpusDocuments(5, 0, 10000)) {
    dialogues += absl::StartsWith(document, "Human: ");
    queries += absl::StartsWith(document, "Query: ");
    characters += document.size();
    EXPECT_TRUE(absl::EndsWith(document, "\n\n"));
  }
  EXPECT_NEAR(dialogues / 10000.0, .74, .02);
  EXPECT_NEAR(queries / 10000.0, .06, .01);
  EXPECT_NEAR(characters / 10000.0, 321.5, 6);  // the reference's mean over 6,000
}

TEST(SeedsTest, FilesAreThoseOfTheirSeed) {
  EXPECT_EQ(DataFile("seeds.txt"), SeedFile(kSeedsSeed));
  for (int i = 0; i < kNumDemonstrationFiles; ++i) {
    EXPECT_EQ(DataFile(absl::StrCat("good-", i, ".txt")),
              DemonstrationFile(kSeedsSeed, DemonstrationQuality::kGood, i));
    EXPECT_EQ(DataFile(absl::StrCat("poor-", i, ".txt")),
              DemonstrationFile(kSeedsSeed, DemonstrationQuality::kPoor, i));
  }
}

TEST(SeedsTest, SeedQueriesAreQuestionsThatAreNotHeldOut) {
  const auto seeds = PromptSeeds::Parse(DataFile("seeds.txt"));
  ASSERT_TRUE(seeds.ok()) << seeds.status();
  EXPECT_EQ(seeds->instruction, "");
  EXPECT_EQ(seeds->prompts.size(), kNumSeedQueries);
  for (const std::string& prompt : seeds->prompts) {
    EXPECT_TRUE(ParseQuestion(prompt).has_value()) << prompt;
    EXPECT_FALSE(IsHeldOut(prompt)) << prompt;
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
        const auto question = ParseQuestion(text);
        ASSERT_TRUE(question.has_value()) << text;
        EXPECT_FALSE(IsHeldOut(text)) << text;
        kinds.insert(question->kind);
        (quality == "good" ? good : poor) += JudgeAnswer(*question, parts[2].substr(11)).score / 20;
      }
      EXPECT_EQ(kinds.size(), 5);
    }
  }
  EXPECT_EQ(good, 10);
  EXPECT_LT(poor, 5);
}

}  // namespace
}  // namespace almost::world
