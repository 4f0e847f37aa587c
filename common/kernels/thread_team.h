#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace almost {

// Threads that run loops together: a caller and its helpers. Helpers wait for the next loop awake for a
// while, since the loops of a step follow each other within microseconds, and then asleep. A loop does not
// wait for a helper that has not woken up. One caller at a time.
class ThreadTeam {
 public:
  // `num_threads` ≥ 1, the caller among them.
  explicit ThreadTeam(int num_threads);
  ~ThreadTeam();

  int size() const { return static_cast<int>(helpers_.size()) + 1; }

  // Calls body(thread, begin, end) for pieces of at most `grain` that cover [0, count), in any order, and
  // returns when all are done; 0 ≤ thread < size(), the caller is 0. What one call can do is done by the
  // caller alone.
  using Body = absl::FunctionRef<void(int thread, int begin, int end)>;
  void For(int count, int grain, Body body);

 private:
  struct Loop {
    Body body;
    int count;
    int grain;
    std::atomic<int> next{0};
  };

  void Help(int thread);
  static void Work(Loop& loop, int thread);

  std::atomic<Loop*> loop_{nullptr};  // open to helpers
  std::atomic<int> inside_{0};        // helpers that may be at work in it
  std::atomic<uint32_t> epoch_{0};    // grows with each loop
  std::atomic<bool> stopping_{false};
  std::vector<std::jthread> helpers_;
};

// A team for all engines of a process: who has the turn computes with all of its threads, the others wait in
// the order in which they asked. So engines that have work make a step each in rounds, a step waits for at
// most one step of each other, and no more threads compute than the team has. Thread-safe.
class SharedTeam {
 public:
  // `num_threads` ≥ 1.
  explicit SharedTeam(int num_threads) : team_(num_threads) {}

  // Ends when destroyed.
  class Turn {
   public:
    explicit Turn(SharedTeam& shared);
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn();

   private:
    SharedTeam& shared_;
  };

  // To be used by who has the turn.
  ThreadTeam& team() { return team_; }
  int num_waiting() const;

 private:
  ThreadTeam team_;
  mutable std::mutex mutex_;  // guards what follows
  bool taken_ = false;
  std::deque<std::condition_variable*> waiting_;  // of turns, first come first
};

// Processors that this process may use: of its affinity, and of the quota of its control group, rounded up.
int UsableProcessors();

}  // namespace almost
