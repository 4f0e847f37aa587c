#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/storage/journal.h"
#include "services/orchestrator/core/stage.h"

namespace almost::orchestrator {

// Does a stage's items several at once, each journaled before and after. Used by one thread.
class ItemRunner {
 public:
  struct Options {
    int concurrent_items = 8;
    double max_set_aside_share = 0.01;
  };
  // Told of each ended item, from any thread.
  struct Listener {
    std::function<void(const absl::Status& status)> ended;
    // The counts now. May add an event to `batch`; then `committed` is called when it is on disk.
    std::function<bool(int64_t num_done, int64_t num_set_aside, int64_t num_items, JournalBatch& batch)>
        progress;
    std::function<void()> committed;
  };

  // All outlive the runner. `stop`: what stops the stage's calls; the runner requests it when an item fails
  // the stage.
  ItemRunner(Journal* journal, Stage* stage, StageContext* context, std::stop_source stop,
             const Options& options, Listener listener);

  // Asks the journal which items are done.
  absl::Status Recover();

  // Does the items below `num_items` that are not. kCancelled: stopped. kFailedPrecondition: too many were
  // set aside; names the first. Otherwise the error that fails the stage. Finished items are journaled
  // whatever happens to others.
  absl::Status Run(int64_t num_items);

 private:
  absl::Status RunItem(int64_t item, int64_t num_items);
  absl::Status CheckSetAside(int64_t num_items);

  Journal* const journal_;
  Stage* const stage_;
  StageContext* const context_;
  std::stop_source stop_;
  const Options options_;
  const Listener listener_;
  const std::string stage_id_;

  absl::Mutex mutex_;
  std::vector<bool> ended_ ABSL_GUARDED_BY(mutex_);  // by item: done or set aside
  int64_t num_done_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_set_aside_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status first_set_aside_ ABSL_GUARDED_BY(mutex_);
};

// What a stage's items came to, read from the journal a page at a time.
class JournaledResults : public ItemResults {
 public:
  JournaledResults(Journal* journal, std::string run, std::string stage)
      : journal_(journal), run_(std::move(run)), stage_(std::move(stage)) {}
  absl::Status ForEach(
      const std::function<absl::Status(int64_t, const absl::StatusOr<std::string>&)>& use) const override;

 private:
  Journal* const journal_;
  const std::string run_;
  const std::string stage_;
};

}  // namespace almost::orchestrator
