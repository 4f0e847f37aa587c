#pragma once

#include <torch/torch.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/model/transformer.h"
#include "services/trainer/core/job_spec.h"
#include "services/trainer/torch/gradients.h"
#include "services/trainer/torch/group.h"
#include "services/trainer/torch/optimizer.h"
#include "services/trainer/torch/workers.h"

// Shapes: M tokens, D hidden size.
namespace almost::trainer {

// A value function on the policy's hidden states, which it does not change: tanh layer, then one number.
struct ValueHead {
  torch::Tensor hidden_weight_DD, hidden_bias_D, output_weight_1D, output_bias_1;

  // The first layer random, the second zero: every value is 0 to begin with.
  static ValueHead Initialize(int64_t hidden_size, uint64_t seed, torch::Device device = torch::kCPU);

  // [M].
  torch::Tensor operator()(const torch::Tensor& hidden_MD) const;
};

// What returns are to be expected after each token: by a head on the policy's states, or by a model of its
// own that begins as the reward model, whose head is read at every token (Ouyang et al. 2022). Copies share
// parameters.
class ValueFunction {
 public:
  explicit ValueFunction(ValueHead head) : function_(std::move(head)) {}
  explicit ValueFunction(Transformer reward_model) : function_(std::move(reward_model)) {}

  // Same storage, own gradients.
  ValueFunction Replica() const;
  std::map<std::string, torch::Tensor> Parameters() const;
  // A reward model's outputs are x here and (x - mean) / deviation below: as rewards are normalised.
  void Normalize(double mean, double deviation);

  // Of the tokens at `rows` of the samples, of which the policy has the states `policy_hidden_MD`. [M],
  // float32.
  torch::Tensor operator()(const torch::Tensor& policy_hidden_MD, const PackedSamples& samples,
                           const torch::Tensor& rows_M) const;

 private:
  std::variant<ValueHead, Transformer> function_;
  double mean_ = 0, deviation_ = 1;
};

// Policy and, where there is one, value function under training, each with its optimizer, and threads with
// replicas of both, on this rank and the others of its group: as Learner, for two. Used by one thread, alike
// on all ranks.
class ActorCritic {
 public:
  // The group outlives this.
  ActorCritic(Transformer policy, std::optional<ValueFunction> values, const OptimizerSpec& optimizer,
              double value_learning_rate, int num_threads, Group& group);

  const Transformer& policy() const { return policy_; }
  // Null without one.
  const ValueFunction* values() const { return values_ ? &*values_ : nullptr; }
  // ValueFunction::Normalize; nothing without one.
  void NormalizeValues(double mean, double deviation);
  // Threads of all ranks.
  int num_workers() const { return workers_.size() * group_.size(); }

  // Descends the sum of `loss(policy, values, i)` over i < count: the value function (null where there is
  // none) at its constant rate, the policy at its rate times `factor`, or not at all when that is 0. Returns
  // the policy's gradient norm.
  double Update(size_t count, double factor,
                const std::function<torch::Tensor(const Transformer&, const ValueFunction*, size_t i)>& loss);
  // Calls `work` for every i < count, each on one rank, side by side, without gradients.
  void ForEach(size_t count, const std::function<void(size_t i)>& work);

  // Trained parameters and optimizer states; they live here.
  std::map<std::string, torch::Tensor> Tensors() const;

 private:
  Transformer policy_;
  std::optional<ValueFunction> values_;
  Group& group_;
  std::vector<Transformer> policies_;           // one a worker
  std::vector<ValueFunction> value_functions_;  // one a worker, or none
  Optimizer policy_optimizer_;
  std::optional<Optimizer> value_optimizer_;
  Workers workers_;
  std::unique_ptr<Gradients> gradients_;  // the policy's, then the value function's
};

}  // namespace almost::trainer
