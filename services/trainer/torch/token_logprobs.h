#pragma once

#include <torch/torch.h>

// Shapes: M tokens, D hidden size, V vocabulary.
namespace almost::trainer {

// log p(targets) under softmax(hidden · headᵀ / temperature), in nats, [M]. Logits are computed part by part,
// and those beyond 64 MiB again in the backward pass (16 MiB where LibTorch computes), so that a large
// vocabulary costs time and not memory. Of bfloat16 states and weights the softmax and the results are
// float32.
torch::Tensor TokenLogprobs(const torch::Tensor& hidden_MD, const torch::Tensor& head_VD,
                            const torch::Tensor& targets_M, double temperature = 1.0);

// The entropy of the same distributions, in nats, [M]; without gradients.
torch::Tensor TokenEntropies(const torch::Tensor& hidden_MD, const torch::Tensor& head_VD,
                             double temperature = 1.0);

}  // namespace almost::trainer
