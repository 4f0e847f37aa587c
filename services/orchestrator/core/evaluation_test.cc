#include "services/orchestrator/core/evaluation.h"

#include <gtest/gtest.h>

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

ordered_json AnswerOf(double score, double reward, int tokens, double likelihood) {
  return {{"text", "t"},    {"num_tokens", tokens}, {"finished", true},
          {"score", score}, {"reward", reward},     {"likelihood", likelihood}};
}

// Two prompts whose figures can be worked out by hand.
std::vector<EvaluatedPrompt> TwoPrompts() {
  EvaluatedPrompt first = {{"id", 0}, {"prompt", "p"}};
  first["answers"]["L"] = AnswerOf(8, 1.0, 10, -1.0);
  first["answers"]["S"] = AnswerOf(4, 0.5, 20, -2.0);  // reward right, length wrong, likelihood right
  first["answers"]["sft"] = AnswerOf(9, 2.0, 12, -1.0);
  first["candidates"] = {AnswerOf(8, 1.0, 10, -1.0), AnswerOf(2, 3.0, 30, -0.5)};  // reward wrong
  first["verdicts"] = {{"sft/baseline", "win"}};
  EvaluatedPrompt second = {{"id", 1}, {"prompt", "q"}};
  second["answers"]["L"] = AnswerOf(3, 0.1, 10, -3.0);
  second["answers"]["S"] = AnswerOf(6, 0.1, 10, -2.0);  // reward tied, length tied, likelihood right
  second["answers"]["sft"] = AnswerOf(3, 0.0, 5, -1.0);
  second["candidates"] = {AnswerOf(3, 0.1, 10, -3.0), AnswerOf(7, 0.7, 9, -1.0)};
  second["verdicts"] = {{"sft/baseline", "tie"}};
  return {first, second};
}

TEST(EvaluateTest, CountsAsDefined) {
  EvaluationSettings settings;
  settings.baseline = "L";
  settings.grid = {"S", "L"};
  settings.num_pairs = 2;
  settings.best_of = 2;
  settings.bootstrap = 100;
  const ordered_json out = Evaluate(TwoPrompts(), settings);
  EXPECT_DOUBLE_EQ(out["rm_accuracy"]["value"], 0.75);
  EXPECT_DOUBLE_EQ(out["rm_accuracy_length_only"]["value"], 0.25);
  EXPECT_DOUBLE_EQ(out["rm_accuracy_likelihood"]["value"], 1.0);
  EXPECT_DOUBLE_EQ(out["rm_same_configuration"]["rm"]["value"], 0.5);
  const ordered_json& versus = out["rm_versus"];
  EXPECT_DOUBLE_EQ(versus["length_only"]["difference"]["value"], 0.5);
  EXPECT_EQ(versus["length_only"]["pairs"], 1);
  EXPECT_EQ(versus["length_only"]["only_rm_right"],
            1);  // of the other pair the reward model leaves undecided
  EXPECT_EQ(versus["length_only"]["only_other_right"], 0);
  EXPECT_EQ(versus["length_only"]["mcnemar_p"], 1);
  EXPECT_DOUBLE_EQ(versus["likelihood"]["difference"]["value"], -0.25);
  EXPECT_DOUBLE_EQ(out["win_rate_sft"]["value"], 0.75);
  EXPECT_EQ(out["win_rate_sft"]["n"], 2);
  EXPECT_EQ(out["wins"]["win_rate_sft"]["tie"], 1);
  EXPECT_FALSE(out.contains("win_rate_rl"));
  EXPECT_EQ(out["systems"][0]["id"], "S");
  EXPECT_DOUBLE_EQ(out["systems"][0]["score"]["value"], 5);
  EXPECT_DOUBLE_EQ(out["best_of_n"]["curve"][0]["chosen"]["value"], 5.5);
  EXPECT_DOUBLE_EQ(out["best_of_n"]["chosen"]["value"], 4.5);
  EXPECT_DOUBLE_EQ(out["best_of_n"]["random"]["value"], 5);
  EXPECT_DOUBLE_EQ(out["best_of_n"]["oracle"]["value"], 7.5);
  EXPECT_DOUBLE_EQ(out["best_of_n"]["longest"]["value"], 2.5);
  EXPECT_DOUBLE_EQ(out["best_of_n"]["likeliest"]["value"], 4.5);
}

TEST(EvaluateTest, AWinRateComesWithWhatLengthLeavesOfIt) {
  std::vector<EvaluatedPrompt> prompts;
  for (int i = 0; i < 40; ++i) {
    const bool longer = i % 4 != 0, longer_wins = i / 4 % 5 != 0;
    EvaluatedPrompt& prompt = prompts.emplace_back(EvaluatedPrompt{{"id", i}, {"prompt", "p"}});
    prompt["candidates"] = ordered_json::array();
    prompt["answers"]["L"] = AnswerOf(5, 0, 20, -1);
    prompt["answers"]["sft"] = AnswerOf(5, 0, longer ? 30 : 10, -1);
    prompt["verdicts"] = {{"sft/baseline", longer == longer_wins ? "win" : "loss"}};
  }
  EvaluationSettings settings;
  settings.baseline = "L";
  settings.bootstrap = 100;
  const ordered_json out = Evaluate(prompts, settings);
  EXPECT_DOUBLE_EQ(out["win_rate_sft"]["value"], 0.65);
  EXPECT_NEAR(out["length_controlled"]["win_rate_sft"]["value"], 0.5, 1e-9);
}

TEST(EvaluateTest, AnUnparsableVerdictIsNoTie) {
  std::vector<EvaluatedPrompt> prompts = TwoPrompts();
  prompts[1]["verdicts"]["sft/baseline"] = "unparsable";
  const ordered_json out = Evaluate(prompts, {});
  EXPECT_EQ(out["win_rate_sft"]["n"], 1);
  EXPECT_DOUBLE_EQ(out["win_rate_sft"]["value"], 1.0);
  EXPECT_EQ(out["wins"]["win_rate_sft"]["unparsable"], 1);
}

TEST(EvaluateTest, AVerdictThatFollowsThePlaceIsCounted) {
  std::vector<EvaluatedPrompt> prompts = TwoPrompts();
  prompts[0]["orders"] = {{"sft/baseline", {"win", "win"}}};
  prompts[1]["orders"] = {{"sft/baseline", {"loss", "win"}}};
  const ordered_json out = Evaluate(prompts, {});
  EXPECT_EQ(out["position"]["win_rate_sft"],
            (ordered_json{{"first", 0}, {"second", 1}, {"same", 1}, {"p", 1.0}}));
  EXPECT_FALSE(Evaluate(TwoPrompts(), {}).contains("position")) << "of a judge without orders";
}

// Scores are on the judge's own scale.
TEST(EvaluateTest, BestOfNOfScoresBelowZero) {
  std::vector<EvaluatedPrompt> prompts = TwoPrompts();
  for (EvaluatedPrompt& prompt : prompts) {
    for (ordered_json& candidate : prompt["candidates"]) {
      candidate["score"] = candidate["score"].get<double>() - 10;
    }
  }
  EvaluationSettings settings;
  settings.best_of = 2;
  const ordered_json out = Evaluate(prompts, settings);
  EXPECT_DOUBLE_EQ(out["best_of_n"]["oracle"]["value"], -2.5);
  EXPECT_DOUBLE_EQ(out["best_of_n"]["chosen"]["value"], -5.5);
}

// A judge may score some answers and not others: those whose verdict it could not read.
TEST(EvaluateTest, BestOfNLeavesOutAPromptOfWhichACandidateHasNoScore) {
  std::vector<EvaluatedPrompt> prompts = TwoPrompts();
  prompts[0]["candidates"][1].erase("score");
  prompts[1]["candidates"][1].erase("likelihood");
  EvaluationSettings settings;
  settings.best_of = 2;
  const ordered_json out = Evaluate(prompts, settings);
  EXPECT_EQ(out["best_of_n"]["curve"][0]["chosen"]["n"], 2);
  EXPECT_EQ(out["best_of_n"]["chosen"]["n"], 1);
  EXPECT_DOUBLE_EQ(out["best_of_n"]["chosen"]["value"], 7);
  EXPECT_FALSE(out["best_of_n"].contains("likeliest"));
}

TEST(EvaluateTest, WhatAJudgeWithoutScoresCannotSayIsLeftOut) {
  std::vector<EvaluatedPrompt> prompts = TwoPrompts();
  for (EvaluatedPrompt& prompt : prompts) {
    for (auto& [system, answer] : prompt["answers"].items()) answer.erase("score");
    for (ordered_json& candidate : prompt["candidates"]) candidate.erase("score");
  }
  EvaluationSettings settings;
  settings.num_pairs = 2;
  settings.best_of = 2;
  const ordered_json out = Evaluate(prompts, settings);
  EXPECT_FALSE(out.contains("rm_accuracy"));
  EXPECT_FALSE(out.contains("rm_same_configuration"));
  EXPECT_FALSE(out.contains("best_of_n"));
  EXPECT_TRUE(out.contains("win_rate_sft"));
}

}  // namespace
}  // namespace almost::orchestrator
