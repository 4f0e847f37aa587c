#include "services/simulator/core/prompt_round.h"

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/world/question.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace almost::simulator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<std::string> Prompts(absl::string_view stem, int count) {
  std::vector<std::string> prompts;
  for (int i = 0; i < count; ++i) prompts.push_back(absl::StrCat(stem, " ", i, "?"));
  return prompts;
}

PromptRoundOptions Options() {
  return {.instruction = "Ask.",
          .seeds = Prompts("Seed", 12),
          .pool = Prompts("Pooled", 30),
          .num_attempts = 4,
          .num_wanted = 100,
          .num_shots = 10,
          .filter = PromptFilter::World(),
          .seed = 7};
}

std::unique_ptr<PromptRound> Round(const PromptRoundOptions& options) {
  auto round = PromptRound::Create(options);
  EXPECT_TRUE(round.ok()) << round.status();
  return *std::move(round);
}

std::vector<std::string> Reasons(const std::vector<MinedPrompt>& mined) {
  std::vector<std::string> reasons;
  for (const MinedPrompt& prompt : mined) reasons.push_back(prompt.drop_reason);
  return reasons;
}

TEST(PromptRoundTest, AsksWithShotsOfItsOwnDrawnFromSeedsAndPool) {
  PromptRoundOptions options = Options();
  EXPECT_THAT(Round(options)->Request(0).text, Not(HasSubstr("Pooled")));
  options.draw_from_pool = true;
  const auto round = Round(options);
  std::set<std::string> texts;
  std::set<uint64_t> seeds;
  for (int attempt = 0; attempt < options.num_attempts; ++attempt) {
    const CompletionRequest request = round->Request(attempt);
    const std::vector<std::string> lines = absl::StrSplit(request.text, '\n');
    ASSERT_EQ(lines.size(), 13);  // instruction, blank, ten shots, the last "Query:"
    EXPECT_EQ(lines.front(), "Ask.");
    EXPECT_EQ(lines.back(), "Query:");
    EXPECT_EQ(std::set<std::string>(lines.begin() + 2, lines.end()).size(), 11);
    texts.insert(request.text);
    seeds.insert(request.seed);
  }
  EXPECT_EQ(texts.size(), 4);
  EXPECT_EQ(seeds.size(), 4);
  EXPECT_THAT(absl::StrJoin(texts, ""), HasSubstr("Pooled"));
}

TEST(PromptRoundTest, RequestsDependOnSeedRoundAndAttemptAlone) {
  PromptRoundOptions options = Options();
  const CompletionRequest request = Round(options)->Request(2);
  options.num_attempts = 50;
  EXPECT_EQ(Round(options)->Request(2).text, request.text);
  EXPECT_EQ(Round(options)->Request(2).seed, request.seed);
  options.round = 1;
  EXPECT_NE(Round(options)->Request(2).text, request.text);
  EXPECT_NE(Round(options)->Request(2).seed, request.seed);
  options.round = 0;
  options.seed = 8;
  EXPECT_NE(Round(options)->Request(2).text, request.text);
  EXPECT_NE(Round(options)->Request(2).seed, request.seed);
}

TEST(PromptRoundTest, AcceptsInOrderAndCountsWhatEarlierRoundsKept) {
  PromptRoundOptions options = Options();
  options.filter.max_repeats = 2;
  options.pool = {"What is salt?"};
  const auto round = Round(options);
  const Completion completion = {.text = " What is salt?\nQuery: Salt\nQuery: cut off", .num_tokens = 9};
  const std::vector<MinedPrompt> first = round->Accept(completion);
  ASSERT_EQ(first.size(), 2);
  EXPECT_EQ(first[0].text, "What is salt?");
  EXPECT_EQ(first[0].num_tokens, 9);
  EXPECT_EQ(first[1].num_tokens, 0);
  EXPECT_THAT(Reasons(first), ElementsAre("", "no_question_mark"));
  EXPECT_THAT(Reasons(round->Accept(completion)), ElementsAre("repeated", "no_question_mark"));
}

TEST(PromptRoundTest, SaysWhenAnAttemptBroughtNothing) {
  const auto round = Round(Options());
  const std::vector<MinedPrompt> empty = round->Accept(Completion{.text = "no line", .num_tokens = 3});
  EXPECT_THAT(Reasons(empty), ElementsAre("empty"));
  EXPECT_EQ(empty[0].num_tokens, 3);
  EXPECT_THAT(Reasons(round->Accept(std::nullopt)), ElementsAre("too_long"));
}

TEST(PromptRoundTest, DropsHeldOutQuestionsWhereAsked) {
  PromptRoundOptions options = Options();
  options.filter.max_opening_share = 0;
  std::string text;
  int held_out = 0;
  for (const world::Question& question : world::KnownQuestions(world::World::Tiny())) {
    absl::StrAppend(&text, "Query: ", world::QuestionText(world::World::Tiny(), question), "\n");
    held_out += world::IsHeldOut(world::World::Tiny(), world::QuestionText(world::World::Tiny(), question));
  }
  const auto dropped = [&] {
    int count = 0;
    for (const MinedPrompt& prompt : Round(options)->Accept(Completion{.text = text})) {
      if (prompt.drop_reason.empty()) continue;
      EXPECT_EQ(prompt.drop_reason, "held_out");
      EXPECT_TRUE(world::IsHeldOut(world::World::Tiny(), prompt.text));
      ++count;
    }
    return count;
  };
  EXPECT_EQ(dropped(), 0);
  options.held_out_of = &world::World::Tiny();
  EXPECT_EQ(dropped(), held_out);
}

TEST(PromptRoundTest, RefusesOptionsByField) {
  const auto refused = [](auto change) {
    PromptRoundOptions options = Options();
    change(options);
    const absl::Status status = PromptRound::Create(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(refused([](auto& o) { o.num_shots = 13; }), HasSubstr("num_shots"));
  EXPECT_THAT(refused([](auto& o) { o.num_shots = 0; }), HasSubstr("num_shots"));
  EXPECT_THAT(refused([](auto& o) { o.num_attempts = 0; }), HasSubstr("num_attempts"));
  EXPECT_THAT(refused([](auto& o) { o.num_wanted = 0; }), HasSubstr("num_wanted"));
}

}  // namespace
}  // namespace almost::simulator
