#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "torch/csrc/distributed/c10d/Backend.hpp"

namespace almost::trainer {

// Thrown by a Group's methods: a rank is gone, or was silent for the group's time limit.
class RankLost : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The processes that train one job together, rank 0 to size - 1, on PyTorch's c10d: Gloo carries what lies in
// main memory, NCCL what lies on GPUs where LibTorch has them. All ranks call the same methods in the same
// order, one call at a time; each returns when this rank's part is done, and throws RankLost. After that the
// group is of no more use.
class Group {
 public:
  // Of one process; its methods have nothing to do.
  Group() = default;
  // `gpu` may be null where there are none.
  Group(int rank, int size, c10::intrusive_ptr<c10d::Backend> cpu, c10::intrusive_ptr<c10d::Backend> gpu);

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool lost() const { return lost_; }

  // Root's values into everybody's tensors of the same names, shapes and dtypes.
  void Broadcast(const std::vector<torch::Tensor>& tensors, int root);
  // Rank 0's bytes.
  std::string Broadcast(const std::string& bytes);
  // Everybody's, by rank.
  std::vector<std::string> Gather(const std::string& bytes);
  // Of values that one rank at most has set, the others holding 0: afterwards everybody has them, exactly.
  void Merge(std::span<double> values);
  // The tensor's values from one rank to another, by way of main memory; the others have no part in it.
  void Move(const torch::Tensor& tensor, int from, int to);

  // Sends the pieces, flat and of one dtype, end to end: the first `to[0]` elements to rank 0, the next
  // `to[1]` to rank 1; and takes `from[r]` elements of each rank r. Starts, and may be followed by other
  // calls before it is waited for.
  struct Exchange {
    std::vector<torch::Tensor> received;  // by rank, once Wait has returned
    torch::Tensor sent, storage;
    c10::intrusive_ptr<c10d::Work> work;
  };
  Exchange StartExchange(const std::vector<torch::Tensor>& pieces, std::vector<int64_t> to,
                         std::vector<int64_t> from);
  void Wait(Exchange& exchange) { Wait(exchange.work); }

 private:
  c10d::Backend& BackendOf(const torch::Tensor& tensor) const { return tensor.is_cuda() ? *gpu_ : *cpu_; }
  // Throws RankLost in place of what c10d throws.
  template <typename Call>
  auto Guard(const Call& call);
  void Wait(const c10::intrusive_ptr<c10d::Work>& work);

  int rank_ = 0;
  int size_ = 1;
  bool lost_ = false;
  c10::intrusive_ptr<c10d::Backend> cpu_, gpu_;
};

}  // namespace almost::trainer
