#include "services/trainer/torch/workers.h"

namespace almost::trainer {

Workers::Workers(int num_threads) : thrown_(num_threads) {
  for (int worker = 1; worker < num_threads; ++worker)
    threads_.emplace_back([this, worker] { Loop(worker); });
}

Workers::~Workers() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

void Workers::Loop(int worker) {
  {
    // OpenMP counts threads for each of ours. One after another: in a child of a process that has computed,
    // the first call replaces LibTorch's thread pool, and another would find none meanwhile.
    static absl::Mutex mutex(absl::kConstInit);
    const absl::MutexLock lock(&mutex);
    at::set_num_threads(1);
  }
  int64_t done = 0;
  while (true) {
    const std::function<void(int)>* work;
    {
      absl::MutexLock lock(&mutex_);
      const auto ready = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return stopping_ || round_ > done; };
      mutex_.Await(absl::Condition(&ready));
      if (stopping_) return;
      done = round_;
      work = work_;
    }
    try {
      (*work)(worker);
    } catch (...) {
      thrown_[worker] = std::current_exception();
    }
    absl::MutexLock lock(&mutex_);
    --unfinished_;
  }
}

void Workers::Run(const std::function<void(int)>& work) {
  {
    absl::MutexLock lock(&mutex_);
    work_ = &work;
    unfinished_ = static_cast<int>(threads_.size());
    ++round_;
  }
  try {
    work(0);
  } catch (...) {
    thrown_[0] = std::current_exception();
  }
  absl::MutexLock lock(&mutex_);
  const auto finished = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return unfinished_ == 0; };
  mutex_.Await(absl::Condition(&finished));
  std::exception_ptr first;
  for (std::exception_ptr& thrown : thrown_) {
    if (first == nullptr) first = thrown;
    thrown = nullptr;
  }
  if (first != nullptr) std::rethrow_exception(first);
}

}  // namespace almost::trainer
