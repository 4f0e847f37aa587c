#include "common/engine/weights.h"

#include <cmath>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace almost::engine {
namespace {

std::vector<float> Concatenate(const std::vector<std::vector<float>>& parts) {
  std::vector<float> all;
  for (const std::vector<float>& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace

// Reads tensors and keeps the first failure.
class Weights::Reader {
 public:
  Reader(const ModelFolder& folder, std::deque<std::vector<float>>& rounded)
      : folder_(folder), rounded_(rounded) {}

  // As float32.
  std::vector<float> Vector(const std::string& name, std::initializer_list<int64_t> shape) {
    const absl::StatusOr<TensorView> view = folder_.Tensor(name, std::vector<int64_t>(shape));
    if (view.ok()) return view->ToFloat();
    if (status_.ok()) status_ = view.status();
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    return std::vector<float>(count);
  }

  Norm Normalization(const std::string& name, const ModelConfig& config) {
    Norm norm{Vector(name + ".weight", {config.hidden_size}), {}};
    if (config.layer_norm) norm.bias = Vector(name + ".bias", {config.hidden_size});
    return norm;
  }

  // [outputs, inputs] of each name under each other.
  Weights::Matrix Product(std::initializer_list<std::pair<std::string, int>> names_and_outputs, int inputs) {
    Weights::Matrix matrix{{}, inputs};
    for (const auto& [name, outputs] : names_and_outputs) matrix.parts.push_back(View(name, outputs, inputs));
    return matrix;
  }
  // One [3 · heads · head_dim, inputs] whose rows are q, k and v of the first head, then of the second, …, as
  // all of q, then of k, then of v.
  Weights::Matrix ProductByHead(const std::string& name, int heads, int head_dim, int inputs) {
    const WeightView all = View(name, 3 * heads * head_dim, inputs);
    if (!status_.ok()) return {};
    const size_t part_bytes = size_t(head_dim) * inputs * (all.type == WeightType::kFloat32 ? 4 : 2);
    Weights::Matrix matrix{{}, inputs};
    for (int kind = 0; kind < 3; ++kind) {
      for (int h = 0; h < heads; ++h) {
        matrix.parts.push_back({all.type, all.data + (3 * h + kind) * part_bytes, head_dim});
      }
    }
    return matrix;
  }
  Layer LlamaLayer(const ModelConfig& c, int number);
  Layer NeoXLayer(const ModelConfig& c, int number);
  const absl::Status& status() const { return status_; }

 private:
  WeightView View(const std::string& name, int outputs, int inputs) {
    const absl::StatusOr<TensorView> view = folder_.Tensor(name, std::vector<int64_t>{outputs, inputs});
    if (!view.ok()) {
      if (status_.ok()) status_ = view.status();
      return {};
    }
    if (view->dtype == DType::kF64) {
      rounded_.push_back(view->ToFloat());
      return {WeightType::kFloat32, std::as_bytes(std::span(rounded_.back())).data(), outputs};
    }
    const WeightType type = view->dtype == DType::kF32    ? WeightType::kFloat32
                            : view->dtype == DType::kBF16 ? WeightType::kBfloat16
                                                          : WeightType::kFloat16;
    return {type, view->bytes.data(), outputs};
  }

  const ModelFolder& folder_;
  absl::Status status_;
  std::deque<std::vector<float>>& rounded_;
};

Weights::Layer Weights::Reader::LlamaLayer(const ModelConfig& c, int number) {
  const int d = c.hidden_size, q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  const int f = c.intermediate_size;
  const std::string at = absl::StrCat(c.names().layers, number, ".");
  const std::string attention = at + "self_attn.", mlp = at + "mlp.";
  Layer layer;
  layer.input_norm = Normalization(at + "input_layernorm", c);
  layer.post_attention_norm = Normalization(at + "post_attention_layernorm", c);
  layer.qkv = Product({{attention + "q_proj.weight", q},
                       {attention + "k_proj.weight", kv},
                       {attention + "v_proj.weight", kv}},
                      d);
  layer.output = Product({{attention + "o_proj.weight", d}}, q);
  layer.up = Product({{mlp + "gate_proj.weight", f}, {mlp + "up_proj.weight", f}}, d);
  layer.down = Product({{mlp + "down_proj.weight", d}}, f);
  if (c.attention_bias) {
    layer.qkv_bias =
        Concatenate({Vector(attention + "q_proj.bias", {q}), Vector(attention + "k_proj.bias", {kv}),
                     Vector(attention + "v_proj.bias", {kv})});
  }
  if (c.attention_output_bias) layer.output_bias = Vector(attention + "o_proj.bias", {d});
  if (c.mlp_bias) {
    layer.up_bias = Concatenate({Vector(mlp + "gate_proj.bias", {f}), Vector(mlp + "up_proj.bias", {f})});
    layer.down_bias = Vector(mlp + "down_proj.bias", {d});
  }
  if (c.qk_norm) {
    layer.query_norm = Vector(attention + "q_norm.weight", {c.head_dim});
    layer.key_norm = Vector(attention + "k_norm.weight", {c.head_dim});
  }
  return layer;
}

Weights::Layer Weights::Reader::NeoXLayer(const ModelConfig& c, int number) {
  const int d = c.hidden_size, f = c.intermediate_size;
  const std::string at = absl::StrCat(c.names().layers, number, ".");
  const std::string attention = at + "attention.", mlp = at + "mlp.";
  Layer layer;
  layer.input_norm = Normalization(at + "input_layernorm", c);
  layer.post_attention_norm = Normalization(at + "post_attention_layernorm", c);
  layer.qkv = ProductByHead(attention + "query_key_value.weight", c.num_heads, c.head_dim, d);
  layer.output = Product({{attention + "dense.weight", d}}, d);
  layer.up = Product({{mlp + "dense_h_to_4h.weight", f}}, d);
  layer.down = Product({{mlp + "dense_4h_to_h.weight", d}}, f);
  if (c.attention_bias) {
    const std::vector<float> by_head = Vector(attention + "query_key_value.bias", {3 * d});
    for (int kind = 0; kind < 3; ++kind) {
      for (int h = 0; h < c.num_heads; ++h) {
        const auto begin = by_head.begin() + (3 * h + kind) * c.head_dim;
        layer.qkv_bias.insert(layer.qkv_bias.end(), begin, begin + c.head_dim);
      }
    }
    layer.output_bias = Vector(attention + "dense.bias", {d});
  }
  layer.up_bias = Vector(mlp + "dense_h_to_4h.bias", {f});
  layer.down_bias = Vector(mlp + "dense_4h_to_h.bias", {d});
  return layer;
}

absl::StatusOr<std::unique_ptr<Weights>> Weights::Read(const ModelFolder& folder) {
  auto weights = std::make_unique<Weights>();
  const ModelConfig& c = folder.config();
  const ModelConfig::Names& names = c.names();
  Reader read(folder, weights->rounded_);
  ALMOST_ASSIGN_OR_RETURN(weights->embedding,
                          folder.Tensor(names.embedding, std::vector<int64_t>{c.vocab_size, c.hidden_size}));
  for (int i = 0; i < c.num_layers; ++i) {
    weights->layers.push_back(c.is_neox() ? read.NeoXLayer(c, i) : read.LlamaLayer(c, i));
    ALMOST_RETURN_IF_ERROR(read.status());
  }
  weights->final_norm = read.Normalization(names.final_norm, c);
  if (c.reward_head) {
    // The official code calls its head v_head.
    const bool official =
        !folder.tensors().contains(names.reward_head) && folder.tensors().contains("v_head.weight");
    weights->reward_head = read.Vector(official ? "v_head.weight" : names.reward_head, {1, c.hidden_size});
  } else {
    weights->head = read.Product(
        {{c.tie_word_embeddings ? names.embedding : names.language_head, c.vocab_size}}, c.hidden_size);
  }
  ALMOST_RETURN_IF_ERROR(read.status());

  const int half = c.rotary.num_dims() / 2;
  const double sharpness = c.rotary.attention_factor;
  weights->cosines.resize(size_t(c.max_positions) * half);
  weights->sines.resize(size_t(c.max_positions) * half);
  for (int position = 0; position < c.max_positions; ++position) {
    for (int i = 0; i < half; ++i) {
      // As transformers: the angle is rounded to float before its cosine is taken.
      const float angle = static_cast<float>(position) * static_cast<float>(c.rotary.inverse_frequencies[i]);
      const size_t at = size_t(position) * half + i;
      weights->cosines[at] = static_cast<float>(std::cos(static_cast<double>(angle)) * sharpness);
      weights->sines[at] = static_cast<float>(std::sin(static_cast<double>(angle)) * sharpness);
    }
  }
  return weights;
}

DType ComputedType(const ModelFolder& folder) {
  const auto embedding = folder.tensors().find(folder.config().names().embedding);
  const bool known = embedding != folder.tensors().end() && embedding->second.dtype != DType::kF64;
  return known ? embedding->second.dtype : DType::kF32;
}

}  // namespace almost::engine
