#include "services/orchestrator/core/run_jobs.h"

#include <regex>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "services/orchestrator/core/datasets.h"

namespace almost::orchestrator {
namespace {

constexpr size_t kRunCharacters = 80;
constexpr absl::Duration kTimeout = absl::Seconds(5);

std::string HashOf(const std::string& run, const trainer::v1::JobSpec& spec) {
  return Sha256(absl::StrCat(run, "\n", ToJson(spec).dump())).substr(0, 12);
}

}  // namespace

std::string RunJobId(const std::string& run, absl::string_view stage, const trainer::v1::JobSpec& spec,
                     int number) {
  return absl::StrCat(RunInJobId(run), "-", stage, "-", HashOf(run, spec), "-", number);
}

std::optional<std::string> RunOfJob(const std::string& job_name) {
  static const std::regex form("jobs/(.*)-(reward_model|sft|rl)-[0-9a-f]{12}-[0-9]+");
  std::smatch parts;
  if (!std::regex_match(job_name, parts, form)) return std::nullopt;
  return parts[1].str();
}

std::string RunInJobId(const std::string& run) { return run.substr(0, kRunCharacters); }

absl::Status StopJobs(Services& services, const std::string& run, JobsEnd end) {
  const CallOptions options = {kTimeout, {}};
  absl::Status first_error;
  trainer::v1::ListJobsRequest list;
  do {
    ALMOST_ASSIGN_OR_RETURN(const trainer::v1::ListJobsResponse page, services.ListJobs(options, list));
    for (const trainer::v1::Job& job : page.jobs()) {
      const bool at_work = job.state() == trainer::v1::JOB_STATE_QUEUED ||
                           job.state() == trainer::v1::JOB_STATE_RUNNING ||
                           job.state() == trainer::v1::JOB_STATE_PAUSED;
      const bool has_kept = end == JobsEnd::kCancelled && job.state() == trainer::v1::JOB_STATE_FAILED;
      // Other runs' ids may begin as this one's does.
      if (!(at_work || has_kept) || RunOfJob(job.name()) != RunInJobId(run) ||
          !absl::StrContains(job.name(), absl::StrCat("-", HashOf(run, job.spec()), "-"))) {
        continue;
      }
      if (end == JobsEnd::kPaused) {
        trainer::v1::PauseJobRequest request;
        request.set_name(job.name());
        first_error.Update(services.PauseJob(options, request).status());
      } else {
        trainer::v1::CancelJobRequest request;
        request.set_name(job.name());
        first_error.Update(services.CancelJob(options, request).status());
      }
    }
    list.set_page_token(page.next_page_token());
  } while (!list.page_token().empty());
  return first_error;
}

}  // namespace almost::orchestrator
