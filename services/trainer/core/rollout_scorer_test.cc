#include "services/trainer/core/rollout_scorer.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "absl/synchronization/notification.h"

namespace almost::trainer {
namespace {

double Length(const RewardInput& input) { return static_cast<double>(input.response.size()); }

std::vector<double> Lengths(std::span<const RewardInput> inputs) {
  std::vector<double> lengths;
  for (const RewardInput& input : inputs) lengths.push_back(Length(input));
  return lengths;
}

TEST(RolloutScorer, AsksWhileOthersAreStillDrawnAndKeepsTheirOrder) {
  absl::Notification asked;
  const RewardFunction reward = [&](std::span<const RewardInput> inputs) {
    if (!asked.HasBeenNotified()) asked.Notify();
    return Lengths(inputs);
  };
  const RewardFunction guard = [](std::span<const RewardInput> inputs) {
    std::vector<double> scores = Lengths(inputs);
    for (double& score : scores) score = -score;
    return scores;
  };
  RolloutScorer scorer(reward, guard, 3);
  scorer.Add(2, {"p", "abc"});
  asked.WaitForNotification();  // the other two are not there yet
  scorer.Add(0, {"p", "a"});
  scorer.Add(1, {"p", "ab"});
  const auto scores = scorer.Finish();
  ASSERT_TRUE(scores.ok()) << scores.status();
  EXPECT_EQ(scores->rewards, (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(scores->guards, (std::vector<double>{-1, -2, -3}));
}

TEST(RolloutScorer, FailsWithTheFirstErrorAndAsksNoMore) {
  int calls = 0;
  absl::Notification failed;
  const RewardFunction reward = [&](std::span<const RewardInput>) -> absl::StatusOr<std::vector<double>> {
    ++calls;
    failed.Notify();
    return absl::UnavailableError("gone");
  };
  RolloutScorer scorer(reward, {}, 2);
  scorer.Add(0, {"p", "a"});
  failed.WaitForNotification();
  scorer.Add(1, {"p", "b"});
  EXPECT_EQ(scorer.Finish().status(), absl::UnavailableError("reward: gone"));
  EXPECT_EQ(calls, 1);
}

TEST(RolloutScorer, WhatIsNoFiniteScoreForEachIsAnError) {
  const RewardFunction few = [](std::span<const RewardInput>) { return std::vector<double>(); };
  const RewardFunction infinite = [](std::span<const RewardInput> inputs) {
    return std::vector<double>(inputs.size(), std::numeric_limits<double>::infinity());
  };
  for (const RewardFunction& reward : {few, infinite}) {
    RolloutScorer scorer(reward, {}, 1);
    scorer.Add(0, {"p", "a"});
    EXPECT_EQ(scorer.Finish().status().code(), absl::StatusCode::kInternal);
  }
}

TEST(RolloutScorer, EndsWithoutAskingForWhatIsLeft) {
  const RewardFunction reward = [](std::span<const RewardInput> inputs) { return Lengths(inputs); };
  RolloutScorer scorer(reward, {}, 1);
}

}  // namespace
}  // namespace almost::trainer
