#pragma once

#include <cstdint>
#include <deque>
#include <mutex>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace almost {

// Refuses at once the calls that a model could not answer in time: under overload a queue in the order of
// arrival would otherwise compute what nobody waits for any more. Work is in tokens or any other unit that a
// model's calls have in common. While nothing waits in the engine every call is taken; else the work under
// way, at the rate at which work has lately ended, says when a new call would end (Little's law), and it must
// by kShare of its deadline. One a model; thread-safe.
class LoadGate {
 public:
  // What is above it leaves room for the spread of durations: at the edge half the calls would be late.
  static constexpr double kShare = 0.7;

  // Work under way; ends when destroyed.
  class Ticket {
   public:
    Ticket(Ticket&& other) noexcept : gate_(other.gate_), work_(other.work_) { other.gate_ = nullptr; }
    Ticket& operator=(Ticket&&) = delete;
    ~Ticket() { End(absl::Now()); }
    void End(absl::Time now) {
      if (gate_ != nullptr) gate_->Leave(work_, now);
      gate_ = nullptr;
    }

   private:
    friend class LoadGate;
    Ticket(LoadGate* gate, int64_t work) : gate_(gate), work_(work) {}
    LoadGate* gate_;
    int64_t work_;
  };

  // `waiting`: something waits in the engine. kResourceExhausted, with the time in which enough work will
  // have ended as RetryInfo: nothing was taken.
  absl::StatusOr<Ticket> Enter(int64_t work, absl::Time deadline, bool waiting, absl::Time now = absl::Now());

 private:
  void Leave(int64_t work, absl::Time now);

  struct Ended {
    absl::Time time;
    int64_t work;
  };
  std::mutex mutex_;  // guards what follows
  int64_t under_way_ = 0;
  std::deque<Ended> ended_;  // the latest, since work was last under way without a break
  int64_t ended_work_ = 0;   // of ended_
};

}  // namespace almost
