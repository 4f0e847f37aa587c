#pragma once

#include <cstdint>
#include <span>

#include "common/model/model_config.h"

namespace almost::trainer {

// Floating-point operations that a forward pass over sequences of these lengths needs, a multiplication and
// an addition counted as two: the layers' matrices, causal attention (half of the full one) and the
// vocabulary head on `head_rows` tokens. A training step needs three times as many. What is recomputed or
// padded does not count (PaLM, Chowdhery et al. 2022, appendix B).
double ForwardFlops(const ModelConfig& config, std::span<const int64_t> lengths, int64_t head_rows);

}  // namespace almost::trainer
