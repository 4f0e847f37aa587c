#pragma once

#include <cstdint>
#include <span>
#include <vector>

// Statistics of the evaluation. Pure; every random number comes from the seed that is passed.
namespace almost::orchestrator {

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

// Outcomes of a comparison judged in both orders. Unparsable is a category of its own, not a tie.
struct WinCounts {
  int64_t win = 0;
  int64_t tie = 0;
  int64_t loss = 0;
  int64_t unparsable = 0;
};

// Pearson's correlation; 0 where one side does not vary.
double Correlation(std::span<const double> x, std::span<const double> y);

}  // namespace almost::orchestrator
