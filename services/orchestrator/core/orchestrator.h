#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "almost/orchestrator/v1/orchestrator.pb.h"
#include "services/orchestrator/core/run_execution.h"

namespace almost::orchestrator {

// Every run there is: those at work and, in the journal, those that ended. Thread-safe.
class Orchestrator {
 public:
  // Checks a recipe whose defaults are filled in; errors name the field. May call services.
  using RecipeCheck = std::function<absl::Status(const v1::Recipe&)>;

  // What `environment` points to outlives this.
  Orchestrator(const RunEnvironment& environment, RecipeCheck check);
  // Stops all runs for a restart.
  ~Orchestrator();

  // Goes on with every run that the journal says is at work. Call once, before anything else.
  absl::Status Recover();

  // The recipe's defaults are filled in. Durable when it returns. Id and recipe as in a run that exists
  // return that run. kAlreadyExists: the id with another recipe. Otherwise as ValidateId and the recipe
  // check, which may take minutes; kCancelled: after it `given_up` is true, and nothing was begun.
  absl::StatusOr<v1::Run> Create(const v1::CreateRunRequest& request,
                                 const std::function<bool()>& given_up = nullptr);
  // kNotFound names the run, here and below.
  absl::StatusOr<v1::Run> Get(absl::string_view id) const;
  // Newest first, those with a number below `before` (0: any); `next` is the last one's number, 0 at the end.
  absl::StatusOr<std::vector<v1::Run>> List(int64_t before, int64_t limit, int64_t* next) const;
  // Returns when the run has stopped, or after some seconds. Harmless on one that has ended.
  absl::StatusOr<v1::Run> Cancel(absl::string_view id);
  // The same, but the run keeps its jobs' progress. Harmless on one that is paused so.
  // kFailedPrecondition: it has ended.
  absl::StatusOr<v1::Run> Pause(absl::string_view id);
  // A stage that failed because its models' numerics are others than before is done anew.
  // kFailedPrecondition: it is at work or has succeeded.
  absl::StatusOr<v1::Run> Resume(absl::string_view id);

  // Forgets a run that has ended; its artifacts are the store's to collect. kFailedPrecondition: it is at
  // work or paused.
  absl::Status Delete(absl::string_view id);
  // What garbage collection must keep, with all that it was made from: what any run has made, or names as a
  // model to begin with. Of runs that ended longer than `candidates` ago, the candidates that were not chosen
  // are not among it.
  absl::StatusOr<std::set<std::string>> KeptArtifacts(absl::Duration candidates) const;

  // Events after `after_sequence`; waits up to `timeout` for the first. Empty when none came. `ended` tells
  // whether no more will. An end that the journal could not take comes too, under the last one's sequence.
  absl::StatusOr<std::vector<v1::RunEvent>> Events(absl::string_view id, int64_t after_sequence,
                                                   absl::Duration timeout, bool* ended) const;

  // As OrchestratorService.CollectGarbage. Runs go on meanwhile, but for one that would take a stage over.
  absl::StatusOr<v1::CollectGarbageResponse> CollectGarbage(const v1::CollectGarbageRequest& request);

  struct RunArtifact {
    std::string stage;
    std::string name;
    std::string digest;
  };
  // In the order in which they were made.
  absl::StatusOr<std::vector<RunArtifact>> Artifacts(absl::string_view id) const;

 private:
  std::shared_ptr<RunExecution> Active(absl::string_view id) const;
  // The run as the journal has it.
  absl::StatusOr<v1::Run> FromJournal(absl::string_view id) const;
  // `may_redo`: see RunExecution.
  absl::Status Start(RunRecord record, bool may_redo);
  // Journals the run in its new state, with the event that says so.
  absl::Status CommitState(RunRecord& record, v1::RunState state, absl::string_view message);
  // Cancels a paused run, and gives up what the jobs of a failed one have kept; leaves any other alone.
  absl::Status CancelStopped(absl::string_view id);

  ItemSlots slots_;
  absl::Mutex sweep_;  // before mutex_; see RunEnvironment
  const RunEnvironment environment_;
  const RecipeCheck check_;
  absl::Mutex start_mutex_;  // one Create, Resume or Recover at a time
  mutable absl::Mutex mutex_;
  std::map<std::string, std::shared_ptr<RunExecution>, std::less<>> active_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace almost::orchestrator
