#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json_fwd.hpp"

namespace almost {

// The shape of a decoder-only transformer, as config.json of a Hugging Face folder gives it.
// Families: Llama 1-3, Mistral, Qwen2/2.5 (biases on q, k, v), Qwen3 (RMS norm of q and k per head).
struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM", "Qwen3ForCausalLM", "LlamaForSequenceClassification", …
  std::string model_type;    // "llama", "mistral", "qwen2", "qwen3"
  int vocab_size = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int max_positions = 0;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000.0;
  std::vector<double> rope_inverse_frequencies;  // [head_dim / 2]; scaling (linear, llama3) already applied
  bool attention_bias = false;                   // on q, k and v
  bool attention_output_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;
  bool tie_word_embeddings = false;
  bool reward_head = false;  // one linear output without bias on the last token instead of the LM head
  std::optional<int> sliding_window;
  std::vector<int> eos_token_ids;
  std::optional<int> bos_token_id;
  std::shared_ptr<const nlohmann::json>
      source;  // config.json as read; what we do not interpret is written back

  // Parses config.json. kUnimplemented names a field whose value would change the computation and is not
  // supported (an unknown rope_scaling, activation, quantization_config, …): refused, never run wrong.
  static absl::StatusOr<ModelConfig> FromJson(const nlohmann::json& json);
  static absl::StatusOr<ModelConfig> FromFolder(const std::filesystem::path& folder);
  // What transformers reads back to the same model.
  nlohmann::json ToJson() const;

  // The same model with a reward head in place of its LM head, or the other way round.
  ModelConfig WithRewardHead(bool wanted) const;

  int64_t NumParameters() const;
};

}  // namespace almost
