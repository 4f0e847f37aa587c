#include "common/model/model_config.h"

#include <algorithm>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/model/bounded_json.h"
#include "common/model/config_fields.h"
#include "nlohmann/json.hpp"

namespace almost {
namespace {

using nlohmann::json;

constexpr ModelConfig::Names kLlamaNames = {"model.embed_tokens.weight", "model.layers.", "model.norm",
                                            "lm_head.weight", "score.weight"};
constexpr ModelConfig::Names kNeoXNames = {"gpt_neox.embed_in.weight", "gpt_neox.layers.",
                                           "gpt_neox.final_layer_norm", "embed_out.weight", "score.weight"};

struct Family {
  const char* model_type;
  const char* prefix;  // of the architecture's name
  const ModelConfig::Names& names;
  bool qk_norm;
  // What transformers takes where config.json is silent; 0: nothing of its own.
  int kv_heads;
  int head_dim;
  int max_positions;
  int sliding_window;
};
constexpr Family kFamilies[] = {
    {"llama", "Llama", kLlamaNames, false, 0, 0, 2048, 0},
    {"mistral", "Mistral", kLlamaNames, false, 8, 0, 131072, 4096},
    {"qwen2", "Qwen2", kLlamaNames, false, 32, 0, 32768, 0},
    {"qwen3", "Qwen3", kLlamaNames, true, 32, 128, 32768, 0},
    {"gpt_neox", "GPTNeoX", kNeoXNames, false, 0, 0, 2048, 0},
};

bool IsNeoX(const Family& family) { return &family.names == &kNeoXNames; }

// The ids that a field has: one, several or none.
absl::StatusOr<std::vector<int>> TokenIds(absl::string_view file, const json& object, const char* name,
                                          int vocab_size) {
  std::vector<int> found;
  const json value = object.value(name, json());
  if (value.is_null()) return found;
  for (const json& id : value.is_array() ? value : json::array({value})) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": ", name, " must be in [0, vocab_size), got ", id.dump()));
    }
    found.push_back(id.get<int>());
  }
  return found;
}

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("config.json: ", what));
}

// The sliding window, or 0: every token sees all before it. Qwen's is off unless use_sliding_window,
// Mistral's on unless null.
absl::StatusOr<int> SlidingWindow(const Family& family, ConfigFields& fields, const json& object) {
  const absl::string_view type = family.model_type;
  const bool qwen = absl::StartsWith(type, "qwen");
  int window = 0;
  if (type == "mistral" && (!object.contains("sliding_window") || fields.Has("sliding_window"))) {
    window = fields.Int("sliding_window", family.sliding_window);
  } else if (qwen && fields.Bool("use_sliding_window", false) && fields.Has("sliding_window")) {
    window = fields.Int("sliding_window");
  }
  if (fields.Has("layer_types")) {
    for (const json& layer : object["layer_types"]) {
      if (layer == "full_attention" || (layer == "sliding_attention" && window > 0)) continue;
      return Unsupported("layer_types", layer, "full_attention");
    }
  }
  return window;
}

absl::StatusOr<MlpKind> ReadMlpKind(const Family& family, ConfigFields& fields) {
  if (!IsNeoX(family)) {
    if (!fields.Has("hidden_act") || fields["hidden_act"] == "silu") return MlpKind::kSiluGated;
    return Unsupported("hidden_act", fields["hidden_act"], "silu");
  }
  if (!fields.Has("hidden_act")) return MlpKind::kGelu;
  const json& name = fields["hidden_act"];
  if (name == "gelu" || name == "gelu_python") return MlpKind::kGelu;
  for (const char* tanh :
       {"gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"}) {
    if (name == tanh) return MlpKind::kGeluTanh;
  }
  return Unsupported("hidden_act", name, "gelu, gelu_new, gelu_fast, gelu_pytorch_tanh");
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::FromJson(const json& object) {
  if (!object.is_object()) return absl::InvalidArgumentError("config.json: must be an object");
  ModelConfig config;
  const json model_type = object.value("model_type", json());
  const Family* family = nullptr;
  for (const Family& known : kFamilies) {
    if (model_type == known.model_type) family = &known;
  }
  if (family == nullptr)
    return Unsupported("model_type", model_type, "llama, mistral, qwen2, qwen3, gpt_neox");
  config.model_type = family->model_type;

  const std::string causal = absl::StrCat(family->prefix, "ForCausalLM");
  const std::string classification = absl::StrCat(family->prefix, "ForSequenceClassification");
  const json architectures = object.value("architectures", json());
  config.reward_head = architectures == json::array({classification});
  config.architecture = config.reward_head ? classification : causal;
  if (!config.reward_head && !architectures.is_null() && architectures != json::array({causal})) {
    return Unsupported("architectures", architectures, absl::StrCat(causal, ", ", classification));
  }

  ConfigFields fields(object);
  const bool neox = IsNeoX(*family);
  config.vocab_size = fields.Int("vocab_size");
  config.hidden_size = fields.Int("hidden_size");
  config.intermediate_size = fields.Int("intermediate_size");
  config.num_layers = fields.Int("num_hidden_layers");
  config.num_heads = fields.Int("num_attention_heads");
  config.max_positions = fields.Int("max_position_embeddings", family->max_positions);
  config.tie_word_embeddings = fields.Bool("tie_word_embeddings", false);
  config.qk_norm = family->qk_norm;
  if (neox) {
    config.num_kv_heads = config.num_heads;
    config.norm_eps = fields.Number("layer_norm_eps", 1e-5);
    config.layer_norm = true;
    config.parallel_residual = fields.Bool("use_parallel_residual", true);
    config.attention_bias = config.attention_output_bias = fields.Bool("attention_bias", true);
    config.mlp_bias = true;
  } else {
    // Qwen2's biases are fixed; Mistral has none.
    const bool llama = config.model_type == "llama", qwen3 = config.model_type == "qwen3";
    config.num_kv_heads =
        fields.Int("num_key_value_heads", family->kv_heads > 0 ? family->kv_heads : config.num_heads);
    config.norm_eps = fields.Number("rms_norm_eps", 1e-6);
    config.attention_bias =
        llama || qwen3 ? fields.Bool("attention_bias", false) : config.model_type == "qwen2";
    config.attention_output_bias = (llama || qwen3) && config.attention_bias;
    config.mlp_bias = llama && fields.Bool("mlp_bias", false);
  }
  ALMOST_RETURN_IF_ERROR(fields.status());
  const int even_share = config.hidden_size / config.num_heads;
  config.head_dim = fields.Int("head_dim", family->head_dim > 0 ? family->head_dim : even_share);
  ALMOST_RETURN_IF_ERROR(fields.status());
  if (neox && (config.head_dim != even_share || config.hidden_size % config.num_heads != 0)) {
    return Malformed("num_attention_heads must divide hidden_size into heads of head_dim");
  }

  if (config.num_heads % config.num_kv_heads != 0) {
    return Malformed(absl::StrCat("num_attention_heads (", config.num_heads,
                                  ") must be a multiple of num_key_value_heads (", config.num_kv_heads, ")"));
  }
  if (!neox && config.head_dim % 2 != 0) {
    return Malformed(absl::StrCat("head_dim must be even, got ", config.head_dim));
  }
  ALMOST_ASSIGN_OR_RETURN(config.mlp, ReadMlpKind(*family, fields));
  if (fields.Has("quantization_config")) return Unsupported("quantization_config", "set", "none");
  if (config.reward_head) {
    // transformers writes one label as id2label with one entry and leaves num_labels out.
    const int labels =
        fields.Has("id2label") ? static_cast<int>(object["id2label"].size()) : fields.Int("num_labels", 2);
    if (labels != 1) return Unsupported("num_labels", labels, "1");
  }
  ALMOST_ASSIGN_OR_RETURN(config.eos_token_ids,
                          TokenIds("config.json", object, "eos_token_id", config.vocab_size));
  ALMOST_ASSIGN_OR_RETURN(const std::vector<int> bos,
                          TokenIds("config.json", object, "bos_token_id", config.vocab_size));
  if (!bos.empty()) config.bos_token_id = bos.back();
  // transformers 5 writes theta, the part that turns and the scaling in one object.
  const char* rope = fields.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const json scaling = object.value(rope, json());
  if (!scaling.is_null() && !scaling.is_object()) return Malformed(absl::StrCat(rope, " must be an object"));
  const json none = json::object();
  ConfigFields parameters(scaling.is_null() ? none : scaling);
  config.rope_theta =
      parameters.Number("rope_theta", fields.Number(neox ? "rotary_emb_base" : "rope_theta", 10000.0));
  const double part =
      parameters.Number("partial_rotary_factor",
                        fields.Number(neox ? "rotary_pct" : "partial_rotary_factor", neox ? 0.25 : 1.0));
  ALMOST_RETURN_IF_ERROR(fields.status());
  ALMOST_RETURN_IF_ERROR(parameters.status());
  if (!neox && part != 1.0) return Unsupported("partial_rotary_factor", part, "1");
  const int rotary_dims = static_cast<int>(config.head_dim * part);
  if (rotary_dims < 2 || rotary_dims > config.head_dim || rotary_dims % 2 != 0) {
    return Malformed(
        absl::StrCat("rotary_pct must make an even part of head_dim (", config.head_dim, "), got ", part));
  }
  ALMOST_ASSIGN_OR_RETURN(
      config.rotary, RotaryEmbedding::Create(rotary_dims, config.rope_theta, config.max_positions, scaling));
  ALMOST_ASSIGN_OR_RETURN(const int window, SlidingWindow(*family, fields, object));
  ALMOST_RETURN_IF_ERROR(fields.status());
  if (window > 0) config.max_positions = std::min(config.max_positions, window);
  config.source = std::make_shared<const json>(object);
  return config;
}

const ModelConfig::Names& ModelConfig::names() const { return is_neox() ? kNeoXNames : kLlamaNames; }

absl::StatusOr<ModelConfig> ModelConfig::FromFolder(const std::filesystem::path& folder) {
  ALMOST_ASSIGN_OR_RETURN(const json object, ReadBoundedJson(folder / "config.json"));
  absl::StatusOr<ModelConfig> config = FromJson(object);
  if (!config.ok()) return Annotate(config.status(), folder.string());
  const absl::StatusOr<json> generation = ReadBoundedJson(folder / "generation_config.json");
  if (absl::IsNotFound(generation.status())) return config;
  ALMOST_RETURN_IF_ERROR(generation.status());
  if (!generation->is_object()) {
    return absl::DataLossError(
        absl::StrCat((folder / "generation_config.json").string(), " is not a JSON object"));
  }
  const absl::StatusOr<std::vector<int>> ends =
      TokenIds("generation_config.json", *generation, "eos_token_id", config->vocab_size);
  if (!ends.ok()) return Annotate(ends.status(), folder.string());
  for (const int id : *ends) {
    if (!absl::c_linear_search(config->eos_token_ids, id)) config->eos_token_ids.push_back(id);
  }
  return config;
}

json ModelConfig::ToJson() const {
  // Whatever the file said that is nothing to us (initializer_range, transformers_version, …) stays.
  json object = source == nullptr ? json::object() : *source;
  object["architectures"] = {architecture};
  object["model_type"] = model_type;
  object["vocab_size"] = vocab_size;
  object["hidden_size"] = hidden_size;
  object["intermediate_size"] = intermediate_size;
  object["num_hidden_layers"] = num_layers;
  object["num_attention_heads"] = num_heads;
  object["tie_word_embeddings"] = tie_word_embeddings;
  object.emplace("max_position_embeddings", max_positions);  // there it may exceed ours
  if (!is_neox()) {
    object["rope_theta"] = rope_theta;
    object["num_key_value_heads"] = num_kv_heads;
    object["head_dim"] = head_dim;
    object["rms_norm_eps"] = norm_eps;
    object["hidden_act"] = "silu";
  }
  if (model_type == "llama" || model_type == "qwen3") object["attention_bias"] = attention_bias;
  if (model_type == "llama") object["mlp_bias"] = mlp_bias;
  if (!eos_token_ids.empty()) {
    object["eos_token_id"] = eos_token_ids.size() == 1 ? json(eos_token_ids[0]) : json(eos_token_ids);
  }
  if (bos_token_id) object["bos_token_id"] = *bos_token_id;
  if (reward_head) {
    object["num_labels"] = 1;
    object["id2label"] = {{"0", "LABEL_0"}};
    object["label2id"] = {{"LABEL_0", 0}};
  }
  return object;
}

ModelConfig ModelConfig::WithRewardHead(bool wanted) const {
  ModelConfig changed = *this;
  const size_t prefix = architecture.find("For");
  changed.architecture =
      architecture.substr(0, prefix) + (wanted ? "ForSequenceClassification" : "ForCausalLM");
  changed.reward_head = wanted;
  return changed;
}

int64_t ModelConfig::NumParameters() const {
  const int64_t d = hidden_size, ff = intermediate_size;
  const int64_t q = int64_t{num_heads} * head_dim, kv = int64_t{num_kv_heads} * head_dim;
  const int64_t up = mlp == MlpKind::kSiluGated ? 2 : 1, norm = layer_norm ? 2 * d : d;
  int64_t layer = 2 * norm + d * q + 2 * d * kv + q * d + (up + 1) * d * ff;
  if (attention_bias) layer += q + 2 * kv;
  if (attention_output_bias) layer += d;
  if (mlp_bias) layer += up * ff + d;
  if (qk_norm) layer += int64_t{2} * head_dim;
  const int64_t head = reward_head ? d : tie_word_embeddings ? 0 : int64_t{vocab_size} * d;
  return int64_t{vocab_size} * d + num_layers * layer + norm + head;
}

}  // namespace almost
