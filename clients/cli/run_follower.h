#pragma once

#include <cstdio>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "almost/orchestrator/v1/orchestrator.pb.h"
#include "clients/cli/endpoints.h"
#include "clients/cli/progress.h"

namespace almost::cli {

// Shows on `out` how the run `name` goes, a bar a stage (or with `json` an event a line), until it ends; then
// returns it. Outlives restarts of the orchestrator, for up to ten minutes each.
// kNotFound: no such run; kUnavailable: the orchestrator stayed away.
absl::StatusOr<almost::orchestrator::v1::Run> FollowRun(const Endpoint& orchestrator, const std::string& name,
                                                        bool json, FILE* out);

// OK for a run that succeeded, else why it did not.
absl::Status Outcome(const almost::orchestrator::v1::Run& run);

// A stage's id, and of rl how it improves the policy: "rl (dpo)".
std::string LabelOf(const almost::orchestrator::v1::Stage& stage,
                    const almost::orchestrator::v1::Recipe& recipe);

// A run's stage as a bar.
ProgressLine LineOf(const almost::orchestrator::v1::Stage& stage,
                    const almost::orchestrator::v1::Recipe& recipe);

// "RUNNING" for RUN_STATE_RUNNING.
std::string StateName(almost::orchestrator::v1::RunState state);

// The headline figures of summary.json as a table.
absl::Status PrintSummary(FILE* out, const std::string& summary_json);

}  // namespace almost::cli
