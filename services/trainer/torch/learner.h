#pragma once

#include <torch/torch.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "common/model/llama.h"
#include "services/trainer/core/job_spec.h"
#include "services/trainer/torch/optimizer.h"
#include "services/trainer/torch/workers.h"

namespace almost::trainer {

// A model under training with its replicas, optimizer and threads. Used by one thread.
class Learner {
 public:
  Learner(Llama model, const OptimizerSpec& optimizer, int num_threads);

  const Llama& model() const { return model_; }

  // Descends the sum of `loss(replica, i)` over i < count, which may run side by side. Returns the gradient
  // norm before clipping.
  double Update(size_t count, double learning_rate_factor,
                const std::function<torch::Tensor(const Llama& replica, size_t i)>& loss);
  // Calls `work` for every i < count, side by side, without gradients.
  void ForEach(size_t count, const std::function<void(size_t i)>& work);

  // Parameters and optimizer state; they live here.
  std::map<std::string, torch::Tensor> Tensors() const;

 private:
  Llama model_;
  std::vector<Llama> replicas_;  // one a worker
  std::vector<std::vector<torch::Tensor>> leaves_;
  Optimizer optimizer_;
  Workers workers_;
};

}  // namespace almost::trainer
