#include "services/trainer/core/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace almost::trainer {

double LearningRateFactor(const OptimizerSpec& spec, int64_t step, int64_t num_steps) {
  const double steps = static_cast<double>(num_steps), at = static_cast<double>(step);
  const double warmup = spec.warmup_steps > 0 ? static_cast<double>(spec.warmup_steps)
                                              : std::ceil(spec.warmup_fraction * steps);
  const double rise = warmup > 0 ? std::min(1.0, (at + 1) / warmup) : 1.0;
  const double hold = std::max(warmup, spec.hold_fraction * steps);
  const double progress = at < hold ? 0.0 : std::min(1.0, (at - hold) / std::max(1.0, steps - hold));
  double share = 1.0;
  if (spec.schedule == Schedule::kLinear) share = 1.0 - progress;
  if (spec.schedule == Schedule::kCosine) share = 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return rise * (spec.final_fraction + (1.0 - spec.final_fraction) * share);
}

}  // namespace almost::trainer
