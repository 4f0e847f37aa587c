#pragma once

#include <cstdint>
#include <span>

#include "common/model/model_config.h"
#include "services/trainer/core/job_spec.h"

namespace almost::trainer {

// Floating-point operations that a forward pass over sequences of these lengths needs, a multiplication and
// an addition counted as two: the layers' matrices, causal attention (half of the full one) and the head,
// where the final states of `rows` tokens are wanted; the others need no more of the last layer than queries,
// keys and values. What is padded does not count (PaLM, Chowdhery et al. 2022, appendix B).
double ForwardFlops(const ModelConfig& config, std::span<const int64_t> lengths, int64_t rows);

// What the forward and backward pass of a training step need, by what the forward pass does: three times as
// many, or twice where adapters are trained, since frozen weights get no gradient. What is computed again and
// the adapters' own, a few per cent, do not count.
double TrainingFlops(const MemorySpec& memory, double forward_flops);

}  // namespace almost::trainer
