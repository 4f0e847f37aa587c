#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace almost {

// Refuses at once the calls that a model could not answer in time: under overload a queue in the order of
// arrival would otherwise compute what nobody waits for any more. Work is in tokens or any other unit that a
// model's calls have in common. While nothing waits in the engine every call is taken; else the work under
// way, at the rate at which work has lately been answered, says when a new call would end (Little's law), and
// it must by kShare of its deadline. Calls are counted too, over all models: gRPC itself refuses what finds
// no thread, and does not say when to come again. One a model; thread-safe.
class LoadGate {
 public:
  // Of a server's threads, what calls under way may hold: the others refuse what is too much.
  static int MostCalls(int max_threads) { return std::max(1, max_threads * 3 / 4); }

  // The calls under way of gates that share it.
  struct Calls {
    explicit Calls(int most) : limit(most) {}
    const int limit;
    std::atomic<int> under_way = 0;
  };

  explicit LoadGate(std::shared_ptr<Calls> calls) : calls_(std::move(calls)) {}

  // What is above it leaves room for the spread of durations: at the edge half the calls would be late.
  static constexpr double kShare = 0.7;

  // Work under way; given up when destroyed.
  class Ticket {
   public:
    Ticket(Ticket&& other) noexcept : gate_(other.gate_), work_(other.work_), deadline_(other.deadline_) {
      other.gate_ = nullptr;
    }
    Ticket& operator=(Ticket&&) = delete;
    ~Ticket() { GiveUp(); }
    // The call is answered. What ends otherwise says nothing of how fast work is done.
    void Answered(absl::Time now = absl::Now()) { Leave(true, now); }
    void GiveUp(absl::Time now = absl::Now()) { Leave(false, now); }
    // How long to wait between two looks for whether the client is still there. gRPC's synchronous calls have
    // to be asked, which costs some 30 µs: all calls under way together ask 1,000 times a second at most.
    absl::Duration TimeBetweenLooks() const {
      return std::max(absl::Milliseconds(20), absl::Milliseconds(1) * gate_->calls_->under_way.load());
    }

   private:
    friend class LoadGate;
    Ticket(LoadGate* gate, int64_t work, absl::Time deadline)
        : gate_(gate), work_(work), deadline_(deadline) {}
    void Leave(bool answered, absl::Time now) {
      if (gate_ != nullptr) gate_->Leave(work_, answered, !answered && now >= deadline_, now);
      gate_ = nullptr;
    }
    LoadGate* gate_;
    int64_t work_;
    absl::Time deadline_;
  };

  // `waiting`: something waits in the engine. kResourceExhausted, with the time in which enough work will
  // have ended as RetryInfo: nothing was taken. The gate must outlive the ticket.
  absl::StatusOr<Ticket> Enter(int64_t work, absl::Time deadline, bool waiting, absl::Time now = absl::Now());

 private:
  // Until the work under way has ended, at the rate of late. 0: not known; infinite: not known, and calls
  // have been late. Then nothing is taken until nothing is under way: a queue in which all are late stays so.
  absl::Duration TimeOfWorkUnderWay(absl::Time now) const;
  void Leave(int64_t work, bool answered, bool late, absl::Time now);

  struct Ended {
    absl::Time time;
    int64_t work;
  };
  const std::shared_ptr<Calls> calls_;
  std::mutex mutex_;  // guards what follows
  int64_t under_way_ = 0;
  // Since work was last under way without a break: the latest that were answered, their work, and how many
  // missed their deadline.
  std::deque<Ended> ended_;
  int64_t ended_work_ = 0;
  size_t num_late_ = 0;
};

}  // namespace almost
