#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "almost/trainer/v1/trainer.pb.h"
#include "services/orchestrator/core/services.h"

// The trainer's jobs that runs have asked for, known by their ids: <run>-<stage>-<12 hex digits>-<number>. Of
// the run's id the first 80 characters; the digits are a hash of the whole of it and of the spec.
namespace almost::orchestrator {

// The id under which the `number`-th try of a stage asks for its job.
std::string RunJobId(const std::string& run, absl::string_view stage, const trainer::v1::JobSpec& spec,
                     int number);

// The first 80 characters of the id of the run that asked for `jobs/{id}`; none: nobody's, or by hand.
std::optional<std::string> RunOfJob(const std::string& job_name);
// What RunOfJob has of this run.
std::string RunInJobId(const std::string& run);

// Pauses or cancels every job of the run that waits or trains; cancels those that are paused, and those that
// have failed, for their checkpoints. One try each; the first error of any.
enum class JobsEnd { kPaused, kCancelled };
absl::Status StopJobs(Services& services, const std::string& run, JobsEnd end);

}  // namespace almost::orchestrator
