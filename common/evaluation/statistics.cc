#include "common/evaluation/statistics.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "common/base/random.h"

namespace almost {
namespace {

// Of the bootstrap distribution; nearest rank.
void SetInterval(std::vector<double>& values, Estimate& estimate) {
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[static_cast<size_t>(std::lround(share * static_cast<double>(values.size() - 1)))];
  };
  estimate.low = at(0.025);
  estimate.high = at(0.975);
}

// The continued fraction of the incomplete beta function by the modified method of Lentz (DLMF 8.17.22).
double BetaFraction(double a, double b, double x) {
  constexpr double kTiny = 1e-300;
  const auto safe = [&](double value) { return std::abs(value) < kTiny ? kTiny : value; };
  double c = 1, d = 1 / safe(1 - (a + b) * x / (a + 1)), fraction = d;
  for (int m = 1; m <= 10000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / safe(1 + even * d);
    c = safe(1 + even / c);
    fraction *= d * c;
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / safe(1 + odd * d);
    c = safe(1 + odd / c);
    fraction *= d * c;
    if (std::abs(d * c - 1) < 4e-16) break;
  }
  return fraction;
}

// P(Beta(a, b) <= x).
double IncompleteBeta(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const double log_front =
      std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x);
  if (x < (a + 1) / (a + b + 2)) return std::exp(log_front) * BetaFraction(a, b, x) / a;
  return 1 - std::exp(log_front) * BetaFraction(b, a, 1 - x) / b;
}

// The x at which P(Beta(a, b) <= x) = p.
double BetaQuantile(double a, double b, double p) {
  double low = 0, high = 1;
  for (int i = 0; i < 200 && low < high; ++i) {
    const double middle = (low + high) / 2;
    if (middle == low || middle == high) break;
    (IncompleteBeta(a, b, middle) < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

Estimate BootstrapRatio(std::span<const Share> units, int resamples, uint64_t seed) {
  std::vector<Share> counted;
  for (const Share& unit : units) {
    if (unit.whole > 0) counted.push_back(unit);
  }
  Estimate estimate;
  estimate.n = static_cast<int64_t>(counted.size());
  if (counted.empty()) return estimate;
  const auto ratio = [](auto begin, auto end) {
    double part = 0, whole = 0;
    for (auto it = begin; it != end; ++it) {
      part += it->part;
      whole += it->whole;
    }
    return part / whole;
  };
  estimate.value = estimate.low = estimate.high = ratio(counted.begin(), counted.end());
  if (resamples < 2) return estimate;
  RandomStream random(seed);
  std::vector<double> means;
  std::vector<Share> sample(counted.size());
  for (int i = 0; i < resamples; ++i) {
    for (Share& unit : sample) unit = counted[random.Below(counted.size())];
    means.push_back(ratio(sample.begin(), sample.end()));
  }
  SetInterval(means, estimate);
  return estimate;
}

Estimate PairedBootstrap(std::span<const Share> a, std::span<const Share> b, int resamples, uint64_t seed) {
  std::vector<size_t> counted;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].whole > 0 && b[i].whole > 0) counted.push_back(i);
  }
  Estimate estimate;
  estimate.n = static_cast<int64_t>(counted.size());
  if (counted.empty()) return estimate;
  const auto difference = [&](const std::vector<size_t>& units) {
    Share of_a{0, 0}, of_b{0, 0};
    for (const size_t unit : units) {
      of_a.part += a[unit].part;
      of_a.whole += a[unit].whole;
      of_b.part += b[unit].part;
      of_b.whole += b[unit].whole;
    }
    return of_a.part / of_a.whole - of_b.part / of_b.whole;
  };
  estimate.value = estimate.low = estimate.high = difference(counted);
  if (resamples < 2) return estimate;
  RandomStream random(seed);
  std::vector<double> differences;
  std::vector<size_t> sample(counted.size());
  for (int i = 0; i < resamples; ++i) {
    for (size_t& unit : sample) unit = counted[random.Below(counted.size())];
    differences.push_back(difference(sample));
  }
  SetInterval(differences, estimate);
  return estimate;
}

Estimate ExactProportion(int64_t successes, int64_t trials) {
  if (trials == 0) return {0, 0, 1, 0};
  const auto k = static_cast<double>(successes), n = static_cast<double>(trials);
  return {k / n, successes == 0 ? 0 : BetaQuantile(k, n - k + 1, 0.025),
          successes == trials ? 1 : BetaQuantile(k + 1, n - k, 0.975), trials};
}

double SignTest(int64_t successes, int64_t trials) {
  const auto fewer = static_cast<double>(std::min(successes, trials - successes));
  const auto n = static_cast<double>(trials);
  if (2 * fewer >= n) return 1;
  // P(X <= k) of n fair coins is P(Beta(n - k, k + 1) <= 1/2).
  return std::min(1.0, 2 * IncompleteBeta(n - fewer, fewer + 1, 0.5));
}

void WinCounts::Add(absl::string_view verdict) {
  ++(verdict == "win" ? win : verdict == "loss" ? loss : verdict == "tie" ? tie : unparsable);
}

void PositionCounts::Add(absl::string_view shown_first, absl::string_view shown_second) {
  if (shown_first == shown_second && shown_first != "unparsable") ++same;
  if (shown_first == "win" && shown_second == "loss") ++first;
  if (shown_first == "loss" && shown_second == "win") ++second;
}

std::optional<LengthControlled> LengthControlledWinRate(std::span<const LengthOutcome> outcomes) {
  constexpr int kMostSteps = 100;
  constexpr double kFarOut = 30;  // a logit beyond it is a fit on its way to infinity
  const auto n = static_cast<double>(outcomes.size());
  double mean = 0, variance = 0;
  for (const LengthOutcome& each : outcomes) mean += each.difference / n;
  for (const LengthOutcome& each : outcomes) {
    variance += (each.difference - mean) * (each.difference - mean) / n;
  }
  if (!(variance > 0)) return std::nullopt;  // also without outcomes
  const double spread = std::sqrt(variance);
  // Newton's method on the log-likelihood; the information matrix is [[aa, ab], [ab, bb]].
  LengthControlled fit;
  double& a = fit.intercept;
  double& b = fit.slope;
  for (int step = 0; step < kMostSteps; ++step) {
    double gradient_a = 0, gradient_b = 0, aa = 0, ab = 0, bb = 0;
    for (const LengthOutcome& each : outcomes) {
      const double x = std::tanh(each.difference / spread);
      const double p = Sigmoid(a + b * x);
      gradient_a += each.win - p;
      gradient_b += (each.win - p) * x;
      aa += p * (1 - p);
      ab += p * (1 - p) * x;
      bb += p * (1 - p) * x * x;
    }
    const double determinant = aa * bb - ab * ab;
    if (!(determinant > 0)) return std::nullopt;
    const double step_a = (bb * gradient_a - ab * gradient_b) / determinant;
    const double step_b = (aa * gradient_b - ab * gradient_a) / determinant;
    a += step_a;
    b += step_b;
    if (!(std::abs(a) + std::abs(b) < kFarOut)) return std::nullopt;
    if (std::abs(step_a) + std::abs(step_b) < 1e-13) {
      fit.intercept_error = std::sqrt(bb / determinant);
      fit.slope_error = std::sqrt(aa / determinant);
      constexpr double kNormal = 1.959963984540054;  // the 97.5 % quantile
      fit.win_rate = {Sigmoid(a), Sigmoid(a - kNormal * fit.intercept_error),
                      Sigmoid(a + kNormal * fit.intercept_error), static_cast<int64_t>(outcomes.size())};
      return fit;
    }
  }
  return std::nullopt;
}

MeanOverRuns MeanOf(std::span<const double> values) {
  MeanOverRuns out;
  out.n = static_cast<int64_t>(values.size());
  const auto n = static_cast<double>(values.size());
  double squares = 0;
  for (const double value : values) out.mean += value / n;
  for (const double value : values) squares += (value - out.mean) * (value - out.mean);
  if (out.n > 1) out.standard_error = std::sqrt(squares / (n - 1) / n);
  return out;
}

double Correlation(std::span<const double> x, std::span<const double> y) {
  const auto varies = [](std::span<const double> values) {
    return std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) != values.end();
  };
  if (!varies(x) || !varies(y)) return 0;
  const double n = static_cast<double>(x.size());
  double mean_x = 0, mean_y = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    mean_x += x[i] / n;
    mean_y += y[i] / n;
  }
  double xx = 0, yy = 0, xy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xx += (x[i] - mean_x) * (x[i] - mean_x);
    yy += (y[i] - mean_y) * (y[i] - mean_y);
    xy += (x[i] - mean_x) * (y[i] - mean_y);
  }
  return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0;
}

}  // namespace almost
