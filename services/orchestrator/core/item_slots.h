#pragma once

#include <list>
#include <map>
#include <stop_token>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace almost::orchestrator {

// How many items all runs of the process may have at work at once. A free slot goes to the run of the highest
// priority; among equals to the one that holds the fewest, then to who has waited longest. Thread-safe.
class ItemSlots {
 public:
  // At work until it is destroyed.
  class Slot {
   public:
    Slot(Slot&& other) noexcept : slots_(other.slots_), run_(std::move(other.run_)) {
      other.slots_ = nullptr;
    }
    Slot& operator=(Slot&&) = delete;
    ~Slot();

   private:
    friend class ItemSlots;
    Slot(ItemSlots* slots, std::string run) : slots_(slots), run_(std::move(run)) {}
    ItemSlots* slots_;
    std::string run_;
  };

  explicit ItemSlots(int num_slots) : num_free_(num_slots) {}

  // Waits for one. kCancelled: `stop` was requested first.
  absl::StatusOr<Slot> Acquire(const std::string& run, int priority, const std::stop_token& stop);

  int num_waiting() const;

 private:
  struct Waiter {
    const std::string& run;
    int priority;
    bool granted = false;
    bool stopped = false;
  };
  void Grant() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Release(const std::string& run);

  mutable absl::Mutex mutex_;
  int num_free_ ABSL_GUARDED_BY(mutex_);
  std::list<Waiter*> waiting_ ABSL_GUARDED_BY(mutex_);  // longest first
  std::map<std::string, int> held_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace almost::orchestrator
