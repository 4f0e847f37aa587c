#pragma once

#include <torch/torch.h>

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/model/transformer.h"
#include "services/trainer/core/job_spec.h"
#include "services/trainer/torch/gradients.h"
#include "services/trainer/torch/group.h"
#include "services/trainer/torch/optimizer.h"
#include "services/trainer/torch/workers.h"

namespace almost::trainer {

// A model under training with its replicas, optimizer and threads, on this rank and the others of its group.
// Used by one thread, alike on all ranks.
class Learner {
 public:
  // The group outlives this.
  Learner(Transformer model, const OptimizerSpec& optimizer, int num_threads, Group& group);

  const Transformer& model() const { return model_; }
  // Threads of all ranks.
  int num_workers() const { return workers_.size() * group_.size(); }

  // Descends the sum of `loss(replica, i)` over i < count, which run side by side, each on one rank. Returns
  // the gradient norm before clipping.
  double Update(size_t count, double learning_rate_factor,
                const std::function<torch::Tensor(const Transformer& replica, size_t i)>& loss);
  // Calls `work` for every i < count, each on one rank, side by side, without gradients.
  void ForEach(size_t count, const std::function<void(size_t i)>& work);
  // Of numbers that the calls for each i left in places of their own, the rest being 0: gives them to all
  // ranks.
  void Merge(std::span<double> values) { group_.Merge(values); }

  // Trained parameters and optimizer state; they live here.
  std::map<std::string, torch::Tensor> Tensors() const;

 private:
  Transformer model_;
  Group& group_;
  std::vector<Transformer> replicas_;  // one a worker
  Optimizer optimizer_;
  Workers workers_;
  Gradients gradients_;
};

}  // namespace almost::trainer
