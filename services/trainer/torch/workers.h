#pragma once

#include <torch/torch.h>

#include <cstddef>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace almost::trainer {

// Threads that compute side by side, each with one intra-op thread. Driven by one thread.
class Workers {
 public:
  explicit Workers(int num_threads);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls work(0), …, work(size() - 1) side by side, work(0) on the calling thread; returns when all have.
  // Throws what the lowest-numbered one that threw has thrown.
  void Run(const std::function<void(int worker)>& work);

 private:
  void Loop(int worker);

  absl::Mutex mutex_;
  const std::function<void(int)>* work_ ABSL_GUARDED_BY(mutex_) = nullptr;
  int64_t round_ ABSL_GUARDED_BY(mutex_) = 0;
  int unfinished_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::exception_ptr> thrown_;  // one a worker, written by it alone
  std::vector<std::thread> threads_;
};

}  // namespace almost::trainer
