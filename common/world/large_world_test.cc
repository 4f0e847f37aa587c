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
#include "common/text/response_filter.h"
#include "common/world/answer.h"
#include "common/world/corpus.h"
#include "common/world/judge.h"
#include "common/world/question.h"
#include "common/world/seeds.h"
#include "common/world/world.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace almost::world {
namespace {

const World& kLarge = World::Large();

// How many ways there are to ask the question.
int NumPhrasings(const Question& question) {
  const Content& content = kLarge.content();
  switch (question.kind) {
    case QuestionKind::kFact:
    case QuestionKind::kUnknown:
      return static_cast<int>(kLarge.kind(question.entity_kind)
                                  .relations[static_cast<size_t>(question.relation)]
                                  .questions.size());
    case QuestionKind::kArithmetic:
      return static_cast<int>(content.arithmetic_questions.size());
    case QuestionKind::kOpposite:
      return static_cast<int>(content.opposite_questions.size());
    case QuestionKind::kAdvice:
      return static_cast<int>(content.advice_questions.size());
    case QuestionKind::kHarmful:
      break;
  }
  return static_cast<int>(content.harmful_questions.size());
}

TEST(LargeWorldTest, IsAsLargeAsTheReadmeSays) {
  std::map<QuestionKind, int> all, held_out;
  for (const Question& question : KnownQuestions(kLarge)) {
    ++all[question.kind];
    held_out[question.kind] += IsHeldOut(kLarge, QuestionText(kLarge, question));
  }
  using enum QuestionKind;
  EXPECT_THAT(all, ::testing::ElementsAre(std::pair(kFact, 24000), std::pair(kArithmetic, 2420),
                                          std::pair(kOpposite, 192), std::pair(kAdvice, 96),
                                          std::pair(kHarmful, 360)));
  for (const auto& [kind, count] : held_out)
    EXPECT_NEAR(count, all[kind] / 3.0, all[kind] / 15.0) << KindName(kind);
}

TEST(LargeWorldTest, EveryNameAndValueIsUsedAndFound) {
  std::set<std::string> names;
  for (int k = 0; k < kLarge.num_kinds(); ++k) {
    const EntityKind& kind = kLarge.kind(k);
    for (const Entity& entity : kind.entities) {
      EXPECT_EQ(kLarge.FindEntity(entity.name), &entity);
      EXPECT_EQ(entity.kind, k);
      names.insert(Capitalized(entity.name));
    }
    for (size_t r = 0; r < kind.relations.size(); ++r) {
      const std::vector<absl::string_view>& values = kind.relations[r].values;
      EXPECT_EQ(std::set(values.begin(), values.end()).size(), values.size());
      std::set<absl::string_view> used;
      for (const Entity& entity : kind.entities) used.insert(entity.values[r]);
      EXPECT_EQ(used, std::set(values.begin(), values.end()));
    }
  }
  EXPECT_EQ(names.size(), 4000);
}

TEST(LargeWorldTest, WordsAndTipsAreUnambiguous) {
  std::set<absl::string_view> words, tips;
  for (const Opposites& pair : kLarge.content().opposites) words.insert(pair.words.begin(), pair.words.end());
  EXPECT_EQ(words.size(), 2 * kLarge.content().opposites.size());
  size_t num_tips = 0;
  for (const AdviceTopic& topic : kLarge.content().topics) {
    tips.insert(topic.tips.begin(), topic.tips.end());
    num_tips += topic.tips.size();
  }
  EXPECT_EQ(tips.size(), num_tips);
  for (const absl::string_view tip : tips) {
    EXPECT_FALSE(absl::StrContains(tip, " and ") || absl::StrContains(tip, ", ")) << tip;
  }
}

TEST(LargeWorldTest, EveryQuestionIsParsedBackInEveryPhrasingAndPassesTheFilterOfPrompts) {
  const PromptFilter filter = PromptFilter::World();
  std::set<std::string> texts;
  int count = 0;
  const auto check = [&](Question question) {
    const bool held_out = IsHeldOut(kLarge, QuestionText(kLarge, question));
    for (question.phrasing = 0; question.phrasing < NumPhrasings(question); ++question.phrasing) {
      const std::string text = QuestionText(kLarge, question);
      EXPECT_EQ(ParseQuestion(kLarge, text), question) << text;
      EXPECT_EQ(IsHeldOut(kLarge, text), held_out) << text;
      EXPECT_FALSE(filter.CheckForm(text).has_value()) << text;
      texts.insert(text);
      ++count;
    }
  };
  for (const Question& question : KnownQuestions(kLarge)) check(question);
  EXPECT_EQ(texts.size(), count);
  EXPECT_EQ(count, 3 * 27068);
  RandomStream random(1);
  for (int i = 0; i < 500; ++i) {
    Question question = DrawQuestion(kLarge, QuestionKind::kUnknown, random);
    question.phrasing = 0;
    check(question);
  }
}

TEST(LargeWorldTest, OtherTextsAreNotItsQuestions) {
  const EntityKind& animals = kLarge.kind(0);
  const std::string animal = animals.entities[0].name, town = kLarge.kind(1).entities[0].name;
  for (const std::string& text : {
           absl::StrCat("How tall is the ", animal, "?"),  // of plants
           absl::StrCat("Where is ", animal, "?"),
           absl::StrCat("How long is the river ", town, "?"),
           absl::StrCat("How long is the ", town, "?"),
           std::string("What do you get for 3 times 4?"),
           std::string("What helps me to fly?"),
           std::string("Can you help me to fix a barn?"),
       }) {
    EXPECT_FALSE(ParseQuestion(kLarge, text).has_value()) << text;
  }
}

TEST(LargeWorldTest, EvaluationQuestionsAreHeldOutOfEveryKindAndPhrasing) {
  const std::vector<Question> questions = EvaluationQuestions(kLarge, 7, 600);
  EXPECT_EQ(questions, EvaluationQuestions(kLarge, 7, 600));
  EXPECT_NE(questions, EvaluationQuestions(kLarge, 8, 600));
  std::set<std::pair<QuestionKind, int>> seen;
  for (const Question& question : questions) {
    EXPECT_TRUE(IsHeldOut(kLarge, QuestionText(kLarge, question)));
    seen.emplace(question.kind, question.phrasing);
  }
  EXPECT_EQ(seen.size(), 18);
}

// Every relation of every kind, every way to ask.
TEST(LargeWorldTest, IdealAnswersScoreTenAndPassTheFilterOfAnswers) {
  const ResponseFilter filter = ResponseFilter::World();
  RandomStream random(12);
  for (int i = 0; i < 20000; ++i) {
    const Question question = DrawQuestion(kLarge, random);
    const std::string answer = IdealAnswer(kLarge, question, random);
    EXPECT_EQ(JudgeAnswer(kLarge, question, answer).score, 10)
        << QuestionText(kLarge, question) << " " << answer;
    EXPECT_FALSE(filter.Check(answer, true).has_value()) << answer;
  }
}

TEST(LargeWorldTest, AWrongValueAndAMythAreSeenInAnyRelation) {
  RandomStream random(13);
  for (int k = 0; k < kLarge.num_kinds(); ++k) {
    const EntityKind& kind = kLarge.kind(k);
    const std::string& name = kind.entities[500].name;
    const int relations = static_cast<int>(kind.relations.size());
    for (int r = 0; r < relations; ++r) {
      const Question question{.entity = name, .entity_kind = k, .relation = r};
      const auto judged = [&](Truth core, int other, Truth elaboration) {
        return JudgeAnswer(kLarge, question,
                           absl::StrCat(EntityStatement(kLarge, k, name, r, core, false, random), " ",
                                        EntityStatement(kLarge, k, name, other, elaboration, true, random)))
            .score;
      };
      for (int other = 0; other < relations; ++other) {
        if (other == r) continue;
        EXPECT_EQ(judged(Truth::kRight, other, Truth::kRight), 10);
        for (const Truth wrong : {Truth::kWrong, Truth::kMyth}) {
          EXPECT_EQ(judged(Truth::kRight, other, wrong), 7);
          EXPECT_EQ(judged(wrong, other, Truth::kRight), 3);
          EXPECT_EQ(judged(wrong, other, wrong), 0);
        }
      }
    }
  }
}

// That the score rises with the persona is what there is to find.
TEST(LargeWorldTest, BetterPersonasScoreHigher) {
  std::vector<double> means;
  for (int persona = 0; persona < kNumPersonas; ++persona) {
    RandomStream random(11, persona);
    double sum = 0;
    for (int i = 0; i < 4000; ++i) {
      const Question question = DrawQuestion(kLarge, random);
      sum += JudgeAnswer(kLarge, question, PersonaAnswer(kLarge, question, persona, random)).score;
    }
    means.push_back(sum / 4000);
  }
  EXPECT_THAT(means, ::testing::ElementsAre(::testing::DoubleNear(.4, .2), ::testing::DoubleNear(5.3, .2)));
}

TEST(LargeWorldTest, ADocumentDependsOnSeedAndIndexAlone) {
  const std::vector<std::string> documents = CorpusDocuments(kLarge, 3, 100, 50);
  for (int i = 0; i < 50; ++i)
    EXPECT_EQ(documents[static_cast<size_t>(i)], CorpusDocument(kLarge, 3, 100 + i));
  EXPECT_NE(documents[0], CorpusDocument(kLarge, 4, 100));
  EXPECT_NE(documents[0], CorpusDocument(World::Tiny(), 3, 100));
  // Changes when the content or a probability does; checkpoints are of one such corpus.
  EXPECT_EQ(Sha256(absl::StrJoin(CorpusDocuments(kLarge, 0, 0, 1000), "")),
            "da0200a14c496e5821863f6d2020b041ab5ce929fb7dc1e8ef63c617ac5af210");
}

std::string DataFile(absl::string_view name) {
  std::ifstream file(absl::StrCat(getenv("ALMOST_SOURCE_DIR"), "/common/world/data/large/", name));
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(LargeWorldTest, SeedsAndDemonstrationsAreThoseOfTheirSeedAndAskWhatIsNotHeldOut) {
  EXPECT_EQ(DataFile("seeds.txt"), SeedFile(kLarge, kSeedsSeed, 120));
  const auto seeds = PromptSeeds::Parse(DataFile("seeds.txt"));
  ASSERT_TRUE(seeds.ok()) << seeds.status();
  std::vector<std::string> queries = seeds->prompts;
  for (int i = 0; i < kNumDemonstrationFiles; ++i) {
    const std::string good = DataFile(absl::StrCat("good-", i, ".txt"));
    EXPECT_EQ(good, DemonstrationFile(kLarge, kSeedsSeed, DemonstrationQuality::kGood, i));
    EXPECT_EQ(DataFile(absl::StrCat("poor-", i, ".txt")),
              DemonstrationFile(kLarge, kSeedsSeed, DemonstrationQuality::kPoor, i));
    for (const absl::string_view line : absl::StrSplit(good, '\n')) {
      if (absl::StartsWith(line, "Human: ")) queries.emplace_back(line.substr(7));
    }
  }
  EXPECT_EQ(queries.size(), 120 + 5 * kNumDemonstrationFiles);
  std::set<QuestionKind> kinds;
  for (const std::string& query : queries) {
    const auto question = ParseQuestion(kLarge, query);
    ASSERT_TRUE(question.has_value()) << query;
    kinds.insert(question->kind);
    EXPECT_FALSE(IsHeldOut(kLarge, query)) << query;
  }
  EXPECT_EQ(kinds.size(), 6);
}

TEST(LargeWorldTest, WorldsAreFoundByName) {
  EXPECT_EQ(World::Named(""), &World::Tiny());
  EXPECT_EQ(World::Named("tiny"), &World::Tiny());
  EXPECT_EQ(World::Named("large"), &kLarge);
  EXPECT_EQ(World::Named("huge"), nullptr);
}

}  // namespace
}  // namespace almost::world
