#include "common/serving/load_gate.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/rpc/status.h"

namespace almost {
namespace {

constexpr size_t kRemembered = 64;  // calls that the rate is taken from
constexpr size_t kEnough = 8;       // fewer say nothing

}  // namespace

absl::StatusOr<LoadGate::Ticket> LoadGate::Enter(int64_t work, absl::Time deadline, bool waiting,
                                                 absl::Time now) {
  const std::lock_guard lock(mutex_);
  if (waiting && deadline != absl::InfiniteFuture() && ended_.size() >= kEnough) {
    // The first one's end begins the time in which the others' work was done.
    const absl::Duration time = now - ended_.front().time;
    const auto done = static_cast<double>(ended_work_ - ended_.front().work);
    const auto ahead = static_cast<double>(under_way_);
    const absl::Duration wait = done > 0 ? time * (ahead / done) : absl::ZeroDuration();
    const absl::Duration room = (deadline - now) * kShare;
    if (wait > room) {
      return RetryLater(absl::StrCat("the work under way needs ", absl::FormatDuration(wait),
                                     ", too long for this call's deadline; try again later"),
                        std::clamp(wait - room, absl::Milliseconds(50), absl::Seconds(30)));
    }
  }
  under_way_ += work;
  return Ticket(this, work);
}

void LoadGate::Leave(int64_t work, absl::Time now) {
  const std::lock_guard lock(mutex_);
  under_way_ -= work;
  ended_.push_back({now, work});
  ended_work_ += work;
  if (ended_.size() > kRemembered) {
    ended_work_ -= ended_.front().work;
    ended_.pop_front();
  }
  if (under_way_ > 0) return;
  ended_.clear();
  ended_work_ = 0;
}

}  // namespace almost
