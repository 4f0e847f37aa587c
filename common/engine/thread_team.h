#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace almost::engine {

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

}  // namespace almost::engine
