#include "services/simulator/core/dialogue.h"

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "common/world/question.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace almost::simulator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using WaitsFor = Dialogue::WaitsFor;

constexpr char kFile[] =
    "\n\n-----\n\nHuman: q1\n\nAssistant: a1\n\n-----\n\nHuman: q2\n\nAssistant: a2\n\n-----\n";

DialogueOptions Options() {
  return {.format = PromptFormat::World(),
          .demonstrations = {*Demonstrations::Parse(kFile)},
          .shots = 1,
          .num_candidates = 3,
          .max_turns = 2,
          .response_filter = ResponseFilter::World(),
          .user_filter = PromptFilter::World(),
          .seed = 5};
}

std::vector<Completion> Answers(const std::vector<std::string>& texts) {
  std::vector<Completion> answers;
  for (const std::string& text : texts) answers.push_back({.text = text, .finished = true, .num_tokens = 4});
  return answers;
}

std::vector<std::optional<RewardScore>> Scores(const std::vector<double>& raw) {
  std::vector<std::optional<RewardScore>> scores;
  for (const double score : raw) scores.push_back(RewardScore{.raw = score, .normalized = score});
  return scores;
}

std::vector<std::string> Contents(const Dialogue& dialogue) {
  std::vector<std::string> contents;
  for (const Message& message : dialogue.messages()) contents.push_back(message.content);
  return contents;
}

TEST(DialogueTest, KeepsTheBestCandidateOfEachTurnAndEndsAfterTheLast) {
  const DialogueOptions options = Options();
  Dialogue dialogue(options, 0, "What is 1 plus 1?");
  ASSERT_EQ(dialogue.waits_for(), WaitsFor::kAnswers);
  EXPECT_EQ(dialogue.Request().text, "Human: q1\n\nAssistant: a1\n\nHuman: What is 1 plus 1?\n\nAssistant:");
  EXPECT_EQ(dialogue.Request().num_candidates, 3);
  const uint64_t seed = dialogue.Request().seed;
  dialogue.TakeAnswers(Answers({" One.", " Two.", " Three."}));
  EXPECT_EQ(dialogue.turns().back().seed, seed);
  ASSERT_EQ(dialogue.waits_for(), WaitsFor::kScores);
  dialogue.TakeScores(Scores({0, 2, 1}));
  ASSERT_EQ(dialogue.waits_for(), WaitsFor::kQuestion);
  EXPECT_EQ(dialogue.Request().text,
            "Human: q1\n\nAssistant: a1\n\nHuman: What is 1 plus 1?\n\nAssistant: Two.\n\nHuman:");
  EXPECT_EQ(dialogue.Request().num_candidates, 1);
  dialogue.TakeQuestion(Completion{.text = " Where is Tiben?", .finished = true});
  ASSERT_EQ(dialogue.waits_for(), WaitsFor::kAnswers);
  EXPECT_TRUE(absl::EndsWith(dialogue.Request().text, " Two.\n\nHuman: Where is Tiben?\n\nAssistant:"));
  dialogue.TakeAnswers(Answers({" West.", " East.", " West."}));
  dialogue.TakeScores(Scores({3, 3, 3}));
  EXPECT_EQ(dialogue.waits_for(), WaitsFor::kNothing);
  EXPECT_EQ(dialogue.drop_reason(), "");
  EXPECT_THAT(Contents(dialogue), ElementsAre("What is 1 plus 1?", "Two.", "Where is Tiben?", "West."));
  ASSERT_EQ(dialogue.turns().size(), 2);
  EXPECT_EQ(dialogue.turns()[0].chosen, 1);
  EXPECT_EQ(dialogue.turns()[1].chosen, 0);  // the first of equals
}

TEST(DialogueTest, PassesOverUnsuitableCandidatesHoweverGoodTheirScore) {
  const DialogueOptions options = Options();
  Dialogue dialogue(options, 0, "Why?");
  std::vector<Completion> answers = Answers({" Best.", " Long.", " Fair."});
  answers[0].finished = false;
  dialogue.TakeAnswers(answers);
  dialogue.TakeScores({RewardScore{.raw = 9}, std::nullopt, RewardScore{.raw = -9}});
  const AssistantTurn& turn = dialogue.turns()[0];
  EXPECT_EQ(turn.chosen, 2);
  EXPECT_EQ(turn.candidates[0].bad_reason, "unfinished");
  EXPECT_EQ(turn.candidates[1].bad_reason, "too_long");
}

TEST(DialogueTest, ACandidateWithoutAScoreIsTooLongWhateverElseItIs) {
  const DialogueOptions options = Options();
  Dialogue dialogue(options, 0, "Why?");
  std::vector<Completion> answers = Answers({" Best.", " Long", " Fair."});
  answers[1].finished = false;
  dialogue.TakeAnswers(answers);
  dialogue.TakeScores({RewardScore{.raw = 9}, std::nullopt, RewardScore{.raw = -9}});
  EXPECT_EQ(dialogue.turns()[0].candidates[1].bad_reason, "too_long");
}

TEST(DialogueTest, IsDroppedWhenItsFirstQuestionCannotBeAnswered) {
  const DialogueOptions options = Options();
  Dialogue unsuitable(options, 0, "Why?");
  unsuitable.TakeAnswers(Answers({"", "", ""}));
  unsuitable.TakeScores(Scores({1, 2, 3}));
  EXPECT_EQ(unsuitable.waits_for(), WaitsFor::kNothing);
  EXPECT_EQ(unsuitable.drop_reason(), "no_suitable_answer");
  EXPECT_EQ(unsuitable.turns()[0].chosen, -1);
  Dialogue too_long(options, 0, "Why?");
  too_long.TakeAnswers(std::nullopt);
  EXPECT_EQ(too_long.waits_for(), WaitsFor::kNothing);
  EXPECT_EQ(too_long.drop_reason(), "too_long");
}

TEST(DialogueTest, EndsBeforeALaterTurnThatFails) {
  DialogueOptions options = Options();
  options.held_out_of = &world::World::Tiny();
  std::string held_out, allowed;
  for (const world::Question& question : world::KnownQuestions(world::World::Tiny())) {
    const std::string text = world::QuestionText(world::World::Tiny(), question);
    (world::IsHeldOut(world::World::Tiny(), text) ? held_out : allowed) = text;
  }
  const auto asked = [&](const std::optional<Completion>& question) {
    Dialogue dialogue(options, 0, "Why?");
    dialogue.TakeAnswers(Answers({" So.", " So.", " So."}));
    dialogue.TakeScores(Scores({1, 1, 1}));
    dialogue.TakeQuestion(question);
    return dialogue;
  };
  for (const std::optional<Completion>& question :
       {std::optional<Completion>(), std::optional<Completion>({.text = allowed, .finished = false}),
        std::optional<Completion>({.text = "", .finished = true}),
        std::optional<Completion>({.text = "no question", .finished = true}),
        std::optional<Completion>({.text = held_out, .finished = true})}) {
    const Dialogue dialogue = asked(question);
    EXPECT_EQ(dialogue.waits_for(), WaitsFor::kNothing);
    EXPECT_EQ(dialogue.drop_reason(), "");
    EXPECT_THAT(Contents(dialogue), ElementsAre("Why?", "So."));
  }
  Dialogue dialogue = asked(Completion{.text = allowed, .finished = true});
  ASSERT_EQ(dialogue.waits_for(), WaitsFor::kAnswers);
  dialogue.TakeAnswers(Answers({"", "", ""}));
  dialogue.TakeScores(Scores({1, 1, 1}));
  EXPECT_EQ(dialogue.drop_reason(), "");
  EXPECT_THAT(Contents(dialogue), ElementsAre("Why?", "So."));
  EXPECT_EQ(dialogue.turns().size(), 2);
}

TEST(DialogueTest, SeedsDependOnRunPromptAndTurn) {
  DialogueOptions options = Options();
  const auto seed = [&](int64_t prompt_id) { return Dialogue(options, prompt_id, "Why?").Request().seed; };
  const uint64_t first = seed(0);
  EXPECT_EQ(seed(0), first);
  EXPECT_NE(seed(1), first);
  Dialogue dialogue(options, 0, "Why?");
  dialogue.TakeAnswers(Answers({" So.", " So.", " So."}));
  dialogue.TakeScores(Scores({1, 1, 1}));
  EXPECT_NE(dialogue.Request().seed, first);
  options.seed = 6;
  EXPECT_NE(seed(0), first);
}

TEST(DialogueTest, TakesTheDemonstrationFileOfItsPrompt) {
  DialogueOptions options = Options();
  options.demonstrations.push_back(
      *Demonstrations::Parse("\n\n-----\n\nHuman: q3\n\nAssistant: a3\n\n-----\n"));
  EXPECT_THAT(Dialogue(options, 4, "Why?").Request().text, HasSubstr("q1"));
  EXPECT_THAT(Dialogue(options, 5, "Why?").Request().text, HasSubstr("q3"));
  options.shots = 0;
  options.demonstrations.clear();
  options.format = PromptFormat::Paper();
  EXPECT_EQ(Dialogue(options, 0, "Why?").Request().text, "\n\nHuman: Why?\n\nAssistant: ");
}

TEST(DialogueOptionsTest, AreRefusedByField) {
  const auto refused = [](auto change) {
    DialogueOptions options = Options();
    change(options);
    return options.Validate();
  };
  EXPECT_TRUE(Options().Validate().ok());
  EXPECT_EQ(refused([](auto& o) { o.num_candidates = 0; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.max_turns = 0; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.shots = -1; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.shots = 3; }).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refused([](auto& o) { o.demonstrations.clear(); }).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace almost::simulator
