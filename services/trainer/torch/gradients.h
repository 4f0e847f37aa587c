#pragma once

#include <torch/torch.h>

#include <cstddef>
#include <deque>
#include <functional>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "services/trainer/torch/group.h"
#include "services/trainer/torch/workers.h"

namespace almost::trainer {

// Whose each of the tensors is, so that ranks hold about equally much: the largest first, each to the rank
// with the least. A function of the sizes alone.
std::vector<int> ShareOut(std::span<const torch::Tensor> tensors, int num_ranks);

// Gradients of a sum of losses that threads and ranks compute side by side. Micro-batch i is computed by the
// (i mod n)-th of all n threads, those of rank 0 first; a thread adds up its own in order, a rank its
// threads', and the rank that owns a parameter those of all ranks, each in order: equal bits need an equal
// number of ranks and of threads, and with one thread a rank the bits are those of one process with that many
// threads. As soon as the last backward passes have a parameter's gradient the threads' parts become one, and
// where there are ranks it leaves for its owner, while those passes go on. Used by one thread.
class Gradients {
 public:
  // `leaves[w]` are the parameters as worker w's replica holds them, `owners` the rank of each. All must
  // outlive this, and this the leaves' backward passes.
  Gradients(Workers& workers, Group& group, std::vector<std::vector<torch::Tensor>> leaves,
            std::vector<int> owners);
  ~Gradients();
  Gradients(const Gradients&) = delete;
  Gradients& operator=(const Gradients&) = delete;

  // Of the sum of `loss(worker, i)` over i < count, in the order of the leaves, float32 where those are
  // 16-bit; undefined where another rank owns the parameter, zeros where no loss depends on it. `loss` is
  // called for this rank's part.
  std::vector<torch::Tensor> Sum(size_t count,
                                 const std::function<torch::Tensor(int worker, size_t i)>& loss);

 private:
  class Hook;
  // Parameters whose gradients travel together.
  struct Bucket {
    std::vector<size_t> members;
    Group::Exchange exchange;
    torch::Tensor sum;  // of this rank's members, end to end, once the exchange is over
  };

  // A backward pass of the worker's has the gradient of leaf p.
  void Accumulated(int worker, size_t p);
  // The worker's last one has.
  void Arrived(size_t p);
  // What a worker's backward passes have added up; undefined where they have not come by.
  torch::Tensor& SumOf(size_t worker, size_t p) const;
  // Starts the next bucket's exchange; a few are under way, since each holds what it sends and receives.
  void Start() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Waits for the first exchange that is not over.
  void Finish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  torch::Tensor SumOverWorkers(size_t p) const;
  // In the order in which rank 0's first backward pass had them.
  void FillBuckets() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Workers& workers_;
  Group& group_;
  const std::vector<std::vector<torch::Tensor>> leaves_;
  const std::vector<int> owners_;
  const bool is_wide_;  // sums are not the leaves' own gradients, which have 16 bits, but float32
  mutable std::vector<std::vector<torch::Tensor>> wide_sums_;  // by worker, written by it alone
  std::vector<char> is_last_pass_;                             // likewise

  absl::Mutex mutex_;
  std::vector<size_t> arrival_ ABSL_GUARDED_BY(mutex_);  // of all leaves, as they arrived
  std::vector<int> missing_ ABSL_GUARDED_BY(mutex_);     // workers from which leaf p has not arrived
  std::deque<Bucket> buckets_ ABSL_GUARDED_BY(mutex_);
  size_t started_ ABSL_GUARDED_BY(mutex_) = 0;   // buckets on their way or there, the first ones
  size_t finished_ ABSL_GUARDED_BY(mutex_) = 0;  // of those, whose exchange is over
};

}  // namespace almost::trainer
