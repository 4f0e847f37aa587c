#pragma once

#include <torch/torch.h>

#include "common/model/transformer.h"
#include "services/trainer/torch/actor_critic.h"
#include "services/trainer/torch/labeled_samples.h"

// Shapes: M generated tokens of a micro-batch.
namespace almost::trainer {

// What was noted of the generated tokens before the first update.
struct PpoTargets {
  torch::Tensor logprobs_M;
  torch::Tensor advantages_M;         // of PPO whitened over the whole iteration, of GRPO by group
  torch::Tensor values_M, returns_M;  // with a value function
};

struct PpoLosses {
  torch::Tensor policy_M;   // ClippedPolicyLosses
  torch::Tensor value_M;    // ClippedValueLosses; undefined without a value function
  torch::Tensor clipped_M;  // bool: the ratio is outside its range
};

// `values` is null without a value function.
PpoLosses ComputePpoLosses(const Transformer& policy, const ValueFunction* values,
                           const LabeledSamples& samples, const PpoTargets& targets, double clip_range,
                           double value_clip_range, double temperature);

}  // namespace almost::trainer
