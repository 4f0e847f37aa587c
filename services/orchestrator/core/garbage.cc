#include "services/orchestrator/core/garbage.h"

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "common/base/status_macros.h"
#include "services/orchestrator/core/run_jobs.h"

namespace almost::orchestrator {
namespace {

constexpr absl::Duration kDefaultAge = absl::Hours(24);
constexpr absl::Duration kLeastAgeAtWork = absl::Hours(1);
constexpr int64_t kPage = 100;

// Adds the digest that a source names, if it is an artifact.
void AddSource(absl::string_view source, std::set<std::string>& keep) {
  if (absl::ConsumePrefix(&source, "artifacts/")) keep.insert(std::string(source));
}

bool IsAtWork(trainer::v1::JobState state) {
  return state == trainer::v1::JOB_STATE_QUEUED || state == trainer::v1::JOB_STATE_RUNNING;
}

// The ids of all runs, and whether one is at work.
absl::Status AddRuns(Journal& journal, std::set<std::string>& ids, bool& at_work) {
  for (int64_t before = 0;;) {
    ALMOST_ASSIGN_OR_RETURN(const std::vector<RunRecord> runs, journal.ListRuns(before, kPage));
    if (runs.empty()) return absl::OkStatus();
    for (const RunRecord& run : runs) {
      before = run.number;
      ids.insert(run.id);
      at_work = at_work || run.state == v1::RUN_STATE_RUNNING || run.state == v1::RUN_STATE_PAUSED;
    }
  }
}

// Adds what jobs refer to. With `remove` the trainer is told that nobody goes on from the checkpoints which
// failed jobs of deleted runs have kept.
absl::Status AddJobs(Services& services, const std::set<std::string>& runs, bool remove,
                     std::set<std::string>& keep, bool& at_work) {
  std::set<std::string> prefixes;
  for (const std::string& run : runs) prefixes.insert(RunInJobId(run));
  trainer::v1::ListJobsRequest request;
  do {
    ALMOST_ASSIGN_OR_RETURN(const trainer::v1::ListJobsResponse page,
                            services.ListJobs({absl::Seconds(30), {}}, request));
    for (const trainer::v1::Job& job : page.jobs()) {
      at_work = at_work || IsAtWork(job.state());
      const std::optional<std::string> run = RunOfJob(job.name());
      const bool is_of_deleted_run = run.has_value() && !prefixes.contains(*run);
      if (!IsAtWork(job.state()) && is_of_deleted_run) {
        if (!remove || job.state() != trainer::v1::JOB_STATE_FAILED) continue;
        trainer::v1::CancelJobRequest cancel;
        cancel.set_name(job.name());
        ALMOST_RETURN_IF_ERROR(services.CancelJob({absl::Seconds(30), {}}, cancel).status());
        continue;
      }
      if (!job.output_digest().empty()) keep.insert(job.output_digest());
      AddSource(job.spec().base_model(), keep);
      AddSource(job.spec().sft().dataset(), keep);
      AddSource(job.spec().dpo().dataset(), keep);
      for (const trainer::v1::PpoSpec& rl : {job.spec().ppo(), job.spec().grpo()}) {
        AddSource(rl.dataset(), keep);
        AddSource(rl.mix_dataset(), keep);
        AddSource(rl.reward_source(), keep);
        AddSource(rl.value_model(), keep);
      }
      AddSource(job.spec().pretrain().dataset(), keep);
      AddSource(job.spec().reward_model().dataset(), keep);
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::CollectGarbageResponse> CollectGarbage(Journal& journal, Services& services,
                                                          ArtifactStore& store, std::set<std::string> keep,
                                                          const v1::CollectGarbageRequest& request) {
  absl::Duration min_age = kDefaultAge;
  if (request.has_min_age()) {
    min_age = absl::Seconds(request.min_age().seconds()) + absl::Nanoseconds(request.min_age().nanos());
  }
  if (min_age < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("min_age: must be at least 0, is ", absl::FormatDuration(min_age)));
  }
  for (const std::string& name : request.keep()) {
    absl::string_view digest = name;
    if (!absl::ConsumePrefix(&digest, "artifacts/") || !store.Get(digest).ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("keep: must be artifacts/{digest} of the store, is ", name));
    }
    keep.insert(std::string(digest));
  }
  std::set<std::string> runs;
  bool at_work = false;
  ALMOST_RETURN_IF_ERROR(AddRuns(journal, runs, at_work));
  ALMOST_RETURN_IF_ERROR(AddJobs(services, runs, request.remove(), keep, at_work));
  if (request.remove() && at_work && min_age < kLeastAgeAtWork) {
    return absl::FailedPreconditionError(
        "min_age: must be at least an hour while runs or jobs are at work: nothing refers to what they "
        "publish at "
        "this moment");
  }
  ALMOST_ASSIGN_OR_RETURN(const std::vector<almost::Garbage> garbage,
                          store.Sweep(keep, min_age, /*dry_run=*/!request.remove(), {"candidates"}));
  v1::CollectGarbageResponse response;
  for (const almost::Garbage& each : garbage) {
    v1::Garbage& shown = *response.add_garbage();
    if (!each.digest.empty()) shown.set_name(absl::StrCat("artifacts/", each.digest));
    shown.set_kind(each.kind);
    shown.set_size_bytes(each.size_bytes);
  }
  return response;
}

}  // namespace almost::orchestrator
