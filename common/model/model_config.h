#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/model/rotary_embedding.h"
#include "nlohmann/json_fwd.hpp"

namespace almost {

// What stands between the two or three matrices of a layer's MLP.
enum class MlpKind {
  kSiluGated,  // down(silu(gate(x)) · up(x)), Shazeer 2020 (arXiv 2002.05202)
  kGelu,       // down(gelu(up(x))), Hendrycks and Gimpel 2016 (arXiv 1606.08415), by the error function
  kGeluTanh,   // the same by its approximation with tanh
};

// The shape of a decoder-only transformer, as config.json of a Hugging Face folder gives it.
// Families: Llama 1-3, Mistral, Qwen2/2.5 (biases on q, k, v), Qwen3 (RMS norm of q and k per head),
// GPT-NeoX and Pythia (LayerNorm, q, k and v in one matrix, a part of each head turns, attention and MLP side
// by side).
struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM", "GPTNeoXForCausalLM", "LlamaForSequenceClassification", …
  std::string model_type;    // "llama", "mistral", "qwen2", "qwen3", "gpt_neox"
  int vocab_size = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  // The context: max_position_embeddings, or a sliding window that is shorter. Up to there it hides nothing.
  int max_positions = 0;
  double rope_theta = 10000.0;
  RotaryEmbedding rotary;
  double norm_eps = 1e-5;
  bool layer_norm = false;         // LayerNorm with biases (Ba et al. 2016); false: RMSNorm
  bool parallel_residual = false;  // x + attention(norm(x)) + mlp(norm2(x)); false: one after the other
  MlpKind mlp = MlpKind::kSiluGated;
  bool attention_bias = false;  // on q, k and v
  bool attention_output_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;
  bool tie_word_embeddings = false;
  bool reward_head = false;  // one linear output without bias on the last token instead of the LM head
  std::vector<int> eos_token_ids;
  std::optional<int> bos_token_id;
  std::shared_ptr<const nlohmann::json>
      source;  // config.json as read; what we do not interpret is written back

  // What the family calls the tensors outside its layers, and what its layers' tensors' names begin with.
  struct Names {
    const char* embedding;
    const char* layers;      // followed by the layer's number
    const char* final_norm;  // without .weight and .bias
    const char* language_head;
    const char* reward_head;
  };
  const Names& names() const;
  bool is_neox() const { return model_type == "gpt_neox"; }

  // Parses config.json. kUnimplemented names a field whose value would change the computation and is not
  // supported (an unknown rope_scaling, activation, quantization_config, …): refused, never run wrong.
  static absl::StatusOr<ModelConfig> FromJson(const nlohmann::json& json);
  // config.json, and the end-of-text ids of generation_config.json, where chat models list more of them.
  static absl::StatusOr<ModelConfig> FromFolder(const std::filesystem::path& folder);
  // What transformers reads back to the same model.
  nlohmann::json ToJson() const;

  // The same model with a reward head in place of its LM head, or the other way round.
  ModelConfig WithRewardHead(bool wanted) const;

  int64_t NumParameters() const;
};

}  // namespace almost
