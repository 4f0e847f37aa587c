#pragma once

#include <cstdint>

#include "services/trainer/core/job_spec.h"

namespace almost::trainer {

// The learning rate of step `step` (from 0) of `num_steps`, as a share of the peak: a line up over the
// warm-up, flat until hold_fraction, then down to final_fraction, which the step after the last would have.
double LearningRateFactor(const OptimizerSpec& spec, int64_t step, int64_t num_steps);

}  // namespace almost::trainer
