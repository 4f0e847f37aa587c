#pragma once

#include <torch/torch.h>

#include <span>
#include <vector>

#include "common/model/transformer.h"
#include "services/trainer/core/datasets.h"

namespace almost::trainer {

// Packed samples and the tokens to be predicted in them; what samples with one prompt have before their
// targets is there once. Shapes: S samples, N tokens, M targets.
struct LabeledSamples {
  PackedSamples packed;
  torch::Tensor rows_M;     // int64: where each target is predicted from, one before where it stands
  torch::Tensor targets_M;  // int64
  torch::Tensor sample_M;   // int64: whose target it is

  // Its tensors on the device.
  static LabeledSamples Pack(std::span<const Sample* const> samples, torch::Device device = torch::kCPU);

  // log p of each target under the model, [M].
  torch::Tensor Logprobs(const Transformer& model, double temperature = 1.0) const;
  // Sums by sample, [S].
  torch::Tensor SumBySample(const torch::Tensor& values_M) const;
};

}  // namespace almost::trainer
