#include "services/orchestrator/core/statistics.h"

#include <algorithm>
#include <cmath>

#include "common/base/random.h"

namespace almost::orchestrator {

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
  std::sort(means.begin(), means.end());
  const auto at = [&](double share) {
    return means[static_cast<size_t>(std::lround(share * static_cast<double>(means.size() - 1)))];
  };
  estimate.low = at(0.025);
  estimate.high = at(0.975);
  return estimate;
}

double Correlation(std::span<const double> x, std::span<const double> y) {
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

}  // namespace almost::orchestrator
