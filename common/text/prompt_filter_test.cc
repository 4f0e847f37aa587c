#include "common/text/prompt_filter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"

namespace almost {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(PromptSeedsTest, TheFirstLineIsTheInstruction) {
  const auto seeds = PromptSeeds::Parse("### Instruction: ask.\n\nWhat is salt?\r\nWho are you?\n");
  ASSERT_TRUE(seeds.ok());
  EXPECT_EQ(seeds->instruction, "### Instruction: ask.");
  EXPECT_THAT(seeds->prompts, ElementsAre("What is salt?", "Who are you?"));
  EXPECT_EQ(PromptSeeds::Parse("### Instruction: ask.\n").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(PromptSeedsTest, ABlankFirstLineIsNoInstruction) {
  const auto seeds = PromptSeeds::Parse("\nWhat is salt?\n");
  ASSERT_TRUE(seeds.ok());
  EXPECT_EQ(seeds->instruction, "");
  EXPECT_THAT(seeds->prompts, ElementsAre("What is salt?"));
}

TEST(PromptRequestTest, ListsTheShotsAndAsksForOneMore) {
  EXPECT_EQ(PromptRequest("Ask.", std::vector<std::string>{"A?", "B?"}),
            "Ask.\n\nQuery: A?\nQuery: B?\nQuery:");
  EXPECT_EQ(PromptRequest("", std::vector<std::string>{"A?"}), "Query: A?\nQuery:");
}

TEST(PromptFilterTest, PaperTakesTheFirstQueryLine) {
  const PromptFilter filter = PromptFilter::Paper();
  EXPECT_THAT(filter.Extract(" What is it?\n  Query: How are you? \nQuery: Who?"),
              ElementsAre("How are you?"));
  EXPECT_THAT(filter.Extract(" What is it?\nOther"), ElementsAre("What is it?"));
  EXPECT_THAT(filter.Extract("What? query: And?"), ElementsAre("What?"));
  EXPECT_THAT(filter.Extract("\nQuery: What? QUERY : And?"), ElementsAre("What?"));
  EXPECT_THAT(filter.Extract("What is a query? Tell me."), ElementsAre("What is a query? Tell me."));
  EXPECT_THAT(filter.Extract(""), IsEmpty());
  EXPECT_THAT(filter.Extract("\nQuery: query: x"), IsEmpty());
}

TEST(PromptFilterTest, PaperWantsShortAndLongPromptsPunctuated) {
  const PromptFilter filter = PromptFilter::Paper();
  const std::string short_one(29, 'a'), long_one(251, 'a');
  EXPECT_EQ(filter.CheckForm(short_one), PromptDropReason::kTooShort);
  EXPECT_EQ(filter.CheckForm("Why?"), std::nullopt);
  EXPECT_EQ(filter.CheckForm(short_one + "a"), std::nullopt);
  EXPECT_EQ(filter.CheckForm(long_one), PromptDropReason::kCutOff);
  EXPECT_EQ(filter.CheckForm(long_one + "."), std::nullopt);
  EXPECT_EQ(filter.CheckForm(std::string(250, 'a')), std::nullopt);
  EXPECT_EQ(filter.CheckForm(""), PromptDropReason::kEmpty);
}

TEST(PromptFilterTest, WorldTakesEveryCompleteLine) {
  EXPECT_THAT(
      PromptFilter::World().Extract(" What does the bolin eat?\nQuery: Where is Lofan?\n\nQuery: What co"),
      ElementsAre("What does the bolin eat?", "Where is Lofan?"));
  EXPECT_THAT(PromptFilter::World().Extract(" What does the bolin eat?"), IsEmpty());
}

TEST(PromptFilterTest, WorldsForm) {
  const PromptFilter filter = PromptFilter::World();
  EXPECT_EQ(filter.CheckForm("Where is Lofan?"), std::nullopt);
  EXPECT_EQ(filter.CheckForm("Where is Lofan"), PromptDropReason::kNoQuestionMark);
  EXPECT_EQ(filter.CheckForm("where is Lofan?"), PromptDropReason::kNoCapital);
  EXPECT_EQ(filter.CheckForm("Where Lofan?"), PromptDropReason::kWordCount);
  EXPECT_EQ(filter.CheckForm("A a a a a a a a a a a a a?"), PromptDropReason::kWordCount);
  EXPECT_EQ(filter.CheckForm("A a a a a a a a a a a a?"), std::nullopt);
  EXPECT_EQ(filter.CheckForm("Where: is Lofan?"), PromptDropReason::kColon);
}

TEST(PromptPoolTest, GoesOnFromWhatAnEarlierPoolKept) {
  PromptFilter filter;
  filter.max_repeats = 1;
  PromptPool pool(filter, {}, 10);
  pool.Keep("What is salt?");
  pool.Keep("What is salt?");  // by another filter
  EXPECT_EQ(pool.kept().size(), 2);
  EXPECT_EQ(pool.Offer("What is salt?"), PromptDropReason::kRepeated);
}

TEST(PromptPoolTest, PaperKeepsWhatIsFarFromSeedsAndKeptPrompts) {
  PromptPool pool(PromptFilter::Paper(), {"How do I boil an egg?"}, 100);
  EXPECT_EQ(pool.Offer("How do I boil water?"), PromptDropReason::kTooSimilar);
  EXPECT_EQ(pool.Offer("Where does the sun set in winter?"), std::nullopt);
  EXPECT_EQ(pool.Offer("Where does the sun rise?"), PromptDropReason::kTooSimilar);
  // LCS 2 of 4 and 4 words: F1 is 0.5, which is enough to be dropped.
  EXPECT_EQ(pool.Offer("alpha beta gamma delta!"), std::nullopt);
  EXPECT_EQ(pool.Offer("alpha one beta two!"), PromptDropReason::kTooSimilar);
  EXPECT_THAT(pool.kept(), ElementsAre("Where does the sun set in winter?", "alpha beta gamma delta!"));
}

TEST(PromptPoolTest, WorldKeepsAPromptSixTimesAndBoundsOpenings) {
  PromptPool pool(PromptFilter::World(), {}, 50);  // 22 % are 11
  for (int i = 0; i < 6; ++i) EXPECT_EQ(pool.Offer("Where is Lofan?"), std::nullopt);
  EXPECT_EQ(pool.Offer("Where is Lofan?"), PromptDropReason::kRepeated);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(pool.Offer(absl::StrCat("Where is Bolin", i, "?")), std::nullopt);
  EXPECT_EQ(pool.Offer("Where is Mofil?"), PromptDropReason::kCommonOpening);
  EXPECT_EQ(pool.Offer("What does the bolin eat?"), std::nullopt);
  EXPECT_EQ(pool.kept().size(), 12u);
  EXPECT_FALSE(pool.full());
}

TEST(PromptDropReasonTest, ReasonsHaveDistinctNames) {
  std::set<absl::string_view> names;
  for (const PromptDropReason reason : kPromptDropReasons) names.insert(Name(reason));
  EXPECT_EQ(names.size(), kPromptDropReasons.size());
}

}  // namespace
}  // namespace almost
