#include "common/engine/cpu_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace almost::engine {
namespace {

std::vector<float> Concatenate(const std::vector<std::vector<float>>& parts) {
  std::vector<float> all;
  for (const std::vector<float>& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

// Rows of `out` begin as the bias, or as zeros.
void FillRows(const std::vector<float>& bias, int rows, int width, std::vector<float>& out) {
  out.assign(size_t(rows) * width, 0.0f);
  if (bias.empty()) return;
  for (int row = 0; row < rows; ++row) std::copy(bias.begin(), bias.end(), out.begin() + size_t(row) * width);
}

constexpr int kQueriesAtOnce = 6;  // what Attend reads shared blocks once for

// Consecutive rows whose sequences begin with the same blocks.
struct AttentionGroup {
  int first_row = 0;
  int num_rows = 0;
  int shared_blocks = 0;  // whole for each row
  std::array<const int*, kQueriesAtOnce> blocks;
  std::array<int, kQueriesAtOnce> num_tokens;  // that the row attends to
};

// A row joins its predecessors where they then still share at least half of what they shared.
std::vector<AttentionGroup> GroupRows(std::span<const SequenceChunk> chunks, int max_rows) {
  std::vector<AttentionGroup> groups;
  int row = 0;
  for (const SequenceChunk& chunk : chunks) {
    for (size_t t = 0; t < chunk.tokens.size(); ++t, ++row) {
      const int num_tokens = chunk.first_position + static_cast<int>(t) + 1;
      const int whole = num_tokens / kBlockTokens;
      const int* blocks = chunk.blocks.data();
      if (!groups.empty() && groups.back().num_rows < max_rows) {
        AttentionGroup& group = groups.back();
        const int limit = std::min(whole, group.shared_blocks);
        const int shared =
            static_cast<int>(std::mismatch(blocks, blocks + limit, group.blocks[0]).first - blocks);
        if (2 * shared >= group.shared_blocks) {
          group.shared_blocks = shared;
          group.blocks[group.num_rows] = blocks;
          group.num_tokens[group.num_rows++] = num_tokens;
          continue;
        }
      }
      AttentionGroup& group = groups.emplace_back();
      group.first_row = row;
      group.num_rows = 1;
      group.shared_blocks = whole;
      group.blocks[0] = blocks;
      group.num_tokens[0] = num_tokens;
    }
  }
  return groups;
}

}  // namespace

KvCache::KvCache(const ModelConfig& config, int num_blocks)
    : num_layers_(config.num_layers),
      num_blocks_(num_blocks),
      heads_(config.num_kv_heads),
      block_head_floats_(size_t(kBlockTokens) * config.head_dim),
      data_(new float[size_t(config.num_layers) * num_blocks * heads_ * 2 * block_head_floats_]) {}

void KvCache::Copy(int from, int to) {
  const size_t block_floats = size_t(heads_) * 2 * block_head_floats_;
  for (int layer = 0; layer < num_layers_; ++layer)
    std::copy_n(keys(layer, from, 0), block_floats, keys(layer, to, 0));
}

int64_t KvCache::BlockBytes(const ModelConfig& config) {
  return int64_t{config.num_layers} * config.num_kv_heads * 2 * kBlockTokens * config.head_dim *
         sizeof(float);
}

// Reads tensors as float32 and keeps the first failure.
class CpuModel::Reader {
 public:
  explicit Reader(const ModelFolder& folder) : folder_(folder) {}

  std::vector<float> operator()(const std::string& name, std::initializer_list<int64_t> shape) {
    const absl::StatusOr<TensorView> view = folder_.Tensor(name, std::vector<int64_t>(shape));
    if (view.ok()) return view->ToFloat();
    if (status_.ok()) status_ = view.status();
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    return std::vector<float>(count);
  }
  Norm Normalization(const std::string& name, const ModelConfig& config) {
    Norm norm{(*this)(name + ".weight", {config.hidden_size}), {}};
    if (config.layer_norm) norm.bias = (*this)(name + ".bias", {config.hidden_size});
    return norm;
  }
  const absl::Status& status() const { return status_; }

 private:
  const ModelFolder& folder_;
  absl::Status status_;
};

CpuModel::Layer CpuModel::ReadLlamaLayer(Reader& read, const ModelConfig& c, int number) {
  const int d = c.hidden_size, q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  const int f = c.intermediate_size;
  const std::string at = absl::StrCat(c.names().layers, number, ".");
  const std::string attention = at + "self_attn.", mlp = at + "mlp.";
  Layer layer;
  layer.input_norm = read.Normalization(at + "input_layernorm", c);
  layer.post_attention_norm = read.Normalization(at + "post_attention_layernorm", c);
  layer.qkv = PackedMatrix::Stack(
      {read(attention + "q_proj.weight", {q, d}), read(attention + "k_proj.weight", {kv, d}),
       read(attention + "v_proj.weight", {kv, d})},
      d);
  layer.output = PackedMatrix(read(attention + "o_proj.weight", {d, q}), d, q);
  layer.up =
      PackedMatrix::Stack({read(mlp + "gate_proj.weight", {f, d}), read(mlp + "up_proj.weight", {f, d})}, d);
  layer.down = PackedMatrix(read(mlp + "down_proj.weight", {d, f}), d, f);
  if (c.attention_bias) {
    layer.qkv_bias = Concatenate({read(attention + "q_proj.bias", {q}), read(attention + "k_proj.bias", {kv}),
                                  read(attention + "v_proj.bias", {kv})});
  }
  if (c.attention_output_bias) layer.output_bias = read(attention + "o_proj.bias", {d});
  if (c.mlp_bias) {
    layer.up_bias = Concatenate({read(mlp + "gate_proj.bias", {f}), read(mlp + "up_proj.bias", {f})});
    layer.down_bias = read(mlp + "down_proj.bias", {d});
  }
  if (c.qk_norm) {
    layer.query_norm = read(attention + "q_norm.weight", {c.head_dim});
    layer.key_norm = read(attention + "k_norm.weight", {c.head_dim});
  }
  return layer;
}

CpuModel::Layer CpuModel::ReadNeoXLayer(Reader& read, const ModelConfig& c, int number) {
  const int d = c.hidden_size, f = c.intermediate_size;
  const std::string at = absl::StrCat(c.names().layers, number, ".");
  const std::string attention = at + "attention.", mlp = at + "mlp.";
  // The file has q, k and v of the first head, then of the second, …; `width` numbers a row.
  const auto by_kind = [&](const std::vector<float>& by_head, int width) {
    std::vector<float> out;
    const size_t part = size_t(c.head_dim) * width;
    for (int kind = 0; kind < 3; ++kind) {
      for (int h = 0; h < c.num_heads; ++h) {
        const auto begin = by_head.begin() + static_cast<std::ptrdiff_t>((3 * h + kind) * part);
        out.insert(out.end(), begin, begin + static_cast<std::ptrdiff_t>(part));
      }
    }
    return out;
  };
  Layer layer;
  layer.input_norm = read.Normalization(at + "input_layernorm", c);
  layer.post_attention_norm = read.Normalization(at + "post_attention_layernorm", c);
  layer.qkv = PackedMatrix(by_kind(read(attention + "query_key_value.weight", {3 * d, d}), d), 3 * d, d);
  layer.output = PackedMatrix(read(attention + "dense.weight", {d, d}), d, d);
  layer.up = PackedMatrix(read(mlp + "dense_h_to_4h.weight", {f, d}), f, d);
  layer.down = PackedMatrix(read(mlp + "dense_4h_to_h.weight", {d, f}), d, f);
  if (c.attention_bias) {
    layer.qkv_bias = by_kind(read(attention + "query_key_value.bias", {3 * d}), 1);
    layer.output_bias = read(attention + "dense.bias", {d});
  }
  layer.up_bias = read(mlp + "dense_h_to_4h.bias", {f});
  layer.down_bias = read(mlp + "dense_4h_to_h.bias", {d});
  return layer;
}

absl::StatusOr<std::unique_ptr<const CpuModel>> CpuModel::Load(const ModelFolder& folder) {
  if (!CpuIsSupported()) {
    return absl::FailedPreconditionError("the CPU engine needs a processor with AVX2 and FMA");
  }
  std::unique_ptr<CpuModel> model(new CpuModel);
  const ModelConfig& c = model->config_ = folder.config();
  const ModelConfig::Names& names = c.names();
  Reader read(folder);
  model->embedding_ = read(names.embedding, {c.vocab_size, c.hidden_size});
  for (int i = 0; i < c.num_layers; ++i) {
    model->layers_.push_back(c.is_neox() ? ReadNeoXLayer(read, c, i) : ReadLlamaLayer(read, c, i));
    ALMOST_RETURN_IF_ERROR(read.status());
  }
  model->final_norm_ = read.Normalization(names.final_norm, c);
  if (c.reward_head) {
    // The official code calls its head v_head.
    const bool official =
        !folder.tensors().contains(names.reward_head) && folder.tensors().contains("v_head.weight");
    model->reward_head_ = read(official ? "v_head.weight" : names.reward_head, {1, c.hidden_size});
  } else if (c.tie_word_embeddings) {
    model->head_ = PackedMatrix(model->embedding_, c.vocab_size, c.hidden_size);
  } else {
    model->head_ =
        PackedMatrix(read(names.language_head, {c.vocab_size, c.hidden_size}), c.vocab_size, c.hidden_size);
  }
  ALMOST_RETURN_IF_ERROR(read.status());

  const int half = c.rotary.num_dims() / 2;
  const double sharpness = c.rotary.attention_factor;
  model->cosines_.resize(size_t(c.max_positions) * half);
  model->sines_.resize(size_t(c.max_positions) * half);
  for (int position = 0; position < c.max_positions; ++position) {
    for (int i = 0; i < half; ++i) {
      // As transformers: the angle is rounded to float before its cosine is taken.
      const float angle = static_cast<float>(position) * static_cast<float>(c.rotary.inverse_frequencies[i]);
      const size_t at = size_t(position) * half + i;
      model->cosines_[at] = static_cast<float>(std::cos(static_cast<double>(angle)) * sharpness);
      model->sines_[at] = static_cast<float>(std::sin(static_cast<double>(angle)) * sharpness);
    }
  }
  return std::unique_ptr<const CpuModel>(std::move(model));
}

void CpuModel::Normalize(const float* x, const Norm& norm, int rows, float* out) const {
  const float eps = static_cast<float>(config_.norm_eps);
  if (config_.layer_norm) {
    LayerNorm(x, norm.weight.data(), norm.bias.data(), eps, rows, config_.hidden_size, out);
  } else {
    RmsNorm(x, norm.weight.data(), eps, rows, config_.hidden_size, out);
  }
}

void CpuModel::Forward(std::span<const SequenceChunk> chunks, KvCache& cache,
                       std::vector<float>& hidden) const {
  const ModelConfig& c = config_;
  const int d = c.hidden_size, q_width = c.num_heads * c.head_dim, kv_width = c.num_kv_heads * c.head_dim;
  const int qkv_width = q_width + 2 * kv_width, half = c.rotary.num_dims() / 2;
  const int queries_per_head = c.num_heads / c.num_kv_heads;
  const bool gated = c.mlp == MlpKind::kSiluGated;
  const int up_width = (gated ? 2 : 1) * c.intermediate_size;
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));

  int rows = 0, longest = 0;
  for (const SequenceChunk& chunk : chunks) {
    rows += static_cast<int>(chunk.tokens.size());
    longest = std::max(longest, chunk.first_position + static_cast<int>(chunk.tokens.size()));
  }
  std::vector<float> x(size_t(rows) * d), normed(size_t(rows) * d), qkv, attended(size_t(rows) * q_width), up,
      activated(gated ? size_t(rows) * c.intermediate_size : 0);
  const std::vector<AttentionGroup> groups =
      GroupRows(chunks, std::max(1, kQueriesAtOnce / queries_per_head));
  const size_t scores_stride = (size_t(longest) + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
  std::vector<float> scores(scores_stride * std::max(kQueriesAtOnce, queries_per_head));
  std::vector<AttentionQuery> queries;

  float* row = x.data();
  for (const SequenceChunk& chunk : chunks) {
    for (const int32_t token : chunk.tokens) {
      std::memcpy(row, embedding_.data() + size_t(token) * d, d * sizeof(float));
      row += d;
    }
  }
  for (int l = 0; l < c.num_layers; ++l) {
    const Layer& layer = layers_[l];
    Normalize(x.data(), layer.input_norm, rows, normed.data());
    FillRows(layer.qkv_bias, rows, qkv_width, qkv);
    MatMulAdd(normed.data(), rows, layer.qkv, qkv.data());

    float* at = qkv.data();
    for (const SequenceChunk& chunk : chunks) {
      const int count = static_cast<int>(chunk.tokens.size());
      for (int t = 0; t < count; ++t) {
        const int position = chunk.first_position + t;
        float* token_qkv = at + size_t(t) * qkv_width;
        const float* cosines = cosines_.data() + size_t(position) * half;
        const float* sines = sines_.data() + size_t(position) * half;
        for (int h = 0; h < c.num_heads + c.num_kv_heads; ++h) {
          float* head = token_qkv + h * c.head_dim;
          if (c.qk_norm) {
            RmsNorm(head, (h < c.num_heads ? layer.query_norm : layer.key_norm).data(),
                    static_cast<float>(c.norm_eps), 1, c.head_dim, head);
          }
          Rotate(head, cosines, sines, 2 * half);
        }
        const int block = chunk.blocks[position / kBlockTokens], slot = position % kBlockTokens;
        for (int h = 0; h < c.num_kv_heads; ++h) {
          const float* key = token_qkv + q_width + h * c.head_dim;
          float* keys = cache.keys(l, block, h);
          for (int i = 0; i < c.head_dim; ++i) keys[i * kBlockTokens + slot] = key[i];
          std::memcpy(cache.values(l, block, h) + slot * c.head_dim, key + kv_width,
                      c.head_dim * sizeof(float));
        }
      }
      at += size_t(count) * qkv_width;
    }
    for (int h = 0; h < c.num_kv_heads; ++h) {
      const HeadCache head = cache.head(l, h);
      for (const AttentionGroup& group : groups) {
        queries.clear();
        for (int r = group.first_row; r < group.first_row + group.num_rows; ++r) {
          for (int query = h * queries_per_head; query < (h + 1) * queries_per_head; ++query) {
            queries.push_back({qkv.data() + size_t(r) * qkv_width + query * c.head_dim,
                               group.blocks[r - group.first_row], group.num_tokens[r - group.first_row],
                               scores.data() + queries.size() * scores_stride,
                               attended.data() + size_t(r) * q_width + query * c.head_dim});
          }
        }
        Attend(queries, group.shared_blocks, head, c.head_dim, scale);
      }
    }
    const auto add_bias = [&](const std::vector<float>& bias) {
      for (int r = 0; r < rows && !bias.empty(); ++r) {
        for (int i = 0; i < d; ++i) x[size_t(r) * d + i] += bias[i];
      }
    };
    if (c.parallel_residual) Normalize(x.data(), layer.post_attention_norm, rows, normed.data());
    add_bias(layer.output_bias);
    MatMulAdd(attended.data(), rows, layer.output, x.data());

    if (!c.parallel_residual) Normalize(x.data(), layer.post_attention_norm, rows, normed.data());
    FillRows(layer.up_bias, rows, up_width, up);
    MatMulAdd(normed.data(), rows, layer.up, up.data());
    if (gated) {
      SiluMul(up.data(), rows, c.intermediate_size, activated.data());
    } else if (c.mlp == MlpKind::kGelu) {
      Gelu(up.data(), up.size());
    } else {
      GeluTanh(up.data(), up.size());
    }
    add_bias(layer.down_bias);
    MatMulAdd(gated ? activated.data() : up.data(), rows, layer.down, x.data());
  }

  row = x.data();
  for (const SequenceChunk& chunk : chunks) {
    row += chunk.tokens.size() * d;
    const size_t before = hidden.size();
    hidden.resize(before + size_t(chunk.num_outputs) * d);
    Normalize(row - size_t(chunk.num_outputs) * d, final_norm_, chunk.num_outputs, hidden.data() + before);
  }
}

void CpuModel::Logits(std::span<const float> hidden, std::vector<float>& logits) const {
  const int rows = static_cast<int>(hidden.size()) / config_.hidden_size;
  logits.assign(size_t(rows) * config_.vocab_size, 0.0f);
  MatMulAdd(hidden.data(), rows, head_, logits.data());
}

float CpuModel::Reward(std::span<const float> hidden) const {
  return Dot(hidden.data(), reward_head_.data(), config_.hidden_size);
}

}  // namespace almost::engine
