#pragma once

#include <torch/torch.h>

#include "common/model/llama.h"
#include "services/trainer/torch/actor_critic.h"
#include "services/trainer/torch/labeled_samples.h"

// Shapes: M generated tokens of a micro-batch.
namespace almost::trainer {

// What was noted of the generated tokens before the first update.
struct PpoTargets {
  torch::Tensor logprobs_M;
  torch::Tensor values_M;
  torch::Tensor advantages_M;  // whitened over the whole iteration
  torch::Tensor returns_M;
};

struct PpoLosses {
  torch::Tensor policy_M;   // ClippedPolicyLosses
  torch::Tensor value_M;    // ClippedValueLosses
  torch::Tensor clipped_M;  // bool: the ratio is outside its range
};

PpoLosses ComputePpoLosses(const Llama& policy, const ValueHead& values, const LabeledSamples& samples,
                           const PpoTargets& targets, double clip_range, double value_clip_range,
                           double temperature);

}  // namespace almost::trainer
