#include "services/trainer/core/model_flops.h"

namespace almost::trainer {

double ForwardFlops(const ModelConfig& config, std::span<const int64_t> lengths, int64_t rows) {
  const double hidden = config.hidden_size, layers = config.num_layers;
  const double queries = static_cast<double>(config.num_heads) * config.head_dim;
  const double keys = static_cast<double>(config.num_kv_heads) * config.head_dim;
  const double mlp_matrices = config.mlp == MlpKind::kSiluGated ? 3 : 2;
  const double before = hidden * (queries + 2 * keys);  // attention
  const double after = hidden * queries + mlp_matrices * hidden * config.intermediate_size;
  const double head = hidden * (config.reward_head ? 1 : config.vocab_size);
  double multiply_adds = (after + head) * static_cast<double>(rows);
  for (const int64_t length : lengths) {
    const auto tokens = static_cast<double>(length);
    const double attention = queries * tokens * (tokens + 1);  // scores, and their use of values
    multiply_adds += layers * (before * tokens + attention) + (layers - 1) * after * tokens;
  }
  return 2 * multiply_adds;
}

double TrainingFlops(const MemorySpec& memory, double forward_flops) {
  return (memory.adapters ? 2 : 3) * forward_flops;
}

}  // namespace almost::trainer
