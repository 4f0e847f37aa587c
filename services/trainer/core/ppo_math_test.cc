#include "services/trainer/core/ppo_math.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/base/random.h"

namespace almost::trainer {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using testing::Pointwise;

// The estimators' means under the policy, by enumeration over a small vocabulary.
TEST(PpoMath, K1AndK3AreUnbiasedAndK3IsNeverNegative) {
  const double policy[] = {0.5, 0.3, 0.2}, reference[] = {0.2, 0.2, 0.6};
  double kl = 0, k1 = 0, k2 = 0, k3 = 0;
  for (int i = 0; i < 3; ++i) {
    const double p = std::log(policy[i]), q = std::log(reference[i]);
    kl += policy[i] * (p - q);
    k1 += policy[i] * KlK1(p, q);
    k2 += policy[i] * KlK2(p, q);
    k3 += policy[i] * KlK3(p, q);
    EXPECT_GE(KlK3(p, q), 0);
  }
  EXPECT_NEAR(k1, kl, 1e-12);
  EXPECT_NEAR(k3, kl, 1e-12);
  EXPECT_GT(std::abs(k2 - kl), 1e-3);  // biased
}

TEST(PpoMath, ScoreLandsOnTheLastGeneratedToken) {
  const std::vector<double> logprobs = {-1.0, -2.0, -0.5}, reference = {-1.5, -1.0, -0.5};
  EXPECT_THAT(TokenRewards(logprobs, reference, 0.1, 2.0), Pointwise(DoubleNear(1e-12), {-0.05, 0.1, 2.0}));
}

TEST(PpoMath, WithoutAPenaltyOnlyTheLastTokenIsRewarded) {
  const std::vector<double> logprobs = {-1.0, -2.0}, reference = {-9.0, -1.0};
  EXPECT_THAT(TokenRewards(logprobs, reference, 0.0, 1.0), ElementsAre(0.0, 1.0));
}

// Equation 16 written out: the discounted sum of temporal differences.
TEST(PpoMath, AdvantagesAreTheDiscountedSumOfDifferences) {
  RandomStream random(3);
  std::vector<double> rewards, values;
  for (int t = 0; t < 9; ++t) {
    rewards.push_back(random.Normal());
    values.push_back(random.Normal());
  }
  const double gamma = 0.97, lambda = 0.9;
  const Advantages out = EstimateAdvantages(rewards, values, gamma, lambda);
  for (size_t t = 0; t < rewards.size(); ++t) {
    double wanted = 0;
    for (size_t k = t; k < rewards.size(); ++k) {
      const double next = k + 1 < values.size() ? values[k + 1] : 0.0;  // zero past the end
      wanted +=
          std::pow(gamma * lambda, static_cast<double>(k - t)) * (rewards[k] + gamma * next - values[k]);
    }
    EXPECT_NEAR(out.advantages[t], wanted, 1e-12) << t;
    EXPECT_NEAR(out.returns[t], wanted + values[t], 1e-12) << t;
  }
}

TEST(PpoMath, LambdaOneGivesTheRewardToCome) {
  const std::vector<double> rewards = {1, 2, 3}, values = {10, 20, 30};
  EXPECT_THAT(EstimateAdvantages(rewards, values, 1.0, 1.0).returns,
              Pointwise(DoubleNear(1e-12), {6.0, 5.0, 3.0}));
}

TEST(PpoMath, ARewardIsTheNormalisedScoreWithinItsClipLessItsLength) {
  PpoSpec spec;
  EXPECT_EQ(RolloutReward(spec, 7.0, 0, 0, true, 10), 7.0);
  EXPECT_EQ(RolloutReward(spec, 7.0, 1.0, 2.0, true, 10), 3.0);
  spec.reward_clip = 2.5;
  EXPECT_EQ(RolloutReward(spec, 7.0, 1.0, 2.0, true, 10), 2.5);
  EXPECT_EQ(RolloutReward(spec, -7.0, 1.0, 2.0, true, 10), -2.5);
  spec.length_penalty = 0.125;
  EXPECT_EQ(RolloutReward(spec, 7.0, 1.0, 2.0, true, 10), 2.5 - 1.25);
}

TEST(PpoMath, AnAnswerThatDidNotStopGetsItsOwnRewardWhateverItScored) {
  PpoSpec spec{.missing_stop_reward = -3.0, .reward_clip = 1.0};
  EXPECT_EQ(RolloutReward(spec, 100.0, 0, 0, /*stopped=*/false, 10), -3.0);
  EXPECT_EQ(RolloutReward(spec, 0.5, 0, 0, /*stopped=*/true, 10), 0.5);
  spec.missing_stop_reward.reset();
  EXPECT_EQ(RolloutReward(spec, 0.5, 0, 0, /*stopped=*/false, 10), 0.5);
}

TEST(PpoMath, AGroupsAdvantagesCompareItsAnswers) {
  const std::vector<double> rewards = {1, 2, 6}, none = {0, 0, 0}, kls = {0.5, 0, 1};
  EXPECT_THAT(GroupAdvantages(rewards, none, 0.1, false), Pointwise(DoubleNear(1e-12), {-2.0, -1.0, 3.0}));
  const double deviation = std::sqrt(14.0 / 3);
  EXPECT_THAT(GroupAdvantages(rewards, none, 0.1, true),
              Pointwise(DoubleNear(1e-7), {-2 / deviation, -1 / deviation, 3 / deviation}));
  // The KL is not scaled: its coefficient means the same whatever the group's deviation.
  EXPECT_THAT(GroupAdvantages(rewards, kls, 0.1, false), Pointwise(DoubleNear(1e-12), {-2.0, -0.95, 2.95}));
  EXPECT_THAT(GroupAdvantages(std::vector<double>{4, 4, 4}, kls, 0.1, true),
              Pointwise(DoubleNear(1e-7), {0.0, 0.05, -0.05}));
  EXPECT_THAT(GroupAdvantages(std::vector<double>{4, 4, 4}, none, 0.1, true), ElementsAre(0.0, 0.0, 0.0));
}

TEST(PpoMath, WhiteningIsOverTheWholeBatchAndNotByRollout) {
  std::vector<std::vector<double>> rollouts = {{1, 2, 3, 4}, {10}, {}};
  const std::vector<std::vector<double>> before = rollouts;
  Whiten(rollouts);
  double sum = 0, squares = 0;
  for (const auto& rollout : rollouts) {
    for (const double value : rollout) sum += value, squares += value * value;
  }
  EXPECT_NEAR(sum, 0, 1e-12);
  EXPECT_NEAR(squares / 5, 1, 1e-6);
  // One affine map for all.
  const double slope = rollouts[0][1] - rollouts[0][0];
  EXPECT_NEAR(rollouts[1][0] - rollouts[0][0], 9 * slope, 1e-12);
}

TEST(PpoMath, WhiteningEqualAdvantagesGivesZeros) {
  std::vector<std::vector<double>> rollouts = {{2, 2}, {2}};
  Whiten(rollouts);
  EXPECT_THAT(rollouts[0], ElementsAre(0.0, 0.0));
}

TEST(PpoMath, KlControlClipsItsErrorAndRestsAtTheTarget) {
  EXPECT_DOUBLE_EQ(AdaptKlCoefficient(0.1, 6.0, 6.0), 0.1);
  EXPECT_DOUBLE_EQ(AdaptKlCoefficient(0.1, 600.0, 6.0), 0.1 * 1.02);
  EXPECT_DOUBLE_EQ(AdaptKlCoefficient(0.1, 0.0, 6.0), 0.1 * 0.98);
  EXPECT_NEAR(AdaptKlCoefficient(0.1, 6.6, 6.0), 0.1 * 1.01, 1e-12);
}

TEST(PpoMath, ExplainedVarianceIsOneForAPerfectValueAndZeroForAConstant) {
  const std::vector<double> returns = {1, 2, 4}, constant = {5, 5, 5};
  EXPECT_DOUBLE_EQ(ExplainedVariance(returns, returns), 1.0);
  EXPECT_DOUBLE_EQ(ExplainedVariance(constant, returns), 0.0);
  EXPECT_DOUBLE_EQ(ExplainedVariance(returns, constant), 0.0);
}

TEST(PpoMath, CorrelationIsPearsons) {
  const std::vector<double> x = {1, 2, 3}, up = {2, 4, 6}, down = {3, 2, 1}, flat = {1, 1, 1};
  EXPECT_NEAR(Correlation(x, up), 1.0, 1e-12);
  EXPECT_NEAR(Correlation(x, down), -1.0, 1e-12);
  EXPECT_EQ(Correlation(x, flat), 0.0);
}

}  // namespace
}  // namespace almost::trainer
