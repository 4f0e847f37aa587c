#pragma once

#include <torch/torch.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/model/llama.h"
#include "services/trainer/core/job_spec.h"
#include "services/trainer/torch/gradients.h"
#include "services/trainer/torch/group.h"
#include "services/trainer/torch/optimizer.h"
#include "services/trainer/torch/workers.h"

// Shapes: N packed tokens, M of them, D hidden size.
namespace almost::trainer {

// A value function on the policy's hidden states, which it does not change: tanh layer, then one number.
struct ValueHead {
  torch::Tensor hidden_weight_DD, hidden_bias_D, output_weight_1D, output_bias_1;

  // The first layer random, the second zero: every value is 0 to begin with.
  static ValueHead Initialize(int64_t hidden_size, uint64_t seed);
  ValueHead Replica() const;
  std::map<std::string, torch::Tensor> Parameters() const;

  // Of the states at `rows`, [M].
  torch::Tensor operator()(const torch::Tensor& hidden_ND, const torch::Tensor& rows_M) const;
};

// Policy and, where there is one, value function under training, each with its optimizer, and threads with
// replicas of both, on this rank and the others of its group: as Learner, for two. Used by one thread, alike
// on all ranks.
class ActorCritic {
 public:
  // The group outlives this.
  ActorCritic(Llama policy, std::optional<ValueHead> values, const OptimizerSpec& optimizer,
              double value_learning_rate, int num_threads, Group& group);

  const Llama& policy() const { return policy_; }
  // Null without one.
  const ValueHead* values() const { return values_ ? &*values_ : nullptr; }
  // Threads of all ranks.
  int num_workers() const { return workers_.size() * group_.size(); }

  // Descends the sum of `loss(policy, values, i)` over i < count: the value function (null where there is
  // none) at its constant rate, the policy at its rate times `factor`, or not at all when that is 0. Returns
  // the policy's gradient norm.
  double Update(size_t count, double factor,
                const std::function<torch::Tensor(const Llama&, const ValueHead*, size_t i)>& loss);
  // Calls `work` for every i < count, each on one rank, side by side, without gradients.
  void ForEach(size_t count, const std::function<void(size_t i)>& work);

  // Trained parameters and optimizer states; they live here.
  std::map<std::string, torch::Tensor> Tensors() const;

 private:
  Llama policy_;
  std::optional<ValueHead> values_;
  Group& group_;
  std::vector<Llama> policies_;         // one a worker
  std::vector<ValueHead> value_heads_;  // one a worker, or none
  Optimizer policy_optimizer_;
  std::optional<Optimizer> value_optimizer_;
  Workers workers_;
  std::unique_ptr<Gradients> gradients_;  // the policy's, then the value function's
};

}  // namespace almost::trainer
