#include "common/evaluation/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "common/base/random.h"

namespace almost {
namespace {

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
  // Equal values whose mean is rounded.
  EXPECT_EQ(Correlation(std::vector<double>(6, 0.1), std::vector<double>(6, 7.0)), 0);
}

TEST(ExactProportionTest, KnowsItsEnds) {
  const Estimate none = ExactProportion(0, 10), all = ExactProportion(10, 10);
  EXPECT_EQ(none.low, 0);
  EXPECT_NEAR(none.high, 1 - std::pow(0.025, 0.1), 1e-12);  // the closed form at no success
  EXPECT_EQ(all.high, 1);
  EXPECT_NEAR(all.low, std::pow(0.025, 0.1), 1e-12);
  EXPECT_EQ(ExactProportion(0, 0).high, 1);
}

TEST(SignTestTest, AddsUpBinomialCoefficients) {
  EXPECT_NEAR(SignTest(1, 5), 2 * (1 + 5) / 32.0, 1e-15);
  EXPECT_NEAR(SignTest(8, 10), 2 * (1 + 10 + 45) / 1024.0, 1e-15);
  EXPECT_NEAR(SignTest(0, 60), 2 * std::pow(0.5, 60), 1e-30);
  EXPECT_EQ(SignTest(5, 10), 1);
  EXPECT_EQ(SignTest(0, 0), 1);
}

TEST(PairedBootstrapTest, IsNarrowerThanTwoIntervalsWhereBothSidesGoTogether) {
  RandomStream random(2);
  std::vector<Share> a, b;
  for (int i = 0; i < 300; ++i) {
    const double hard = random.Unit();
    a.push_back({hard + 0.1, 1});
    b.push_back({hard, 1});
  }
  b[7].whole = 0;  // was not measured
  const Estimate difference = PairedBootstrap(a, b, 1000, 1);
  EXPECT_NEAR(difference.value, 0.1, 1e-12);
  EXPECT_NEAR(difference.low, 0.1, 1e-9);
  EXPECT_EQ(difference.n, 299);
  EXPECT_GT(BootstrapRatio(a, 1000, 1).high - BootstrapRatio(a, 1000, 1).low, 0.05);
}

TEST(LengthControlledWinRateTest, TakesOutWhatLengthExplains) {
  // Wins follow length alone: the longer answer wins three times in four, and the first is longer mostly.
  std::vector<LengthOutcome> outcomes;
  double raw = 0;
  for (int i = 0; i < 400; ++i) {
    const bool longer = i % 5 != 0;
    const bool longer_wins = i / 5 % 4 != 0;
    outcomes.push_back({longer == longer_wins ? 1.0 : 0.0, longer ? 50.0 : -50.0});
    raw += outcomes.back().win / 400;
  }
  const auto fit = LengthControlledWinRate(outcomes);
  ASSERT_TRUE(fit.has_value());
  EXPECT_NEAR(raw, 0.65, 1e-12);
  EXPECT_NEAR(fit->win_rate.value, 0.5, 1e-9);
  EXPECT_GT(fit->slope, 0);
  EXPECT_LT(fit->win_rate.low, 0.5);
  EXPECT_GT(fit->win_rate.high, 0.5);
}

TEST(LengthControlledWinRateTest, HasNothingToSayWithoutAFiniteFit) {
  EXPECT_FALSE(LengthControlledWinRate({}).has_value());
  const std::vector<LengthOutcome> equal = {{1, 3}, {0, 3}, {1, 3}};
  EXPECT_FALSE(LengthControlledWinRate(equal).has_value());
  const std::vector<LengthOutcome> always = {{1, 3}, {1, -2}, {1, 0}};
  EXPECT_FALSE(LengthControlledWinRate(always).has_value());
}

TEST(PositionCountsTest, TellsPlaceFromMerit) {
  PositionCounts counts;
  counts.Add("win", "win");
  counts.Add("tie", "tie");
  counts.Add("win", "loss");
  counts.Add("win", "loss");
  counts.Add("loss", "win");
  counts.Add("win", "tie");
  counts.Add("unparsable", "unparsable");
  EXPECT_EQ(counts.same, 2);
  EXPECT_EQ(counts.first, 2);
  EXPECT_EQ(counts.second, 1);
  EXPECT_EQ(counts.p_value(), SignTest(2, 3));
}

TEST(MeanOfTest, StandardErrorIsThatOfTheMean) {
  const std::vector<double> values = {1, 2, 3, 6};
  EXPECT_DOUBLE_EQ(MeanOf(values).mean, 3);
  EXPECT_DOUBLE_EQ(MeanOf(values).standard_error, std::sqrt(14 / 3.0 / 4));
  EXPECT_EQ(MeanOf(std::vector<double>{5}).standard_error, 0);
}

}  // namespace
}  // namespace almost
