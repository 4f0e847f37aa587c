#include "common/model/transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "common/kernels/kernels.h"
#include "common/model/differentiable_kernels.h"

namespace almost {
namespace {

using torch::Tensor;

// Samples up to half as long again share a square: fewer calls against less padding, measured at 20-60
// tokens.
constexpr double kSquareSlack = 1.5;

constexpr char kAdapterA[] = ".lora_A.weight";
constexpr char kAdapterB[] = ".lora_B.weight";
constexpr char kWeight[] = ".weight";

using Shapes = std::vector<std::pair<std::string, std::vector<int64_t>>>;

// Every parameter by name, the language-model head only where it is not the embedding.
Shapes ParameterShapes(const ModelConfig& c) {
  const int64_t d = c.hidden_size, f = c.intermediate_size;
  const int64_t q = int64_t{c.num_heads} * c.head_dim, kv = int64_t{c.num_kv_heads} * c.head_dim;
  const ModelConfig::Names& names = c.names();
  Shapes shapes = {{names.embedding, {c.vocab_size, d}}};
  const auto norm = [&](const std::string& name) {
    shapes.push_back({name + ".weight", {d}});
    if (c.layer_norm) shapes.push_back({name + ".bias", {d}});
  };
  const auto linear = [&](const std::string& name, int64_t outputs, int64_t inputs, bool bias) {
    shapes.push_back({name + ".weight", {outputs, inputs}});
    if (bias) shapes.push_back({name + ".bias", {outputs}});
  };
  norm(names.final_norm);
  for (int i = 0; i < c.num_layers; ++i) {
    const std::string at = absl::StrCat(names.layers, i, ".");
    norm(at + "input_layernorm");
    norm(at + "post_attention_layernorm");
    if (c.is_neox()) {
      linear(at + "attention.query_key_value", 3 * d, d, c.attention_bias);
      linear(at + "attention.dense", d, d, c.attention_output_bias);
      linear(at + "mlp.dense_h_to_4h", f, d, true);
      linear(at + "mlp.dense_4h_to_h", d, f, true);
      continue;
    }
    const std::string attention = at + "self_attn.", mlp = at + "mlp.";
    linear(attention + "q_proj", q, d, c.attention_bias);
    linear(attention + "k_proj", kv, d, c.attention_bias);
    linear(attention + "v_proj", kv, d, c.attention_bias);
    linear(attention + "o_proj", d, q, c.attention_output_bias);
    if (c.qk_norm) {
      shapes.push_back({attention + "q_norm.weight", {c.head_dim}});
      shapes.push_back({attention + "k_norm.weight", {c.head_dim}});
    }
    linear(mlp + "gate_proj", f, d, c.mlp_bias);
    linear(mlp + "up_proj", f, d, c.mlp_bias);
    linear(mlp + "down_proj", d, f, c.mlp_bias);
  }
  if (c.reward_head) {
    shapes.push_back({names.reward_head, {1, d}});
  } else if (!c.tie_word_embeddings) {
    shapes.push_back({names.language_head, {c.vocab_size, d}});
  }
  return shapes;
}

Tensor FromView(const TensorView& view, torch::ScalarType dtype) {
  if (view.dtype == DType::kF64 && dtype == torch::kFloat64) {
    Tensor tensor = torch::empty(view.shape, dtype);
    std::memcpy(tensor.data_ptr(), view.bytes.data(), view.bytes.size());
    return tensor;
  }
  std::vector<float> values = view.ToFloat();
  return torch::from_blob(values.data(), view.shape, torch::kFloat32).to(dtype, false, /*copy=*/true);
}

// Calls `write` with every tensor's bytes, which live during the call: bfloat16 as it is, else float32.
template <typename Write>
auto WithTensors(const std::map<std::string, Tensor>& all, const Write& write) {
  std::vector<Tensor> kept;
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, each] : all) {
    const bool is_half = each.scalar_type() == torch::kBFloat16;
    const torch::ScalarType dtype = is_half ? torch::kBFloat16 : torch::kFloat32;
    const Tensor& tensor = kept.emplace_back(each.detach().to(torch::kCPU, dtype).contiguous());
    tensors.push_back({name,
                       is_half ? DType::kBF16 : DType::kF32,
                       tensor.sizes().vec(),
                       {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()}});
  }
  return write(tensors);
}

Tensor RmsNorm(const Tensor& x, const Tensor& weight, double eps) {
  return RunsOnKernels(x) ? KernelRmsNorm(x, weight, eps) : at::rms_norm(x, {x.size(-1)}, weight, eps);
}

// The layout of Hugging Face checkpoints: dimension i turns with i + R/2, those from R on stay. x
// [N, heads, E], cos and sin [N, 1, R/2].
Tensor Rotate(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const int64_t half = cos.size(-1), rest = x.size(-1) - 2 * half;
  const Tensor first = x.narrow(-1, 0, half), second = x.narrow(-1, half, half);
  std::vector<Tensor> parts = {first * cos - second * sin, second * cos + first * sin};
  if (rest > 0) parts.push_back(x.narrow(-1, 2 * half, rest));
  return torch::cat(parts, -1);
}

// Attention by LibTorch's operators runs over groups of samples of similar length as [samples, T] squares,
// padded on the right; a causal mask keeps padding from real tokens. A prefix that samples share is copied to
// the places of each. One group of one length needs no index.
struct Squares {
  struct Group {
    int64_t num_samples;
    int64_t length;
  };
  std::vector<Group> groups;
  Tensor square_P;   // int64: the token at each place of all squares; any token where there is none
  Tensor is_own_P1;  // bool: whether it is there, and no copy
  Tensor place_N;    // int64: each token's place in the squares, where it is no copy
  Tensor copied_C, copy_places_C;  // int64: tokens that are copied, and to where

  Squares(const PackedSamples& samples, torch::Device device);
};

Squares::Squares(const PackedSamples& samples, torch::Device device) {
  const std::vector<int64_t>& offsets = samples.offsets;
  std::vector<size_t> by_length(samples.num_samples());
  std::iota(by_length.begin(), by_length.end(), size_t{0});
  const auto length_of = [&](size_t sample) {
    return samples.prefix_tokens[sample] + offsets[sample + 1] - offsets[sample];
  };
  std::stable_sort(by_length.begin(), by_length.end(),
                   [&](size_t a, size_t b) { return length_of(a) > length_of(b); });
  std::vector<std::vector<size_t>> members;
  for (const size_t sample : by_length) {
    const int64_t length = length_of(sample);
    if (groups.empty() || groups.back().length > kSquareSlack * length) {
      groups.push_back({0, length});
      members.emplace_back();
    }
    ++groups.back().num_samples;
    members.back().push_back(sample);
  }
  if (groups.size() == 1 && groups[0].length * groups[0].num_samples == offsets.back()) return;

  std::vector<int64_t> square, copied, copy_places;
  std::vector<int64_t> place(offsets.back());
  std::vector<char> is_own;
  for (size_t g = 0; g < members.size(); ++g) {
    for (const size_t sample : members[g]) {
      const int64_t begin = offsets[sample], end = offsets[sample + 1],
                    prefix = samples.prefix_tokens[sample];
      for (int64_t t = 0; t < groups[g].length; ++t) {
        const auto here = static_cast<int64_t>(square.size());
        const bool is_copy = t < prefix, own = !is_copy && begin + t - prefix < end;
        square.push_back(is_copy ? samples.prefix_rows[sample] + t : own ? begin + t - prefix : begin);
        is_own.push_back(own);
        if (own) place[square.back()] = here;
        if (!is_copy) continue;
        copied.push_back(square.back());
        copy_places.push_back(here);
      }
    }
  }
  const auto there = [&](const std::vector<int64_t>& values) {
    return torch::tensor(values, torch::kInt64).to(device);
  };
  square_P = there(square);
  place_N = there(place);
  copied_C = there(copied);
  copy_places_C = there(copy_places);
  is_own_P1 = torch::from_blob(is_own.data(), {static_cast<int64_t>(is_own.size()), 1}, torch::kBool)
                  .to(device, torch::kBool, /*non_blocking=*/false, /*copy=*/true);
}

// Rows of the packed tokens into squares and back. Autograd's own backward of an index adds row by row; here
// every row has one place besides copies, so a backward pass is an index again, and adds up those alone.
class ToSquares : public torch::autograd::Function<ToSquares> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x_NC,
                        const Squares& squares) {
    context->save_for_backward({squares.place_N, squares.copied_C, squares.copy_places_C});
    return x_NC.index_select(0, squares.square_P);
  }
  // Padding is not seen by any real token, so its gradient is zero and has nowhere to go.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    Tensor sum_NC = grads[0].index_select(0, saved[0]);
    if (saved[1].size(0) > 0) sum_NC.index_add_(0, saved[1], grads[0].index_select(0, saved[2]));
    return {sum_NC, Tensor()};
  }
};

class FromSquares : public torch::autograd::Function<FromSquares> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x_PC,
                        const Squares& squares) {
    context->save_for_backward({squares.square_P, squares.is_own_P1});
    return x_PC.index_select(0, squares.place_N);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    return {grads[0].index_select(0, saved[0]).mul_(saved[1]), Tensor()};
  }
};

// Distinct rows of x. Autograd's own backward of an index adds row by row.
class SelectRowsFunction : public torch::autograd::Function<SelectRowsFunction> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x_ND, const Tensor& rows_M) {
    context->save_for_backward({rows_M});
    context->saved_data["rows"] = x_ND.size(0);
    return x_ND.index_select(0, rows_M);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    Tensor sum_ND = torch::zeros({context->saved_data["rows"].toInt(), grads[0].size(1)}, grads[0].options());
    sum_ND.index_copy_(0, context->get_saved_variables()[0], grads[0]);
    return {sum_ND, Tensor()};
  }
};

Tensor SelectRows(const Tensor& x_ND, const Tensor& rows_M) {
  return SelectRowsFunction::apply(x_ND, rows_M);
}

// By sample: its first token that is one of the rows, or its length.
std::vector<int64_t> FirstQueries(const PackedSamples& samples, const Tensor& rows_M) {
  const std::vector<int64_t>& offsets = samples.offsets;
  std::vector<int64_t> first;
  for (int64_t s = 0; s < samples.num_samples(); ++s) {
    first.push_back(samples.prefix_tokens[s] + offsets[s + 1] - offsets[s]);
  }
  const Tensor rows = rows_M.contiguous();
  for (const int64_t row : std::span(rows.data_ptr<int64_t>(), rows.numel())) {
    const auto s = std::upper_bound(offsets.begin(), offsets.end(), row) - offsets.begin() - 1;
    first[s] = std::min(first[s], samples.prefix_tokens[s] + row - offsets[s]);
  }
  return first;
}

}  // namespace

PackedSamples PackedSamples::Pack(std::span<const std::vector<int32_t>> samples, torch::Device device,
                                  std::span<const int64_t> prompt_tokens) {
  PackedSamples packed;
  packed.offsets.push_back(0);
  std::vector<int64_t> tokens, positions;
  std::map<std::vector<int32_t>, int64_t> rows_of_prompts;
  for (size_t s = 0; s < samples.size(); ++s) {
    const std::vector<int32_t>& sample = samples[s];
    const auto row = static_cast<int64_t>(tokens.size());
    const int64_t prompt = prompt_tokens.empty() ? 0 : prompt_tokens[s];
    const auto [known, is_new] = rows_of_prompts.try_emplace({sample.begin(), sample.begin() + prompt}, row);
    packed.prefix_rows.push_back(known->second);
    packed.prefix_tokens.push_back(is_new ? 0 : prompt);
    for (auto t = packed.prefix_tokens.back(); t < static_cast<int64_t>(sample.size()); ++t) {
      tokens.push_back(sample[t]);
      positions.push_back(t);
    }
    packed.offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  packed.tokens_N = torch::tensor(tokens, torch::kInt64).to(device);
  packed.positions_N = torch::tensor(positions, torch::kInt64).to(device);
  return packed;
}

Tensor PackedSamples::LastTokens() const {
  std::vector<int64_t> last(offsets.begin() + 1, offsets.end());
  for (int64_t& index : last) --index;
  return torch::tensor(last, torch::kInt64).to(tokens_N.device());
}

Transformer::Transformer(ModelConfig config, std::map<std::string, Tensor> parameters, double adapter_scale)
    : config_(std::move(config)),
      parameters_(std::move(parameters)),
      adapter_scale_(adapter_scale),
      layers_(config_.num_layers) {
  const auto get = [&](const std::string& name) {
    const auto found = parameters_.find(name);
    return found == parameters_.end() ? Tensor() : found->second;
  };
  const auto norm = [&](const std::string& name) { return Norm{get(name + ".weight"), get(name + ".bias")}; };
  const auto linear = [&](const std::string& name) {
    return Linear{get(name + kWeight), get(name + ".bias"), get(name + kAdapterA), get(name + kAdapterB),
                  adapter_scale_};
  };
  const ModelConfig::Names& names = config_.names();
  embedding_ = get(names.embedding);
  final_norm_ = norm(names.final_norm);
  head_ = config_.reward_head           ? get(names.reward_head)
          : config_.tie_word_embeddings ? embedding_
                                        : get(names.language_head);
  for (int i = 0; i < config_.num_layers; ++i) {
    const std::string at = absl::StrCat(names.layers, i, ".");
    Layer& layer = layers_[i];
    layer.input_norm = norm(at + "input_layernorm");
    layer.post_attention_norm = norm(at + "post_attention_layernorm");
    if (config_.is_neox()) {
      layer.query_key_value = linear(at + "attention.query_key_value");
      layer.output = linear(at + "attention.dense");
      layer.up = linear(at + "mlp.dense_h_to_4h");
      layer.down = linear(at + "mlp.dense_4h_to_h");
      continue;
    }
    const std::string attention = at + "self_attn.", mlp = at + "mlp.";
    layer.query_norm = get(attention + "q_norm.weight");
    layer.key_norm = get(attention + "k_norm.weight");
    layer.query = linear(attention + "q_proj");
    layer.key = linear(attention + "k_proj");
    layer.value = linear(attention + "v_proj");
    layer.output = linear(attention + "o_proj");
    layer.gate = linear(mlp + "gate_proj");
    layer.up = linear(mlp + "up_proj");
    layer.down = linear(mlp + "down_proj");
  }
}

std::vector<Tensor> Transformer::Layer::Leaves() const {
  std::vector<Tensor> leaves = {input_norm.weight,        input_norm.bias, post_attention_norm.weight,
                                post_attention_norm.bias, query_norm,      key_norm};
  for (const Linear* linear : {&query, &key, &value, &query_key_value, &output, &gate, &up, &down}) {
    leaves.insert(leaves.end(), {linear->weight, linear->bias, linear->adapter_a, linear->adapter_b});
  }
  std::erase_if(leaves, [](const Tensor& leaf) { return !leaf.defined(); });
  return leaves;
}

absl::StatusOr<Transformer> Transformer::Load(const ModelFolder& folder, torch::ScalarType dtype,
                                              bool reward_head) {
  const ModelConfig config = folder.config().WithRewardHead(reward_head);
  if (!reward_head && folder.config().reward_head) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder.path().string(), ": is a reward model, a language model is needed"));
  }
  std::map<std::string, Tensor> parameters;
  for (const auto& [name, shape] : ParameterShapes(config)) {
    std::string stored = name;
    if (name == config.names().reward_head && !folder.tensors().contains(name)) {
      if (!folder.config().reward_head) {
        parameters[name] = torch::zeros(shape, dtype).requires_grad_();
        continue;
      }
      stored = "v_head.weight";  // as the official code calls it
    }
    ALMOST_ASSIGN_OR_RETURN(const TensorView view, folder.Tensor(stored, shape));
    parameters[name] = FromView(view, dtype).requires_grad_();
  }
  return Transformer(config, std::move(parameters), /*adapter_scale=*/0);
}

Transformer Transformer::Initialize(const ModelConfig& config, torch::ScalarType dtype, uint64_t seed) {
  std::map<std::string, Tensor> parameters;
  for (const auto& [name, shape] : ParameterShapes(config)) {
    Tensor tensor;
    if (shape.size() == 1) {
      tensor = absl::EndsWith(name, "bias") ? torch::zeros(shape, dtype) : torch::ones(shape, dtype);
    } else if (name == config.names().reward_head) {
      tensor = torch::zeros(shape, dtype);
    } else {
      double deviation =
          name == config.names().embedding ? 0.02 : 0.7 / std::sqrt(static_cast<double>(shape[1]));
      if (absl::EndsWith(name, "o_proj.weight") || absl::EndsWith(name, "down_proj.weight") ||
          absl::EndsWith(name, "attention.dense.weight") || absl::EndsWith(name, "dense_4h_to_h.weight")) {
        deviation /= std::sqrt(2.0 * config.num_layers);
      }
      RandomStream random(DeriveSeed(seed, name));
      tensor = torch::empty(shape, torch::kFloat64);
      for (double *value = tensor.data_ptr<double>(), *end = value + tensor.numel(); value != end; ++value) {
        *value = deviation * random.Normal();
      }
      tensor = tensor.to(dtype);
    }
    parameters[name] = tensor.requires_grad_();
  }
  return Transformer(config, std::move(parameters), /*adapter_scale=*/0);
}

Transformer Transformer::To(torch::Device device) const {
  std::map<std::string, Tensor> moved;
  for (const auto& [name, parameter] : parameters_) {
    moved[name] = parameter.detach().to(device).requires_grad_(parameter.requires_grad());
  }
  Transformer there(config_, std::move(moved), adapter_scale_);
  there.recompute_ = recompute_;
  return there;
}

void Transformer::AddAdapters(int rank, double alpha, uint64_t seed) {
  std::map<std::string, Tensor> parameters;
  for (const auto& [name, parameter] : parameters_) {
    parameters[name] = parameter.detach().requires_grad_(name == config_.names().reward_head);
    if (!absl::StartsWith(name, config_.names().layers) || parameter.dim() != 2) continue;
    const std::string linear(absl::StripSuffix(name, kWeight));
    const int64_t outputs = parameter.size(0), inputs = parameter.size(1);
    RandomStream random(DeriveSeed(seed, name));
    Tensor a = torch::empty({rank, inputs}, torch::kFloat64);
    const double bound = 1.0 / std::sqrt(static_cast<double>(inputs));
    for (double *value = a.data_ptr<double>(), *end = value + a.numel(); value != end; ++value) {
      *value = bound * (2 * random.Unit() - 1);
    }
    parameters[linear + kAdapterA] = a.to(parameter.options().requires_grad(false)).requires_grad_();
    parameters[linear + kAdapterB] =
        torch::zeros({outputs, rank}, parameter.options().requires_grad(false)).requires_grad_();
  }
  const bool recompute = recompute_;
  *this = Transformer(config_, std::move(parameters), alpha / rank);
  recompute_ = recompute;
}

Tensor Transformer::Linear::Adapter(const Tensor& x) const {
  return almost::Linear(almost::Linear(x, adapter_a), adapter_b) * adapter_scale;
}

Tensor Transformer::Linear::operator()(const Tensor& x) const {
  const Tensor y = almost::Linear(x, weight, bias);
  return adapter_a.defined() ? y + Adapter(x) : y;
}

Tensor Transformer::Normalize(const Tensor& x, const Norm& norm) const {
  return config_.layer_norm ? at::layer_norm(x, {x.size(-1)}, norm.weight, norm.bias, config_.norm_eps)
                            : RmsNorm(x, norm.weight, config_.norm_eps);
}

Tensor Transformer::QueriesKeysValues(const Layer& layer, const Tensor& x_ND) const {
  const int64_t n = x_ND.size(0), h = config_.num_heads, k = config_.num_kv_heads, e = config_.head_dim;
  if (config_.is_neox()) {
    return layer.query_key_value(x_ND).view({n, h, 3, e}).transpose(1, 2).reshape({n, 3 * h, e});
  }
  if (!RunsOnKernels(x_ND)) {
    return torch::cat({layer.query(x_ND), layer.key(x_ND), layer.value(x_ND)}, 1).view({n, h + 2 * k, e});
  }
  std::vector<Tensor> weights, biases, adapters;
  for (const Linear* linear : {&layer.query, &layer.key, &layer.value}) {
    weights.push_back(linear->weight);
    if (linear->bias.defined()) biases.push_back(linear->bias);
    if (linear->adapter_a.defined()) adapters.push_back(linear->Adapter(x_ND));
  }
  Tensor qkv = StackedLinear(x_ND, weights, biases);
  if (!adapters.empty()) qkv = qkv + torch::cat(adapters, 1);
  return qkv.view({n, h + 2 * k, e});
}

// What one forward pass is about, besides weights.
struct Transformer::Pass {
  PackedSamples samples;
  Tensor rows_M;                   // whose hidden states are wanted; undefined: all
  Tensor cos, sin;                 // [N, 1, R/2]
  std::optional<Squares> squares;  // where attention is LibTorch's
};

Tensor Transformer::Attention(const Layer& layer, const Tensor& x_ND, const Pass& pass,
                              const std::vector<int64_t>& first_queries) const {
  const int64_t n = x_ND.size(0), h = config_.num_heads, k = config_.num_kv_heads, e = config_.head_dim;
  Tensor qkv = QueriesKeysValues(layer, x_ND);
  if (config_.qk_norm) {
    qkv =
        torch::cat({RmsNorm(qkv.narrow(1, 0, h), layer.query_norm, config_.norm_eps),
                    RmsNorm(qkv.narrow(1, h, k), layer.key_norm, config_.norm_eps), qkv.narrow(1, h + k, k)},
                   1);
  }
  if (!pass.squares) {
    const auto wide = [](const Tensor& tensor) { return tensor.to(torch::kFloat32); };
    const Tensor y = PackedAttention(
        wide(qkv.view({n, (h + 2 * k) * e})), wide(pass.cos.squeeze(1)), wide(pass.sin.squeeze(1)),
        pass.samples.offsets, pass.samples.prefix_rows, pass.samples.prefix_tokens, first_queries, h, k);
    return y.to(x_ND.scalar_type());
  }
  const Squares& squares = *pass.squares;
  const Tensor turned = Rotate(qkv.narrow(1, 0, h + k), pass.cos, pass.sin);
  Tensor rows = torch::cat({turned, qkv.narrow(1, h + k, k)}, 1);
  const bool indexed = squares.square_P.defined();
  if (indexed) rows = ToSquares::apply(rows.view({n, (h + 2 * k) * e}), squares);

  std::vector<Tensor> attended;
  int64_t begin = 0;
  for (const Squares::Group& group : squares.groups) {
    const int64_t s = group.num_samples, t = group.length;
    const Tensor square = rows.narrow(0, begin, s * t).view({s, t, h + 2 * k, e}).transpose(1, 2);
    begin += s * t;
    const auto heads = [&](int64_t first) {
      const Tensor part = square.narrow(1, first, k);
      return h == k ? part : part.repeat_interleave(h / k, 1);
    };
    const Tensor out = at::scaled_dot_product_attention(square.narrow(1, 0, h), heads(h), heads(h + k), {},
                                                        0.0, /*is_causal=*/true);
    attended.push_back(out.transpose(1, 2).reshape({s * t, h * e}));
  }
  const Tensor y = attended.size() == 1 ? attended[0] : torch::cat(attended);
  return indexed ? FromSquares::apply(y, squares) : y;
}

Tensor Transformer::Mlp(const Layer& layer, const Tensor& x_ND) const {
  const bool is_plain = !layer.up.adapter_a.defined() && !layer.up.bias.defined();
  if (config_.mlp == MlpKind::kSiluGated && is_plain && RunsOnKernels(x_ND)) {
    return SiluGatedMlp(x_ND, layer.gate.weight, layer.up.weight, layer.down.weight);
  }
  const Tensor up = layer.up(x_ND);
  if (config_.mlp == MlpKind::kSiluGated) {
    const Tensor gate = layer.gate(x_ND);
    return layer.down(RunsOnKernels(up) ? KernelSiluMul(gate, up) : torch::silu(gate) * up);
  }
  const bool by_tanh = config_.mlp == MlpKind::kGeluTanh;
  return layer.down(RunsOnKernels(up) ? KernelGelu(up, by_tanh) : at::gelu(up, by_tanh ? "tanh" : "none"));
}

Tensor Transformer::Forward(size_t number, const Tensor& x_ND, const Pass& pass) const {
  const Layer& layer = layers_[number];
  const bool selects = number + 1 == layers_.size() && pass.rows_M.defined();
  const auto select = [&](const Tensor& rows) { return selects ? SelectRows(rows, pass.rows_M) : rows; };
  std::vector<int64_t> first_queries;
  if (selects && !pass.squares) first_queries = FirstQueries(pass.samples, pass.rows_M);
  const Tensor heads = select(Attention(layer, Normalize(x_ND, layer.input_norm), pass, first_queries));
  const Tensor x = select(x_ND), y = x + layer.output(heads);
  return y + Mlp(layer, Normalize(config_.parallel_residual ? x : y, layer.post_attention_norm));
}

// What a backward pass computes a layer again from, besides its input.
struct Transformer::Recomputation : torch::CustomClassHolder {
  Recomputation(std::shared_ptr<const Transformer> of, size_t number, std::shared_ptr<const Pass> in)
      : model(std::move(of)), layer(number), pass(std::move(in)) {}
  Tensor operator()(const Tensor& x_ND) const { return model->Forward(layer, x_ND, *pass); }

  const std::shared_ptr<const Transformer> model;
  const size_t layer;
  const std::shared_ptr<const Pass> pass;
};

class Transformer::RecomputedLayer : public torch::autograd::Function<RecomputedLayer> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x_ND, at::TensorList leaves,
                        const c10::intrusive_ptr<Recomputation>& again) {
    torch::autograd::variable_list saved = leaves.vec();
    saved.push_back(x_ND);
    context->save_for_backward(std::move(saved));
    context->saved_data["again"] = c10::IValue::make_capsule(again);
    return (*again)(x_ND);
  }

  // In the order of forward's arguments.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto again =
        c10::static_intrusive_pointer_cast<Recomputation>(context->saved_data["again"].toCapsule());
    torch::autograd::variable_list inputs = context->get_saved_variables();
    // A leaf of its own, so that the inner pass ends here.
    inputs.back() = inputs.back().detach().requires_grad_(context->needs_input_grad(0));
    Tensor y;
    {
      const torch::AutoGradMode with_gradients(true);
      y = (*again)(inputs.back());
    }
    torch::autograd::variable_list wanted;
    for (const Tensor& input : inputs) {
      if (input.requires_grad()) wanted.push_back(input);
    }
    const torch::autograd::variable_list found = torch::autograd::grad({y}, wanted, {grads[0]});
    torch::autograd::variable_list of_inputs(inputs.size());
    size_t next = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].requires_grad()) of_inputs[i] = found[next++];
    }
    std::rotate(of_inputs.begin(), of_inputs.end() - 1, of_inputs.end());  // x first
    of_inputs.emplace_back();                                              // of `again`
    return of_inputs;
  }
};

Tensor Transformer::Hidden(const PackedSamples& samples, const Tensor& rows_M) const {
  // As transformers: the angle is rounded to float32 (double weights: not) before its cosine is taken.
  const torch::ScalarType dtype = embedding_.scalar_type();
  const torch::ScalarType angle_dtype = dtype == torch::kFloat64 ? dtype : torch::kFloat32;
  const RotaryEmbedding& rotary = config_.rotary;
  const Tensor frequencies =
      torch::tensor(rotary.inverse_frequencies, torch::kFloat64).to(device(), angle_dtype);
  const Tensor angles = (samples.positions_N.to(angle_dtype).unsqueeze(1) * frequencies).to(torch::kFloat64);
  const auto table = [&](const Tensor& values) {
    return (values * rotary.attention_factor).to(dtype).view({-1, 1, rotary.num_dims() / 2});
  };
  // In 16 bits too, whose attention LibTorch does not run on every processor that is held to AVX2.
  const bool on_kernels = device().is_cpu() && dtype != torch::kFloat64 && Kernels::Best() != nullptr;
  const auto pass = std::make_shared<const Pass>(
      samples, rows_M, table(angles.cos()), table(angles.sin()),
      on_kernels ? std::optional<Squares>() : std::optional<Squares>(std::in_place, samples, device()));

  Tensor x_ND = torch::embedding(embedding_, samples.tokens_N);
  if (recompute_ && torch::GradMode::is_enabled()) {
    const auto model = std::make_shared<const Transformer>(*this);
    for (size_t i = 0; i < layers_.size(); ++i) {
      x_ND = RecomputedLayer::apply(x_ND, at::TensorList(layers_[i].Leaves()),
                                    c10::make_intrusive<Recomputation>(model, i, pass));
    }
  } else {
    for (size_t i = 0; i < layers_.size(); ++i) x_ND = Forward(i, x_ND, *pass);
  }
  return Normalize(x_ND, final_norm_);
}

Tensor Transformer::Rewards(const PackedSamples& samples) const {
  const Tensor rewards_S = almost::Linear(Hidden(samples, samples.LastTokens()), head_).squeeze(1);
  return rewards_S.to(torch::promoteTypes(rewards_S.scalar_type(), torch::kFloat32));
}

Transformer Transformer::Replica() const {
  std::map<std::string, Tensor> shared;
  for (const auto& [name, parameter] : parameters_) {
    shared[name] = parameter.detach().requires_grad_(parameter.requires_grad());
  }
  Transformer replica(config_, std::move(shared), adapter_scale_);
  replica.recompute_ = recompute_;
  return replica;
}

Transformer Transformer::Frozen() const {
  const bool has_adapters = adapter_scale_ != 0;
  std::map<std::string, Tensor> frozen;
  for (const auto& [name, parameter] : parameters_) {
    if (absl::EndsWith(name, kAdapterA) || absl::EndsWith(name, kAdapterB)) continue;
    frozen[name] = has_adapters ? parameter.detach() : parameter.detach().clone();
  }
  return Transformer(config_, std::move(frozen), /*adapter_scale=*/0);
}

std::map<std::string, Tensor> Transformer::Merged() const {
  std::map<std::string, Tensor> merged;
  for (const auto& [name, parameter] : parameters_) {
    if (absl::EndsWith(name, kAdapterA) || absl::EndsWith(name, kAdapterB)) continue;
    merged[name] = parameter.detach();
    const std::string linear(absl::StripSuffix(name, kWeight));
    const auto a = parameters_.find(linear + kAdapterA), b = parameters_.find(linear + kAdapterB);
    if (a == parameters_.end()) continue;
    const torch::ScalarType wide = torch::promoteTypes(parameter.scalar_type(), torch::kFloat32);
    merged[name] = parameter.detach().to(wide) +
                   adapter_scale_ * torch::mm(b->second.detach().to(wide), a->second.detach().to(wide));
  }
  return merged;
}

std::shared_ptr<const ModelFolder> Transformer::InMemoryFolder() const {
  return WithTensors(Merged(), [&](const auto& tensors) { return ModelFolder::InMemory(config_, tensors); });
}

absl::Status Transformer::Save(const std::filesystem::path& folder) const {
  std::map<std::string, Tensor> merged = Merged();
  for (auto& [name, tensor] : merged) tensor = tensor.to(parameters_.at(name).scalar_type());
  return WithTensors(merged, [&](const auto& tensors) { return WriteModelFolder(folder, config_, tensors); });
}

}  // namespace almost
