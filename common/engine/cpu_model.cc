#include "common/engine/cpu_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace almost::engine {
namespace {

// What one piece of a loop should at least hold, in multiply-adds or in numbers gone over: a microsecond or
// two, several times what it costs to hand it to another thread.
constexpr int64_t kPieceMultiplyAdds = 1 << 16;
constexpr int64_t kPieceNumbers = 1 << 14;

int Grain(int64_t piece, int64_t each) {
  return static_cast<int>(std::max<int64_t>(1, piece / std::max<int64_t>(1, each)));
}

void Resize(std::vector<float>& buffer, size_t count) {
  if (buffer.size() < count) buffer.resize(count);
}

constexpr int kMaxRowsPerGroup = 8;  // the most that Attend reads shared blocks once for

// Consecutive rows whose sequences begin with the same blocks.
struct AttentionGroup {
  int first_row = 0;
  int num_rows = 0;
  int shared_blocks = 0;  // whole for each row
  std::array<const int*, kMaxRowsPerGroup> blocks;
  std::array<int, kMaxRowsPerGroup> num_tokens;  // that the row attends to
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

void Multiply(const Kernels& kernels, ThreadTeam& team, const float* x, size_t x_stride, int rows,
              const PackedMatrix& weight, bool accumulate, float* out, size_t out_stride) {
  const int at_once = kernels.PanelsAtOnce(rows);
  const int least = Grain(kPieceMultiplyAdds, int64_t{rows} * weight.num_inputs() * PackedMatrix::kPanel);
  const int fair = weight.num_panels() / (4 * team.size());
  const int grain = (std::max(least, fair) + at_once - 1) / at_once * at_once;
  team.For(weight.num_panels(), grain, [&](int /*thread*/, int begin, int end) {
    kernels.MatMul(x, x_stride, rows, weight, begin, end - begin, accumulate, out, out_stride);
  });
}

KvCache::KvCache(const ModelConfig& config, int num_blocks)
    : num_layers_(config.num_layers),
      num_blocks_(num_blocks),
      heads_(config.num_kv_heads),
      block_head_floats_(size_t(kBlockTokens) * config.head_dim),
      data_(size_t(config.num_layers) * num_blocks * heads_ * 2 * block_head_floats_) {}

void KvCache::Copy(int from, int to) {
  const size_t block_floats = size_t(heads_) * 2 * block_head_floats_;
  for (int layer = 0; layer < num_layers_; ++layer)
    std::copy_n(keys(layer, from, 0), block_floats, keys(layer, to, 0));
}

int64_t KvCache::BlockBytes(const ModelConfig& config) {
  return int64_t{config.num_layers} * config.num_kv_heads * 2 * kBlockTokens * config.head_dim *
         sizeof(float);
}

absl::StatusOr<std::unique_ptr<const CpuModel>> CpuModel::Load(const ModelFolder& folder,
                                                               const Kernels* kernels) {
  if (kernels == nullptr) {
    return absl::FailedPreconditionError("the CPU engine needs a processor with AVX2, FMA and F16C");
  }
  ALMOST_ASSIGN_OR_RETURN(std::unique_ptr<Weights> read, Weights::Read(folder));
  std::unique_ptr<CpuModel> model(new CpuModel);
  model->kernels_ = kernels;
  model->config_ = folder.config();
  model->embedding_ = read->embedding.ToFloat();
  const auto pack = [](const Weights::Matrix& matrix) {
    return PackedMatrix(matrix.parts, matrix.num_inputs);
  };
  for (Weights::Layer& layer : read->layers) {
    Weights::LayerVectors& vectors = layer;
    model->layers_.push_back(
        {std::move(vectors), pack(layer.qkv), pack(layer.output), pack(layer.up), pack(layer.down)});
  }
  model->final_norm_ = std::move(read->final_norm);
  if (!read->head.parts.empty()) model->head_ = pack(read->head);
  model->reward_head_ = std::move(read->reward_head);
  model->cosines_ = std::move(read->cosines);
  model->sines_ = std::move(read->sines);
  return std::unique_ptr<const CpuModel>(std::move(model));
}

void CpuModel::Normalize(const float* x, const Weights::Norm& norm, float* out) const {
  const float eps = static_cast<float>(config_.norm_eps);
  if (config_.layer_norm) {
    kernels_->LayerNorm(x, norm.weight.data(), norm.bias.data(), eps, config_.hidden_size, out);
  } else {
    kernels_->RmsNorm(x, norm.weight.data(), eps, config_.hidden_size, out);
  }
}

// One pass of chunks through the layers. Rows are the chunks' tokens, one after the other, until the last
// layer's keys and values are there: from then on those of which hidden states are wanted.
class ForwardPass {
 public:
  ForwardPass(const CpuModel& model, std::span<const SequenceChunk> chunks, KvCache& cache,
              Workspace& workspace)
      : model_(model),
        c_(model.config_),
        kernels_(*model.kernels_),
        chunks_(chunks),
        cache_(cache),
        ws_(workspace) {
    for (const SequenceChunk& chunk : chunks) {
      for (size_t t = 0; t < chunk.tokens.size(); ++t) {
        rows_.push_back({chunk.tokens[t], chunk.first_position + static_cast<int>(t), chunk.blocks.data()});
      }
      longest_ = std::max(longest_, chunk.first_position + static_cast<int>(chunk.tokens.size()));
    }
    Group(chunks);
    const size_t rows = rows_.size();
    Resize(ws_.x, rows * x_stride_);
    Resize(ws_.normed, rows * x_stride_);
    Resize(ws_.qkv, rows * qkv_stride_);
    Resize(ws_.attended, rows * attended_stride_);
    Resize(ws_.up, rows * up_stride_);
    Resize(ws_.activated, rows * activated_stride_);
    for (std::vector<float>& scratch : ws_.scratch) {
      Resize(scratch, kernels_.AttentionScratch(longest_, c_.head_dim));
    }
  }

  void Run() {
    Embed();
    for (int l = 0; l < c_.num_layers; ++l) {
      const CpuModel::Layer& layer = model_.layers_[l];
      Normalize(layer.input_norm);
      Multiply(layer.qkv, layer.qkv_bias, ws_.qkv, qkv_stride_);
      StoreKeysAndValues(l, layer);
      if (l == c_.num_layers - 1) KeepWantedRows();
      if (rows_.empty()) return;
      Attend(l);
      if (c_.parallel_residual) Normalize(layer.post_attention_norm);
      AddProduct(ws_.attended, attended_stride_, layer.output, layer.output_bias);

      if (!c_.parallel_residual) Normalize(layer.post_attention_norm);
      Multiply(layer.up, layer.up_bias, ws_.up, up_stride_);
      Activate();
      AddProduct(ws_.activated, activated_stride_, layer.down, layer.down_bias);
    }
  }

  int num_rows() const { return static_cast<int>(rows_.size()); }
  // The residual stream of a row.
  const float* x(int row) const { return ws_.x.data() + row * x_stride_; }

 private:
  struct Row {
    int32_t token;
    int position;
    const int* blocks;
  };

  void Group(std::span<const SequenceChunk> chunks) {
    groups_ = GroupRows(chunks, std::min(kMaxRowsPerGroup, kernels_.QueriesAtOnce()));
  }

  // The others have nothing more to do.
  void KeepWantedRows() {
    std::vector<SequenceChunk> wanted;
    size_t row = 0, kept = 0;
    for (const SequenceChunk& chunk : chunks_) {
      const size_t others = chunk.tokens.size() - chunk.num_outputs;
      wanted.push_back({chunk.tokens.subspan(others), chunk.first_position + static_cast<int>(others),
                        chunk.blocks, chunk.num_outputs});
      row += others;
      for (int i = 0; i < chunk.num_outputs; ++i, ++row, ++kept) {
        if (row == kept) continue;
        std::copy_n(ws_.x.data() + row * x_stride_, x_stride_, ws_.x.data() + kept * x_stride_);
        std::copy_n(ws_.qkv.data() + row * qkv_stride_, qkv_stride_, ws_.qkv.data() + kept * qkv_stride_);
        rows_[kept] = rows_[row];
      }
    }
    if (kept == rows_.size()) return;
    rows_.resize(kept);
    Group(wanted);
  }

  // body(row) for every row, by all threads where it pays.
  template <typename Body>
  void ForRows(int numbers_per_row, const Body& body) {
    ws_.team.For(num_rows(), Grain(kPieceNumbers, numbers_per_row), [&](int /*thread*/, int begin, int end) {
      for (int row = begin; row < end; ++row) body(row);
    });
  }

  void Embed() {
    for (int row = 0; row < num_rows(); ++row) {
      std::copy_n(model_.embedding_.data() + size_t(rows_[row].token) * c_.hidden_size, c_.hidden_size,
                  ws_.x.data() + row * x_stride_);
    }
  }

  void Normalize(const Weights::Norm& norm) {
    ForRows(c_.hidden_size,
            [&](int row) { model_.Normalize(x(row), norm, ws_.normed.data() + row * x_stride_); });
  }

  // out = normed · Wᵀ + bias.
  void Multiply(const PackedMatrix& weight, const std::vector<float>& bias, std::vector<float>& out,
                size_t out_stride) {
    for (int row = 0; row < num_rows() && !bias.empty(); ++row) {
      std::copy(bias.begin(), bias.end(), out.begin() + row * out_stride);
    }
    engine::Multiply(kernels_, ws_.team, ws_.normed.data(), x_stride_, num_rows(), weight, !bias.empty(),
                     out.data(), out_stride);
  }

  // x += in · Wᵀ + bias.
  void AddProduct(const std::vector<float>& in, size_t in_stride, const PackedMatrix& weight,
                  const std::vector<float>& bias) {
    for (int row = 0; row < num_rows() && !bias.empty(); ++row) {
      float* to = ws_.x.data() + row * x_stride_;
      for (size_t i = 0; i < bias.size(); ++i) to[i] += bias[i];
    }
    engine::Multiply(kernels_, ws_.team, in.data(), in_stride, num_rows(), weight, true, ws_.x.data(),
                     x_stride_);
  }

  // Norms and rotates queries and keys; keys and values go into the cache.
  void StoreKeysAndValues(int l, const CpuModel::Layer& layer) {
    const int half = c_.rotary.num_dims() / 2, q_width = c_.num_heads * c_.head_dim,
              kv_width = c_.num_kv_heads * c_.head_dim;
    ForRows(q_width + 2 * kv_width, [&](int row) {
      const int position = rows_[row].position;
      float* qkv = ws_.qkv.data() + row * qkv_stride_;
      for (int h = 0; h < c_.num_heads + c_.num_kv_heads; ++h) {
        float* head = qkv + h * c_.head_dim;
        if (c_.qk_norm) {
          const std::vector<float>& norm = h < c_.num_heads ? layer.query_norm : layer.key_norm;
          kernels_.RmsNorm(head, norm.data(), static_cast<float>(c_.norm_eps), c_.head_dim, head);
        }
        kernels_.Rotate(head, model_.cosines_.data() + size_t(position) * half,
                        model_.sines_.data() + size_t(position) * half, 2 * half);
      }
      const int block = rows_[row].blocks[position / kBlockTokens], slot = position % kBlockTokens;
      for (int h = 0; h < c_.num_kv_heads; ++h) {
        const float* key = qkv + q_width + h * c_.head_dim;
        float* keys = cache_.keys(l, block, h);
        for (int i = 0; i < c_.head_dim; ++i) keys[i * kBlockTokens + slot] = key[i];
        std::copy_n(key + kv_width, c_.head_dim, cache_.values(l, block, h) + slot * c_.head_dim);
      }
    });
  }

  // A piece is a group of rows in one head; groups of a head follow each other, so that what they share stays
  // in the cache.
  void Attend(int l) {
    const int num_groups = static_cast<int>(groups_.size());
    const int queries_per_head = c_.num_heads / c_.num_kv_heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(c_.head_dim));
    const int64_t work = int64_t{2} * queries_per_head * groups_.front().num_rows * longest_ * c_.head_dim;
    ws_.team.For(
        c_.num_kv_heads * num_groups, Grain(kPieceMultiplyAdds, work), [&](int thread, int begin, int end) {
          std::vector<AttentionQuery> queries;
          for (int piece = begin; piece < end; ++piece) {
            const int h = piece / num_groups;
            const AttentionGroup& group = groups_[piece % num_groups];
            queries.clear();
            for (int i = 0; i < group.num_rows; ++i) {
              const int row = group.first_row + i;
              for (int query = h * queries_per_head; query < (h + 1) * queries_per_head; ++query) {
                queries.push_back({ws_.qkv.data() + row * qkv_stride_ + query * c_.head_dim, group.blocks[i],
                                   group.num_tokens[i],
                                   ws_.attended.data() + row * attended_stride_ + query * c_.head_dim});
              }
            }
            kernels_.Attend(queries, group.shared_blocks, cache_.head(l, h), c_.head_dim, scale,
                            ws_.scratch[thread].data());
          }
        });
  }

  void Activate() {
    ForRows(4 * c_.intermediate_size, [&](int row) {
      const float* up = ws_.up.data() + row * up_stride_;
      float* out = ws_.activated.data() + row * activated_stride_;
      switch (c_.mlp) {
        case MlpKind::kSiluGated:
          return kernels_.SiluMul(up, up + c_.intermediate_size, c_.intermediate_size, out);
        case MlpKind::kGelu:
          return kernels_.Gelu(up, c_.intermediate_size, out);
        case MlpKind::kGeluTanh:
          return kernels_.GeluTanh(up, c_.intermediate_size, out);
      }
    });
  }

  const CpuModel& model_;
  const ModelConfig& c_;
  const Kernels& kernels_;
  const std::span<const SequenceChunk> chunks_;
  KvCache& cache_;
  Workspace& ws_;
  std::vector<Row> rows_;
  std::vector<AttentionGroup> groups_;
  int longest_ = 0;
  const size_t x_stride_ = RowStride(c_.hidden_size);
  const size_t qkv_stride_ = RowStride((c_.num_heads + 2 * c_.num_kv_heads) * c_.head_dim);
  const size_t attended_stride_ = RowStride(c_.num_heads * c_.head_dim);
  const size_t up_stride_ = RowStride((c_.mlp == MlpKind::kSiluGated ? 2 : 1) * c_.intermediate_size);
  const size_t activated_stride_ = RowStride(c_.intermediate_size);
};

void CpuModel::Forward(std::span<const SequenceChunk> chunks, KvCache& cache, Workspace& workspace,
                       std::vector<float>& hidden) const {
  ForwardPass pass(*this, chunks, cache, workspace);
  pass.Run();
  const size_t width = config_.hidden_size;
  hidden.resize(pass.num_rows() * width);
  for (int row = 0; row < pass.num_rows(); ++row) {
    Normalize(pass.x(row), final_norm_, hidden.data() + row * width);
  }
}

void CpuModel::Logits(std::span<const float> hidden, Workspace& workspace, std::vector<float>& logits) const {
  const int rows = static_cast<int>(hidden.size()) / config_.hidden_size;
  Resize(logits, size_t(rows) * config_.vocab_size);
  Multiply(*kernels_, workspace.team, hidden.data(), config_.hidden_size, rows, head_, false, logits.data(),
           config_.vocab_size);
}

float CpuModel::Reward(std::span<const float> hidden) const {
  return kernels_->Dot(hidden.data(), reward_head_.data(), config_.hidden_size);
}

}  // namespace almost::engine
