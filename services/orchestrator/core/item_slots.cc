#include "services/orchestrator/core/item_slots.h"

#include <algorithm>
#include <functional>
#include <tuple>
#include <utility>

namespace almost::orchestrator {

ItemSlots::Slot::~Slot() {
  if (slots_ != nullptr) slots_->Release(run_);
}

absl::StatusOr<ItemSlots::Slot> ItemSlots::Acquire(const std::string& run, int priority,
                                                   const std::stop_token& stop) {
  Waiter waiter{run, priority};
  // Runs at once, on this thread, if `stop` has been requested already.
  const std::stop_callback<std::function<void()>> on_stop(stop, [this, &waiter] {
    const absl::MutexLock lock(&mutex_);
    waiter.stopped = true;
  });
  const absl::MutexLock lock(&mutex_);
  if (waiter.stopped) return absl::CancelledError("the run was stopped");
  waiting_.push_back(&waiter);
  Grant();
  const auto settled = [&waiter] { return waiter.granted || waiter.stopped; };
  mutex_.Await(absl::Condition(&settled));
  if (waiter.granted) return Slot(this, run);
  waiting_.remove(&waiter);
  return absl::CancelledError("the run was stopped");
}

int ItemSlots::num_waiting() const {
  const absl::MutexLock lock(&mutex_);
  return static_cast<int>(waiting_.size());
}

void ItemSlots::Grant() {
  while (num_free_ > 0 && !waiting_.empty()) {
    const auto before = [this](const Waiter* a, const Waiter* b) ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      const auto held = [this](const Waiter* waiter) ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        const auto count = held_.find(waiter->run);
        return count == held_.end() ? 0 : count->second;
      };
      return std::tuple(-a->priority, held(a)) < std::tuple(-b->priority, held(b));
    };
    const auto next = std::min_element(waiting_.begin(), waiting_.end(), before);
    --num_free_;
    ++held_[(*next)->run];
    (*next)->granted = true;
    waiting_.erase(next);
  }
}

void ItemSlots::Release(const std::string& run) {
  const absl::MutexLock lock(&mutex_);
  ++num_free_;
  const auto held = held_.find(run);
  if (--held->second == 0) held_.erase(held);
  Grant();
}

}  // namespace almost::orchestrator
