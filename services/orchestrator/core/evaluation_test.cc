#include "services/orchestrator/core/evaluation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "common/base/random.h"
#include "services/orchestrator/core/statistics.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

TEST(BootstrapRatioTest, AgreesWithTheNormalIntervalOfAMean) {
  // 400 coins: standard error 0.025 at most, so the 95 % interval is value ± 0.049; resampling noise is under
  // 0.006.
  RandomStream random(5);
  std::vector<Share> units;
  double sum = 0;
  for (int i = 0; i < 400; ++i) {
    units.push_back({random.Chance(0.5) ? 1.0 : 0.0, 1});
    sum += units.back().part;
  }
  const Estimate estimate = BootstrapRatio(units, 4000, 1);
  const double p = sum / 400, half = 1.96 * std::sqrt(p * (1 - p) / 400);
  EXPECT_DOUBLE_EQ(estimate.value, p);
  EXPECT_NEAR(estimate.low, p - half, 0.008);
  EXPECT_NEAR(estimate.high, p + half, 0.008);
  EXPECT_EQ(estimate.n, 400);
  EXPECT_EQ(BootstrapRatio(units, 4000, 1).low, estimate.low) << "the same seed gives the same interval";
}

TEST(BootstrapRatioTest, UnitsWithoutAnythingDoNotCount) {
  const std::vector<Share> units = {{2, 3}, {0, 0}, {1, 1}};
  const Estimate estimate = BootstrapRatio(units, 0, 1);
  EXPECT_DOUBLE_EQ(estimate.value, 0.75);
  EXPECT_EQ(estimate.n, 2);
  EXPECT_EQ(BootstrapRatio({}, 100, 1).n, 0);
}

TEST(CorrelationTest, KnowsItsExtremes) {
  const std::vector<double> x = {1, 2, 3, 4}, up = {2, 4, 6, 8}, down = {4, 3, 2, 1}, flat = {5, 5, 5, 5};
  EXPECT_DOUBLE_EQ(Correlation(x, up), 1);
  EXPECT_DOUBLE_EQ(Correlation(x, down), -1);
  EXPECT_EQ(Correlation(x, flat), 0);
}

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
}

TEST(EvaluateTest, AnUnparsableVerdictIsNoTie) {
  std::vector<EvaluatedPrompt> prompts = TwoPrompts();
  prompts[1]["verdicts"]["sft/baseline"] = "unparsable";
  const ordered_json out = Evaluate(prompts, {});
  EXPECT_EQ(out["win_rate_sft"]["n"], 1);
  EXPECT_DOUBLE_EQ(out["win_rate_sft"]["value"], 1.0);
  EXPECT_EQ(out["wins"]["win_rate_sft"]["unparsable"], 1);
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
  EXPECT_FALSE(out.contains("best_of_n"));
  EXPECT_TRUE(out.contains("win_rate_sft"));
}

}  // namespace
}  // namespace almost::orchestrator
