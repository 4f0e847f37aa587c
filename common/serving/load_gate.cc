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
  const absl::Duration wait = TimeOfWorkUnderWay(now);
  const auto refuse = [](const std::string& why, absl::Duration delay) {
    return RetryLater(absl::StrCat(why, "; try again later"),
                      std::clamp(delay, absl::Milliseconds(50), absl::Seconds(30)));
  };
  if (waiting && deadline != absl::InfiniteFuture()) {
    const absl::Duration room = (deadline - now) * kShare;
    if (wait > room) {
      return refuse(absl::StrCat("the work under way needs ", absl::FormatDuration(wait),
                                 ", too long for this call's deadline"),
                    std::min(wait - room, deadline - now));
    }
  }
  if (calls_->under_way.fetch_add(1) >= calls_->limit) {
    --calls_->under_way;
    return refuse(absl::StrCat(calls_->limit, " calls are under way"), std::min(wait / 2, absl::Seconds(1)));
  }
  under_way_ += work;
  return Ticket(this, work, deadline);
}

absl::Duration LoadGate::TimeOfWorkUnderWay(absl::Time now) const {
  if (ended_.size() < kEnough) {
    return num_late_ < kEnough ? absl::ZeroDuration() : absl::InfiniteDuration();
  }
  // The first one's end begins the time in which the others' work was done.
  const auto done = static_cast<double>(ended_work_ - ended_.front().work);
  if (done <= 0) return absl::ZeroDuration();
  return (now - ended_.front().time) * (static_cast<double>(under_way_) / done);
}

void LoadGate::Leave(int64_t work, bool answered, bool late, absl::Time now) {
  --calls_->under_way;
  const std::lock_guard lock(mutex_);
  under_way_ -= work;
  if (late) ++num_late_;
  if (answered) {
    ended_.push_back({now, work});
    ended_work_ += work;
  }
  if (ended_.size() > kRemembered) {
    ended_work_ -= ended_.front().work;
    ended_.pop_front();
  }
  if (under_way_ > 0) return;
  ended_.clear();
  ended_work_ = 0;
  num_late_ = 0;
}

}  // namespace almost
