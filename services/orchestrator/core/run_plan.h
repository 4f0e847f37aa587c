#pragma once

#include <functional>

#include "absl/status/status.h"
#include "almost/orchestrator/v1/orchestrator.pb.h"
#include "services/orchestrator/core/run_execution.h"

namespace almost::orchestrator {

// Fills run->stages() with what a run of that recipe (checked, defaults filled in) would do, and changes
// nothing: each model is brought into memory in turn to ask what it is, and goes again unless a run holds it.
// A stage is foreseen as taken over where all before it are: else its inputs are not known yet. Errors: the
// services' own, once they have been away for RetryPolicy::pause_after.
absl::Status PlanRun(const RunEnvironment& environment, const v1::Recipe& recipe, bool recompute,
                     v1::Run* run);

}  // namespace almost::orchestrator
