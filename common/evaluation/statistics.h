#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/strings/string_view.h"

// Statistics of evaluations. Pure; every random number comes from the seed that is passed. What has a closed
// form agrees with scipy and statsmodels to 1e-9 (tests/parity/check_statistics.py).
namespace almost {

// A figure and its 95 % interval; `n` units (prompts) stand behind it.
struct Estimate {
  double value = 0;
  double low = 0;
  double high = 0;
  int64_t n = 0;
};

// A unit's part of a ratio: for a mean, its value and 1; for accuracy over a prompt's pairs, how many are
// right and how many there are.
struct Share {
  double part = 0;
  double whole = 1;
};

// sum(part) / sum(whole) with the percentile interval of `resamples` bootstrap samples of whole units (Efron
// 1979), so that pairs of one prompt, which are not independent, are drawn together. Units without anything
// (whole 0) do not count.
Estimate BootstrapRatio(std::span<const Share> units, int resamples, uint64_t seed);

// ratio(a) - ratio(b) of two measurements of the same units, drawn together; a unit counts where both sides
// have something. a and b are equally long.
Estimate PairedBootstrap(std::span<const Share> a, std::span<const Share> b, int resamples, uint64_t seed);

// successes / trials with the exact interval of Clopper and Pearson 1934. No trials: 0, from 0 to 1.
Estimate ExactProportion(int64_t successes, int64_t trials);

// Two-sided exact p-value of `successes` among `trials` fair coins; 1 where there are none.
double SignTest(int64_t successes, int64_t trials);

// Exact McNemar test of two rules on the same items: SignTest over the items that only one got right.
struct PairedCounts {
  int64_t only_a = 0;
  int64_t only_b = 0;
  int64_t both = 0;
  int64_t neither = 0;
  double p_value() const { return SignTest(only_a, only_a + only_b); }
};

// Outcomes of comparisons. Unparsable is a category of its own, not a tie.
struct WinCounts {
  int64_t win = 0;
  int64_t tie = 0;
  int64_t loss = 0;
  int64_t unparsable = 0;

  // One more of "win", "tie" or "loss"; any other word is unparsable.
  void Add(absl::string_view verdict);
};

// Position bias: what became of prompts whose two answers were judged in both orders.
struct PositionCounts {
  int64_t first = 0;   // whichever was shown first won both times
  int64_t second = 0;  // whichever was shown second did
  int64_t same = 0;    // the verdict stayed; none of these: a tie in one order only, or an unparsable verdict

  // One more prompt: the verdicts of one and the same answer, when it was shown first and when second.
  void Add(absl::string_view shown_first, absl::string_view shown_second);
  // Of no preference for a position.
  double p_value() const { return SignTest(first, first + second); }
};

// How a comparison went, and how much longer the first answer was.
struct LengthOutcome {
  double win = 0;         // 1, 0.5 for a tie, 0
  double difference = 0;  // in whatever unit lengths have
};

// The share of wins had both answers been equally long: the logistic regression
// P(win) = sigmoid(a + b tanh(difference / std of the differences)) at difference 0, with the 95 % interval
// that follows from a's standard error. Dubois et al. 2024 (arXiv 2404.04475), without their term for the
// difficulty of an instruction. Nothing: no finite fit, as when one side always wins.
struct LengthControlled {
  Estimate win_rate;
  double intercept = 0;        // a
  double slope = 0;            // b: above 0 where the longer answer wins more
  double intercept_error = 0;  // standard errors of both
  double slope_error = 0;
};
std::optional<LengthControlled> LengthControlledWinRate(std::span<const LengthOutcome> outcomes);

// The mean over independent runs, as a rule seeds, and its standard error (sample standard deviation by root
// n), which is 0 for one value.
struct MeanOverRuns {
  double mean = 0;
  double standard_error = 0;
  int64_t n = 0;
};
MeanOverRuns MeanOf(std::span<const double> values);

// Pearson's correlation; 0 where one side does not vary.
double Correlation(std::span<const double> x, std::span<const double> y);

}  // namespace almost
