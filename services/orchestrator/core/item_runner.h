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
#include "services/orchestrator/core/item_slots.h"
#include "services/orchestrator/core/stage.h"

namespace almost::orchestrator {

// Does a stage's items several at once, each journaled before and after, many of them in one transaction:
// what is done goes on while what has been done is journaled. Used by one thread.
class ItemRunner {
 public:
  struct Options {
    int concurrent_items = 8;
    double max_set_aside_share = 0.01;
    int priority = 0;            // of the run
    ItemSlots* slots = nullptr;  // shared with other runs
  };
  struct Listener {
    // Told of each ended item, from any thread, before it is journaled.
    std::function<void(const absl::Status& status)> ended;
    // The counts when a group is about to be journaled. May add an event to `batch`; returns whether it did.
    std::function<bool(int64_t num_done, int64_t num_set_aside, int64_t num_items, JournalBatch& batch)>
        progress;
    // These items' results are on disk, and the event that `progress` added.
    std::function<void(const std::vector<int64_t>& items, bool has_event)> committed;
  };

  // All outlive the runner. `stop`: what stops the stage's calls; the runner requests it when an item fails
  // the stage.
  ItemRunner(Journal* journal, Stage* stage, StageContext* context, std::stop_source stop,
             const Options& options, Listener listener);

  // Asks the journal which items are done, and returns them.
  absl::StatusOr<std::vector<int64_t>> Recover();

  // Whether there are items of that turn below `num_items` that are not done.
  bool HasLeft(int64_t num_items, int turn) const;

  // Does the items of that turn below `num_items` that are not, in the order of Stage::ItemAt. kCancelled:
  // stopped. kFailedPrecondition: too many were set aside; names the first. Otherwise the error that fails
  // the stage. Finished items are journaled whatever happens to others.
  absl::Status Run(int64_t num_items, int turn);

 private:
  struct Finished {
    int64_t item;
    absl::StatusOr<std::string> result;
  };

  // Takes item after item whose intent is journaled.
  void Work();
  absl::StatusOr<std::string> RunItem(int64_t item);
  bool IsLeft(int64_t item, int turn) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Journals results and intents until nothing is left to do, or to wait for.
  absl::Status JournalGroups(int64_t num_items);
  void Fail(absl::Status status);
  absl::Status CheckSetAside(int64_t num_items) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  Journal* const journal_;
  Stage* const stage_;
  StageContext* const context_;
  std::stop_source stop_;
  const Options options_;
  const Listener listener_;
  const std::string stage_id_;

  mutable absl::Mutex mutex_;
  std::vector<bool> ended_ ABSL_GUARDED_BY(mutex_);  // by item: done or set aside, and journaled
  int64_t num_done_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_set_aside_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status first_set_aside_ ABSL_GUARDED_BY(mutex_);
  // Of the present Run.
  std::vector<int64_t> todo_ ABSL_GUARDED_BY(mutex_);
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;          // of todo_: not begun yet
  size_t num_intended_ ABSL_GUARDED_BY(mutex_) = 0;  // of todo_: their intents are journaled
  int num_workers_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Finished> finished_ ABSL_GUARDED_BY(mutex_);  // not journaled yet
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

// What a stage's items came to, read from the journal a page at a time.
class JournaledResults : public ItemResults {
 public:
  JournaledResults(Journal* journal, std::string run, std::string stage)
      : journal_(journal), run_(std::move(run)), stage_(std::move(stage)) {}
  absl::Status ForEachFrom(int64_t first, const Use& use) const override;

 private:
  Journal* const journal_;
  const std::string run_;
  const std::string stage_;
};

}  // namespace almost::orchestrator
