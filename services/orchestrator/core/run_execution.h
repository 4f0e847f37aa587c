#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "almost/orchestrator/v1/orchestrator.pb.h"
#include "common/storage/artifact_store.h"
#include "common/storage/journal.h"
#include "nlohmann/json.hpp"
#include "services/orchestrator/core/cost_meter.h"
#include "services/orchestrator/core/item_slots.h"
#include "services/orchestrator/core/model_placement.h"
#include "services/orchestrator/core/stage.h"
#include "services/orchestrator/core/stage_progress.h"

namespace almost::orchestrator {

// Told what happens to runs, for metrics. Called from many threads.
class RunObserver {
 public:
  virtual ~RunObserver() = default;
  // From UNSPECIFIED: new here; to UNSPECIFIED: deleted.
  virtual void StateChanged(const std::string& /*run*/, v1::RunState /*from*/, v1::RunState /*to*/) {}
  virtual void StageChanged(const std::string& /*run*/, const v1::Stage& /*stage*/) {}
  // `cost` is what has come since the last call for that stage of the run.
  virtual void Used(absl::string_view /*stage*/, const v1::Cost& /*cost*/) {}
  virtual void ItemEnded(absl::string_view /*stage*/, const absl::Status& /*status*/) {}
  virtual void Retried(absl::string_view /*stage*/, const absl::Status& /*status*/) {}
  virtual void StagePublished(absl::string_view /*stage*/, double /*seconds*/,
                              const std::map<std::string, double>& /*figures*/) {}
  virtual void Summarised(const std::string& /*summary_json*/) {}
};

// What every run works with; all of it outlives the runs.
struct RunEnvironment {
  Journal* journal = nullptr;
  ArtifactStore* store = nullptr;
  Services* services = nullptr;
  ModelPlacement* placement = nullptr;
  RunObserver* observer = nullptr;
  // A recipe's stages in the order of the method.
  std::function<std::vector<std::unique_ptr<Stage>>(const v1::Recipe&)> make_stages;
  RetryPolicy retry;
  int concurrent_items = 8;    // of one stage of a run
  int total_items = 32;        // of all runs
  ItemSlots* slots = nullptr;  // total_items of them; the Orchestrator's
  // Held shared from finding what other runs left until it is this run's, and alone while garbage is
  // collected; the Orchestrator's.
  absl::Mutex* sweep = nullptr;
  double max_set_aside_share = 0.01;  // of a stage's items; more fail the stage
  absl::Duration progress_interval = absl::Milliseconds(500);
  nlohmann::json provenance;  // written beside every artifact, with the time
};

// One run at work: its stages one after the other, or beside the one they follow; each one's items side by
// side. What is journaled is enough to go on from anywhere, so that losing this object (or the process) loses
// no more than items under way.
class RunExecution {
 public:
  enum class StopKind {
    kShutdown,  // the journal still says it runs: the next process goes on
    kPause,     // the run stays as it is until it is resumed; its jobs are paused
    kCancel,    // the run ends as cancelled, and so do its jobs
  };

  // Starts at once. `record.settings` is a CreateRunRequest without id and recipe; `record.recipe` is not
  // looked at. `stages`: what the journal knows of them. `may_redo`: a stage whose models have other numerics
  // than the items that it has done is done anew; else it fails the run with kFailedPrecondition.
  RunExecution(const RunEnvironment& environment, RunRecord record, v1::Recipe recipe,
               std::vector<StageProgress> stages, int64_t num_events, bool may_redo);
  // Stops it for a restart, waiting for calls under way to end.
  ~RunExecution();

  // The strongest kind asked for counts.
  void RequestStop(StopKind kind);
  bool WaitUntilEnded(absl::Duration timeout) const;
  // Whether it has ended: nothing changes any more.
  bool ended() const;

  v1::Run Snapshot() const;
  // Waits until the journal holds more than `num_events` events of the run, or it has ended.
  void WaitForEvent(int64_t num_events, absl::Duration timeout) const;

 private:
  class Context;
  class Feed;
  // What this process knows of a stage at work besides its progress.
  struct AtWork {
    std::chrono::steady_clock::time_point start;
    std::chrono::steady_clock::time_point last_event;
    // For the stage that follows it: its items that have ended, in the order in which they did.
    std::vector<int64_t> ended_items;
    bool all_ended = false;
    // Its models have been placed, and items of this process may have been done with them.
    bool placed = false;
    // Its end is in the journal. Only then may the stage that follows it drop its results.
    bool published = false;
  };

  void Main();
  absl::Status Execute();
  // Runs a stage and, once it has begun, the one that follows it; journals its end. `following`: the stage
  // before it is at work. A failure halts the run.
  absl::Status DoStage(size_t index, bool following);
  absl::Status RunStage(Stage& stage, size_t index, bool following, const std::function<void()>& begun);
  // Whether `index` is taken up by a stage that follows it and has not published.
  bool IsFollowed(size_t index) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Its identity and the key of it; empty for one that is always done.
  absl::Status Identify(Stage& stage, Context& context, std::optional<StageIdentity>* identity,
                        std::string* key);
  // kCancelled: the run was halted first.
  absl::Status AwaitPublished(size_t index);
  // Ends all stages' work; `why` is the run's error if it is the first, OK if the run is to stop.
  void Halt(const absl::Status& why);
  // Brings the models of that turn into memory; the stage's others go.
  absl::Status PlaceModels(Stage& stage, size_t index, int turn, Context& context);
  // The stage is publishing: what its items, and those of one it follows, came to is in artifacts. Kept as
  // long as a stage that follows it may want them.
  void DropResults(size_t index, JournalBatch& batch) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Takes over what a stage of the same key left, if the store still has all of it.
  absl::StatusOr<bool> TakeOver(Stage& stage, size_t index, Context& context, const std::string& key);
  // `identity` and `key` are unset for a stage that is always done.
  absl::Status Publish(Stage& stage, size_t index, Context& context, const ItemResults& results,
                       const std::optional<StageIdentity>& identity, const std::string& key);

  // Commits `batch` with an event about `stage` (or the run, if null).
  absl::Status CommitWithEvent(JournalBatch batch, const v1::Stage* stage, absl::string_view message);
  // Adds an event to `batch`, unless one came a moment ago; returns whether it did.
  bool AddProgressEvent(JournalBatch& batch, size_t index);
  void EventCommitted();
  void SetItems(size_t index, int64_t num_done, int64_t num_set_aside, int64_t num_items);
  void SetPaused(const absl::Status& why);
  void SetState(v1::RunState state, const absl::Status& error);
  std::map<std::string, std::string> Artifacts() const;
  // Its seconds and cost up to now.
  v1::Stage Shown(size_t index) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const RunEnvironment environment_;
  const v1::Recipe recipe_;
  const v1::CreateRunRequest settings_;  // without id and recipe
  const bool may_redo_;
  const std::vector<std::unique_ptr<Stage>> stages_;
  RetryBudget retries_;
  std::stop_source stop_;  // somebody asked for it
  std::stop_source halt_;  // that, or a stage has failed

  mutable absl::Mutex mutex_;
  RunRecord record_ ABSL_GUARDED_BY(mutex_);
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
  std::vector<StageProgress> progress_ ABSL_GUARDED_BY(mutex_);  // like stages_
  std::vector<std::unique_ptr<CostMeter>> meters_;               // like stages_: since this process began
  std::vector<AtWork> at_work_ ABSL_GUARDED_BY(mutex_);          // like stages_
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  bool halted_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t num_events_ ABSL_GUARDED_BY(mutex_);
  StopKind stop_kind_ ABSL_GUARDED_BY(mutex_) = StopKind::kShutdown;  // if stop_ was requested
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;

  std::jthread thread_;  // last: starts when all else is there
};

}  // namespace almost::orchestrator
