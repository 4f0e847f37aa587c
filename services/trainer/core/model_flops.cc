#include "services/trainer/core/model_flops.h"

namespace almost::trainer {

double ForwardFlops(const ModelConfig& config, std::span<const int64_t> lengths, int64_t head_rows) {
  const double hidden = config.hidden_size;
  const double queries = static_cast<double>(config.num_heads) * config.head_dim;
  const double keys = static_cast<double>(config.num_kv_heads) * config.head_dim;
  const double mlp_matrices = config.mlp == MlpKind::kSiluGated ? 3 : 2;
  const double matrices =
      hidden * (2 * queries + 2 * keys) + mlp_matrices * hidden * config.intermediate_size;
  double layer = 0;
  for (const int64_t length : lengths) {
    const auto tokens = static_cast<double>(length);
    layer += 2 * matrices * tokens + 2 * queries * tokens * (tokens + 1);  // scores, and their use of values
  }
  return config.num_layers * layer + 2 * hidden * config.vocab_size * static_cast<double>(head_rows);
}

double TrainingFlops(const MemorySpec& memory, double forward_flops) {
  return (memory.adapters ? 2 : 3) * forward_flops;
}

}  // namespace almost::trainer
