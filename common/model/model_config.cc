#include "common/model/model_config.h"

#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/model/bounded_json.h"
#include "nlohmann/json.hpp"

namespace almost {
namespace {

using nlohmann::json;

struct Family {
  const char* model_type;
  const char* prefix;  // of the architecture's name
  bool qk_norm;
  // What transformers takes where config.json is silent; 0: nothing of its own.
  int kv_heads;
  int head_dim;
  int max_positions;
  int sliding_window;
};
constexpr Family kFamilies[] = {
    {"llama", "Llama", false, 0, 0, 2048, 0},
    {"mistral", "Mistral", false, 8, 0, 131072, 4096},
    {"qwen2", "Qwen2", false, 32, 0, 32768, 0},
    {"qwen3", "Qwen3", true, 32, 128, 32768, 0},
};

absl::Status Unsupported(absl::string_view field, const json& value, absl::string_view supported) {
  return absl::UnimplementedError(
      absl::StrCat("config.json: ", field, " is ", value.dump(), "; supported: ", supported));
}

// Reads fields and keeps the first complaint, so that the caller reads on and asks once.
class Fields {
 public:
  explicit Fields(const json& object) : object_(object) {}

  bool Has(const char* name) const { return object_.contains(name) && !object_[name].is_null(); }
  const json& operator[](const char* name) const { return object_.at(name); }

  // A fallback of 0 is none.
  int Int(const char* name, int fallback = 0) {
    if (!Has(name)) return fallback > 0 ? fallback : Complain(name, "is missing");
    const json& value = object_[name];
    if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > (int64_t{1} << 30)) {
      return Complain(name, absl::StrCat("must be a positive integer, got ", value.dump()));
    }
    return value.get<int>();
  }
  // A fallback of 0 is none.
  double Number(const char* name, double fallback = 0) {
    if (!Has(name)) return fallback > 0 ? fallback : Complain(name, "is missing");
    const json& value = object_[name];
    if (!value.is_number() || !(value.get<double>() > 0)) {
      return Complain(name, absl::StrCat("must be a positive number, got ", value.dump()));
    }
    return value.get<double>();
  }
  bool Bool(const char* name, bool fallback) {
    if (!Has(name)) return fallback;
    if (!object_[name].is_boolean()) return Complain(name, "must be true or false") != 0;
    return object_[name].get<bool>();
  }
  const absl::Status& status() const { return status_; }

 private:
  int Complain(const char* name, absl::string_view what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat("config.json: ", name, " ", what));
    return 0;
  }
  const json& object_;
  absl::Status status_;
};

// Frequencies of rotary position embedding (Su et al. 2021), with the scaling that config.json names.
absl::Status SetRope(const json& scaling, ModelConfig& config) {
  const int half = config.head_dim / 2;
  std::vector<double>& frequencies = config.rope_inverse_frequencies;
  frequencies.resize(half);
  for (int i = 0; i < half; ++i) {
    frequencies[i] = 1.0 / std::pow(config.rope_theta, 2.0 * i / config.head_dim);
  }
  if (scaling.is_null()) return absl::OkStatus();
  const json type = scaling.contains("rope_type") ? scaling["rope_type"] : scaling.value("type", json());
  Fields fields(scaling);
  if (type == "default") return absl::OkStatus();
  const double factor = fields.Number("factor");
  if (type == "linear") {
    for (double& frequency : frequencies) frequency /= factor;
  } else if (type == "llama3") {
    // Llama 3.1: wavelengths beyond the original context are slowed by `factor`, short ones left, between
    // blended.
    const double low = fields.Number("low_freq_factor");
    const double high = fields.Number("high_freq_factor");
    const double original = fields.Int("original_max_position_embeddings");
    ALMOST_RETURN_IF_ERROR(fields.status());
    if (!(high > low)) {
      return absl::InvalidArgumentError(
          "config.json: rope_scaling.high_freq_factor must exceed low_freq_factor");
    }
    for (double& frequency : frequencies) {
      const double wavelength = 2.0 * std::numbers::pi / frequency;
      if (wavelength < original / high) continue;
      if (wavelength > original / low) {
        frequency /= factor;
      } else {
        const double smooth = (original / wavelength - low) / (high - low);
        frequency = (1.0 - smooth) * frequency / factor + smooth * frequency;
      }
    }
  } else {
    return Unsupported("rope_scaling.rope_type", type, "default, linear, llama3");
  }
  return fields.status();
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
  if (family == nullptr) return Unsupported("model_type", model_type, "llama, mistral, qwen2, qwen3");
  config.model_type = family->model_type;

  const std::string causal = absl::StrCat(family->prefix, "ForCausalLM");
  const std::string classification = absl::StrCat(family->prefix, "ForSequenceClassification");
  const json architectures = object.value("architectures", json());
  config.reward_head = architectures == json::array({classification});
  config.architecture = config.reward_head ? classification : causal;
  if (!config.reward_head && !architectures.is_null() && architectures != json::array({causal})) {
    return Unsupported("architectures", architectures, absl::StrCat(causal, ", ", classification));
  }

  Fields fields(object);
  config.vocab_size = fields.Int("vocab_size");
  config.hidden_size = fields.Int("hidden_size");
  config.intermediate_size = fields.Int("intermediate_size");
  config.num_layers = fields.Int("num_hidden_layers");
  config.num_heads = fields.Int("num_attention_heads");
  config.num_kv_heads =
      fields.Int("num_key_value_heads", family->kv_heads > 0 ? family->kv_heads : config.num_heads);
  config.max_positions = fields.Int("max_position_embeddings", family->max_positions);
  config.rms_norm_eps = fields.Number("rms_norm_eps", 1e-6);
  config.rope_theta = fields.Number("rope_theta", 10000.0);
  // Qwen2's are fixed; Mistral has none.
  const bool llama = config.model_type == "llama", qwen3 = config.model_type == "qwen3";
  config.attention_bias =
      llama || qwen3 ? fields.Bool("attention_bias", false) : config.model_type == "qwen2";
  config.attention_output_bias = (llama || qwen3) && config.attention_bias;
  config.mlp_bias = llama && fields.Bool("mlp_bias", false);
  config.qk_norm = family->qk_norm;
  config.tie_word_embeddings = fields.Bool("tie_word_embeddings", false);
  ALMOST_RETURN_IF_ERROR(fields.status());
  config.head_dim =
      fields.Int("head_dim", family->head_dim > 0 ? family->head_dim : config.hidden_size / config.num_heads);
  ALMOST_RETURN_IF_ERROR(fields.status());

  if (config.num_heads % config.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: num_attention_heads (", config.num_heads,
                                                   ") must be a multiple of num_key_value_heads (",
                                                   config.num_kv_heads, ")"));
  }
  if (config.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: head_dim must be even, got ", config.head_dim));
  }
  if (fields.Has("hidden_act") && object["hidden_act"] != "silu") {
    return Unsupported("hidden_act", object["hidden_act"], "silu");
  }
  if (fields.Has("quantization_config")) return Unsupported("quantization_config", "set", "none");
  if (fields.Has("partial_rotary_factor") && object["partial_rotary_factor"] != 1.0) {
    return Unsupported("partial_rotary_factor", object["partial_rotary_factor"], "1");
  }
  if (config.reward_head) {
    // transformers writes one label as id2label with one entry and leaves num_labels out.
    const int labels =
        fields.Has("id2label") ? static_cast<int>(object["id2label"].size()) : fields.Int("num_labels", 2);
    if (labels != 1) return Unsupported("num_labels", labels, "1");
  }
  // Qwen's window is off unless use_sliding_window; Mistral's is on unless null, and has a default.
  const bool window_named = object.contains("sliding_window");
  if (family->sliding_window > 0
          ? !window_named || fields.Has("sliding_window")
          : !llama && fields.Bool("use_sliding_window", false) && fields.Has("sliding_window")) {
    config.sliding_window = fields.Int("sliding_window", family->sliding_window);
    if (fields.status().ok() && *config.sliding_window < config.max_positions) {
      return Unsupported("sliding_window", *config.sliding_window,
                         "null, or not below max_position_embeddings");
    }
  }
  if (fields.Has("layer_types") && !config.sliding_window) {
    for (const json& type : object["layer_types"]) {
      if (type != "full_attention") return Unsupported("layer_types", type, "full_attention");
    }
  }
  for (const char* name : {"eos_token_id", "bos_token_id"}) {
    if (!fields.Has(name)) continue;
    const json ids = object[name].is_array() ? object[name] : json::array({object[name]});
    for (const json& id : ids) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= config.vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat("config.json: ", name, " must be in [0, vocab_size), got ", id.dump()));
      }
      if (std::string(name) == "eos_token_id") {
        config.eos_token_ids.push_back(id.get<int>());
      } else {
        config.bos_token_id = id.get<int>();
      }
    }
  }
  // transformers 5 writes both in one object.
  const char* rope = fields.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const json scaling = object.value(rope, json());
  if (!scaling.is_null() && !scaling.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: ", rope, " must be an object"));
  }
  if (scaling.contains("rope_theta")) {
    Fields parameters(scaling);
    config.rope_theta = parameters.Number("rope_theta", config.rope_theta);
    ALMOST_RETURN_IF_ERROR(parameters.status());
  }
  ALMOST_RETURN_IF_ERROR(fields.status());
  ALMOST_RETURN_IF_ERROR(SetRope(scaling, config));
  config.source = std::make_shared<const json>(object);
  return config;
}

absl::StatusOr<ModelConfig> ModelConfig::FromFolder(const std::filesystem::path& folder) {
  ALMOST_ASSIGN_OR_RETURN(const json object, ReadBoundedJson(folder / "config.json"));
  absl::StatusOr<ModelConfig> config = FromJson(object);
  if (!config.ok()) return Annotate(config.status(), folder.string());
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
  object["num_key_value_heads"] = num_kv_heads;
  object["head_dim"] = head_dim;
  object["max_position_embeddings"] = max_positions;
  object["rms_norm_eps"] = rms_norm_eps;
  object["rope_theta"] = rope_theta;
  object["hidden_act"] = "silu";
  object["tie_word_embeddings"] = tie_word_embeddings;
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
  int64_t layer = 2 * d + d * q + 2 * d * kv + q * d + 3 * d * ff;
  if (attention_bias) layer += q + 2 * kv;
  if (attention_output_bias) layer += d;
  if (mlp_bias) layer += 2 * ff + d;
  if (qk_norm) layer += int64_t{2} * head_dim;
  const int64_t head = reward_head ? d : tie_word_embeddings ? 0 : int64_t{vocab_size} * d;
  return int64_t{vocab_size} * d + num_layers * layer + d + head;
}

}  // namespace almost
