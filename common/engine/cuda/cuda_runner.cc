#include "common/engine/cuda/cuda_runner.h"

#include <algorithm>
#include <bit>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "common/engine/block_pool.h"
#include "common/engine/cuda/device.h"
#include "common/engine/cuda/kernels.h"
#include "common/engine/cuda/products.h"
#include "common/engine/weights.h"

namespace almost::engine::cuda {
namespace {

// Bumped when a change of ours changes bits.
constexpr absl::string_view kEngineVersion = "almost-cuda-1";

constexpr int kSplitBlocks = kSplitTokens / kBlockTokens;
// Logits held at once.
constexpr size_t kLogitBytes = size_t{256} << 20;

template <typename T>
constexpr WeightType TypeOf() {
  return std::is_same_v<T, float>  ? WeightType::kFloat32
         : std::is_same_v<T, Half> ? WeightType::kFloat16
                                   : WeightType::kBfloat16;
}
const char* Name(WeightType type) {
  return type == WeightType::kFloat32 ? "float32" : type == WeightType::kFloat16 ? "float16" : "bfloat16";
}

template <typename T>
class OurProducts final : public Products {
 public:
  void operator()(Stream& stream, const void* a, const void* w, int rows, int n, int k, bool accumulate,
                  float* out) override {
    Multiply(stream, static_cast<const T*>(a), static_cast<const T*>(w), rows, n, k, accumulate, out);
  }
};

// Memory that grows; what it held is gone then.
class Room {
 public:
  explicit Room(Memory::Kind kind = Memory::kDevice) : kind_(kind) {}
  // Whether it lies elsewhere now.
  absl::StatusOr<bool> Reserve(size_t bytes) {
    if (bytes <= bytes_) return false;
    bytes_ = 0;
    memory_ = Memory();  // before there is another
    ALMOST_ASSIGN_OR_RETURN(memory_, Memory::Allocate(bytes, kind_));
    bytes_ = bytes;
    return true;
  }
  template <typename T>
  T* as() const {
    return memory_.as<T>();
  }
  size_t bytes() const { return bytes_; }

 private:
  Memory::Kind kind_;
  Memory memory_;
  size_t bytes_ = 0;
};

// The same array on host and device.
template <typename T>
class Mirrored {
 public:
  absl::StatusOr<bool> Reserve(size_t count) {
    const size_t bytes = std::bit_ceil(count) * sizeof(T);
    ALMOST_RETURN_IF_ERROR(host_.Reserve(bytes).status());
    return device_.Reserve(bytes);
  }
  const T* host() const { return host_.template as<T>(); }
  T* device() const { return device_.template as<T>(); }
  void Upload(Stream& stream, std::span<const T> values) {
    std::copy(values.begin(), values.end(), host_.template as<T>());
    stream.Copy(device(), host(), values.size_bytes());
  }
  void Download(Stream& stream, size_t count) {
    stream.Copy(host_.template as<T>(), device(), count * sizeof(T));
  }

 private:
  Room host_{Memory::kPinned}, device_;
};

// Weights on the device; null where there are none.
struct Norm {
  Memory weight, bias;
};
struct Layer {
  Norm input_norm, post_attention_norm;
  Memory query_norm, key_norm, qkv_bias, output_bias, up_bias, down_bias;
  Memory qkv, output, up, down;
};

template <typename T>
class CudaRunner final : public StepRunner {
 public:
  static absl::StatusOr<std::unique_ptr<StepRunner>> Make(const ModelFolder& folder,
                                                          const RunnerOptions& options) {
    const ModelConfig& c = folder.config();
    if (c.head_dim > 256) {
      return absl::UnimplementedError(absl::StrCat("head_dim: on a GPU at most 256, got ", c.head_dim));
    }
    if (c.num_heads / c.num_kv_heads > kPieceQueries) {
      return absl::UnimplementedError(absl::StrCat("num_key_value_heads: on a GPU at least a ", kPieceQueries,
                                                   "th of num_attention_heads, got ", c.num_kv_heads));
    }
    ALMOST_RETURN_IF_ERROR(UseDevice(options.device));
    auto runner = std::unique_ptr<CudaRunner>(new CudaRunner(c, options));
    const int64_t block_bytes = int64_t{2} * c.num_layers * runner->half_block_ * sizeof(T);
    ALMOST_ASSIGN_OR_RETURN(runner->num_blocks_, NumCacheBlocks(options.kv_cache_bytes, block_bytes, c));
    ALMOST_ASSIGN_OR_RETURN(runner->stream_, Stream::Create());
    if (options.deterministic) {
      runner->products_ = std::make_unique<OurProducts<T>>();
    } else {
      ALMOST_ASSIGN_OR_RETURN(runner->products_, Products::CuBlas(TypeOf<T>(), *runner->stream_));
    }
    ALMOST_RETURN_IF_ERROR(runner->Load(folder));
    ALMOST_ASSIGN_OR_RETURN(runner->cache_,
                            Memory::Allocate(runner->num_blocks_ * block_bytes, Memory::kDevice));
    ALMOST_RETURN_IF_ERROR(
        runner->Reserve(std::max(options.max_tokens, options.max_sequences), options.max_sequences, 1, 1, 1));
    return runner;
  }

  void Copy(int from, int to) override {
    const size_t bytes = 2 * half_block_ * sizeof(T);
    std::byte* const cache = cache_.as<std::byte>();
    stream_->CopyPieces(cache + to * bytes, cache + from * bytes, bytes, num_blocks_ * bytes,
                        config_.num_layers);
  }

  absl::Status Run(std::span<Sequence* const> sequences,
                   std::span<std::optional<Sampler::Draw>> draws) override {
    ALMOST_RETURN_IF_ERROR(UseDevice(device_));  // of this thread
    Plan(sequences);
    const int rows = static_cast<int>(rows_.size()), outputs = static_cast<int>(outputs_.size());
    const bool decoding = rows == outputs && rows == static_cast<int>(sequences.size());
    const int padded = decoding ? static_cast<int>(std::bit_ceil(unsigned(rows))) : rows;
    ALMOST_RETURN_IF_ERROR(
        Reserve(padded, decoding ? padded : outputs, pieces_.size(), tables_.size(), num_partials_));
    const StepInput::Counts counts{rows, static_cast<int>(pieces_.size()), outputs};
    counts_memory_.Upload(*stream_, {&counts, 1});
    rows_memory_.Upload(*stream_, rows_);
    pieces_memory_.Upload(*stream_, pieces_);
    outputs_memory_.Upload(*stream_, outputs_);
    tables_memory_.Upload(*stream_, tables_);
    if (decoding) {
      std::shared_ptr<Stream::Graph>& graph = graphs_[padded];
      if (graph == nullptr) {
        ALMOST_ASSIGN_OR_RETURN(graph, stream_->Record([&] { Enqueue(padded, 1 << 20, padded); }));
      }
      stream_->Run(*graph);
    } else {
      Enqueue(rows, static_cast<int>(pieces_.size()), outputs);
    }
    results_.Download(*stream_, outputs);
    ALMOST_RETURN_IF_ERROR(stream_->Wait());

    const StepResult* result = results_.host();
    for (size_t i = 0; i < sequences.size(); ++i) {
      Sequence& s = *sequences[i];
      for (int o = 0; o < s.num_outputs(); ++o, ++result) {
        if (s.scoring != nullptr) {
          const int end = s.num_computed + s.num_scheduled;
          s.scores[end - s.num_outputs() + o - s.first_output] = result->score;
        } else if (result->finite != 0) {
          draws[i] = Sampler::Draw{result->token, {}};
          if (s.sampling->logprobs) draws[i]->logprobs = {result->model_logprob, result->sampled_logprob};
        }
      }
    }
    return absl::OkStatus();
  }

  int num_blocks() const override { return num_blocks_; }
  const ModelConfig& config() const override { return config_; }
  const std::string& numerics_id() const override { return numerics_id_; }

 private:
  CudaRunner(const ModelConfig& config, const RunnerOptions& options)
      : config_(config),
        device_(options.device),
        numerics_id_(absl::StrCat(kEngineVersion, "/", Name(TypeOf<T>()), "/",
                                  options.deterministic ? "deterministic" : "cublas", "/",
                                  DeviceName(device_))),
        shape_{config.num_heads, config.num_kv_heads, config.head_dim, config.rotary.num_dims()},
        up_width_(config.intermediate_size * (config.mlp == MlpKind::kSiluGated ? 2 : 1)),
        half_block_(size_t(config.num_kv_heads) * kBlockTokens * shape_.head_stride()) {}

  // ---- loading

  // What is uploaded must stay until Stream::Wait.
  absl::StatusOr<Memory> Upload(const void* data, size_t bytes) {
    if (bytes == 0) return Memory();
    ALMOST_ASSIGN_OR_RETURN(Memory memory, Memory::Allocate(bytes, Memory::kDevice));
    stream_->Copy(memory.as<void>(), data, bytes);
    return memory;
  }
  absl::StatusOr<Memory> Upload(const std::vector<float>& vector) {
    return Upload(vector.data(), vector.size() * sizeof(float));
  }
  absl::StatusOr<Norm> Upload(const Weights::Norm& norm) {
    Norm uploaded;
    ALMOST_ASSIGN_OR_RETURN(uploaded.weight, Upload(norm.weight));
    ALMOST_ASSIGN_OR_RETURN(uploaded.bias, Upload(norm.bias));
    return uploaded;
  }
  // Straight from the mapped file.
  absl::StatusOr<Memory> Upload(const Weights::Matrix& matrix) {
    size_t bytes = 0;
    for (const WeightView& part : matrix.parts) {
      if (part.type != TypeOf<T>()) {
        return absl::UnimplementedError(absl::StrCat("weights: on a GPU all matrices of one type, found ",
                                                     Name(TypeOf<T>()), " and ", Name(part.type)));
      }
      bytes += size_t(part.num_outputs) * matrix.num_inputs * sizeof(T);
    }
    ALMOST_ASSIGN_OR_RETURN(Memory memory, Memory::Allocate(bytes, Memory::kDevice));
    std::byte* to = memory.as<std::byte>();
    for (const WeightView& part : matrix.parts) {
      const size_t part_bytes = size_t(part.num_outputs) * matrix.num_inputs * sizeof(T);
      stream_->Copy(to, part.data, part_bytes);
      to += part_bytes;
    }
    return memory;
  }

  absl::Status Load(const ModelFolder& folder) {
    ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<Weights> weights, Weights::Read(folder));
    const TensorView& embedding = weights->embedding;
    std::vector<float> rounded;
    if (embedding.dtype == DType::kF64) rounded = embedding.ToFloat();
    ALMOST_ASSIGN_OR_RETURN(embedding_, rounded.empty()
                                            ? Upload(embedding.bytes.data(), embedding.bytes.size())
                                            : Upload(rounded));
    for (const Weights::Layer& from : weights->layers) {
      Layer& to = layers_.emplace_back();
      ALMOST_ASSIGN_OR_RETURN(to.input_norm, Upload(from.input_norm));
      ALMOST_ASSIGN_OR_RETURN(to.post_attention_norm, Upload(from.post_attention_norm));
      for (const auto& [vector, memory] :
           {std::pair{&from.query_norm, &to.query_norm}, std::pair{&from.key_norm, &to.key_norm},
            std::pair{&from.qkv_bias, &to.qkv_bias}, std::pair{&from.output_bias, &to.output_bias},
            std::pair{&from.up_bias, &to.up_bias}, std::pair{&from.down_bias, &to.down_bias}}) {
        ALMOST_ASSIGN_OR_RETURN(*memory, Upload(*vector));
      }
      for (const auto& [matrix, memory] : {std::pair{&from.qkv, &to.qkv}, std::pair{&from.output, &to.output},
                                           std::pair{&from.up, &to.up}, std::pair{&from.down, &to.down}}) {
        ALMOST_ASSIGN_OR_RETURN(*memory, Upload(*matrix));
      }
    }
    ALMOST_ASSIGN_OR_RETURN(final_norm_, Upload(weights->final_norm));
    if (config_.reward_head) {
      ALMOST_ASSIGN_OR_RETURN(reward_head_, Upload(weights->reward_head));
    } else if (config_.tie_word_embeddings) {
      head_ = embedding_;
    } else {
      ALMOST_ASSIGN_OR_RETURN(head_, Upload(weights->head));
    }
    ALMOST_ASSIGN_OR_RETURN(cosines_, Upload(weights->cosines));
    ALMOST_ASSIGN_OR_RETURN(sines_, Upload(weights->sines));
    return stream_->Wait();  // until then the weights are needed
  }

  // ---- a step

  // What the step's kernels read.
  void Plan(std::span<Sequence* const> sequences) {
    rows_.clear();
    pieces_.clear();
    outputs_.clear();
    tables_.clear();
    num_partials_ = 0;
    int longest = 0;
    for (const Sequence* s : sequences) {
      const int end = s->num_computed + s->num_scheduled, table = static_cast<int>(tables_.size());
      tables_.insert(tables_.end(), s->blocks.begin(), s->blocks.end());
      for (int p = s->num_computed; p < end; ++p) {
        rows_.push_back({s->tokens[p], p, table, static_cast<int32_t>(num_partials_)});
        num_partials_ += p / kSplitTokens + 1;
        if (p >= end - s->num_outputs()) outputs_.push_back(OutputOf(*s, p));
      }
      longest = std::max(longest, end);
    }
    for (int split = 0; split * kSplitTokens < longest; ++split) PlanPieces(split);
  }

  StepInput::Output OutputOf(const Sequence& s, int position) const {
    StepInput::Output out{.row = static_cast<int32_t>(rows_.size()) - 1, .target = -1};
    if (s.scoring != nullptr) {
      out.target = s.targets.empty() ? 0 : s.targets[position - s.first_output];
      return out;
    }
    const SamplingParams& p = *s.sampling;
    out.temperature = static_cast<float>(p.temperature);
    out.top_p = static_cast<float>(p.top_p);
    out.min_p = static_cast<float>(p.min_p);
    out.top_k = p.top_k;
    out.unit = RandomUnit(p.seed, static_cast<uint64_t>(s.index), static_cast<uint64_t>(s.num_new()));
    return out;
  }

  // A row joins those before it where their sequences have the same blocks in the split, as far as both have
  // any.
  void PlanPieces(int split) {
    const int most = kPieceQueries / (config_.num_heads / config_.num_kv_heads);
    int blocks_of_piece = 0;  // that its table has in the split
    for (int row = 0; row < static_cast<int>(rows_.size()); ++row) {
      const StepInput::Row& r = rows_[row];
      const int blocks = std::min(kSplitBlocks, r.position / kBlockTokens + 1 - split * kSplitBlocks);
      if (blocks < 1) continue;
      const int table = r.table + split * kSplitBlocks;
      StepInput::Piece* last = pieces_.empty() ? nullptr : &pieces_.back();
      if (last != nullptr && last->split == split && last->first_row + last->num_rows == row &&
          last->num_rows < most) {
        const int compared = std::min(blocks, blocks_of_piece);
        if (std::equal(tables_.begin() + table, tables_.begin() + table + compared,
                       tables_.begin() + last->table + split * kSplitBlocks)) {
          ++last->num_rows;
          if (blocks > blocks_of_piece) {
            blocks_of_piece = blocks;
            last->table = r.table;
          }
          continue;
        }
      }
      pieces_.push_back({row, 1, split, r.table});
      blocks_of_piece = blocks;
    }
  }

  // Room for a step. Graphs know where things lay.
  absl::Status Reserve(size_t rows, size_t outputs, size_t pieces, size_t tables, size_t partials) {
    absl::Status status;
    const auto reserve = [&](auto& room, size_t size) {
      if (!status.ok()) return;
      const absl::StatusOr<bool> moved = room.Reserve(size);
      status = moved.status();
      if (!moved.ok() || *moved) graphs_.clear();
    };
    reserve(counts_memory_, 1);
    reserve(rows_memory_, rows);
    reserve(pieces_memory_, pieces);
    reserve(outputs_memory_, outputs);
    reserve(tables_memory_, tables);
    reserve(results_, outputs);
    const size_t hidden = config_.hidden_size, heads = config_.num_heads, dim = config_.head_dim;
    reserve(x_, rows * hidden * sizeof(float));
    reserve(normed_, rows * hidden * sizeof(T));
    reserve(qkv_, rows * (heads + 2 * config_.num_kv_heads) * dim * sizeof(float));
    reserve(q_, rows * heads * shape_.head_stride() * sizeof(T));
    reserve(attended_, rows * heads * dim * sizeof(T));
    reserve(up_, rows * up_width_ * sizeof(float));
    reserve(activated_, rows * config_.intermediate_size * sizeof(T));
    reserve(partials_, std::bit_ceil(partials) * PartialFloats(shape_) * sizeof(float));
    if (!config_.reward_head) {
      const size_t row_bytes = config_.vocab_size * sizeof(float);
      const size_t wanted = std::min(std::max<size_t>(1, kLogitBytes / row_bytes), outputs);
      reserve(logits_, wanted * row_bytes);
      reserve(weights_, wanted * row_bytes);
      logit_rows_ = static_cast<int>(logits_.bytes() / row_bytes);
    }
    return status;
  }

  void Product(const Room& a, const Memory& w, int rows, int n, int k, bool accumulate, const Room& out) {
    (*products_)(*stream_, a.as<void>(), w.as<void>(), rows, n, k, accumulate, out.as<float>());
  }
  void Normalize(const StepInput& in, int rows, bool of_outputs, const Norm& norm) {
    cuda::Normalize(*stream_, in, rows, of_outputs, x_.as<float>(), norm.weight.as<float>(),
                    norm.bias.as<float>(), static_cast<float>(config_.norm_eps), config_.hidden_size,
                    normed_.as<T>());
  }
  void AddBias(const StepInput& in, int rows, const Memory& bias) {
    if (bias.as<float>() != nullptr)
      cuda::AddBias(*stream_, in, rows, bias.as<float>(), config_.hidden_size, x_.as<float>());
  }

  // A step of up to so many rows, pieces and outputs; how many there are the kernels read.
  void Enqueue(int rows, int pieces, int outputs) {
    Stream& stream = *stream_;
    const StepInput in{counts_memory_.device(), rows_memory_.device(), pieces_memory_.device(),
                       outputs_memory_.device(), tables_memory_.device()};
    const ModelConfig& c = config_;
    const int q_width = c.num_heads * c.head_dim, qkv_width = q_width + 2 * c.num_kv_heads * c.head_dim;
    Embed(stream, in, rows, embedding_.as<T>(), c.hidden_size, x_.as<float>());
    for (int l = 0; l < c.num_layers; ++l) {
      const Layer& layer = layers_[l];
      const LayerCache<T> cache{cache_.as<T>() + size_t(l) * num_blocks_ * 2 * half_block_, half_block_};
      Normalize(in, rows, false, layer.input_norm);
      Product(normed_, layer.qkv, rows, qkv_width, c.hidden_size, false, qkv_);
      StoreKeysAndValues(stream, in, rows, shape_, qkv_.as<float>(), layer.qkv_bias.as<float>(),
                         layer.query_norm.as<float>(), layer.key_norm.as<float>(),
                         static_cast<float>(c.norm_eps), cosines_.as<float>(), sines_.as<float>(), q_.as<T>(),
                         cache);
      Attend(stream, in, rows, pieces, shape_, q_.as<T>(), cache, partials_.as<float>(), attended_.as<T>());
      if (c.parallel_residual) Normalize(in, rows, false, layer.post_attention_norm);
      Product(attended_, layer.output, rows, c.hidden_size, q_width, true, x_);
      AddBias(in, rows, layer.output_bias);

      if (!c.parallel_residual) Normalize(in, rows, false, layer.post_attention_norm);
      Product(normed_, layer.up, rows, up_width_, c.hidden_size, false, up_);
      Activate(stream, in, rows, c.mlp, up_.as<float>(), layer.up_bias.as<float>(), c.intermediate_size,
               activated_.as<T>());
      Product(activated_, layer.down, rows, c.hidden_size, c.intermediate_size, true, x_);
      AddBias(in, rows, layer.down_bias);
    }
    if (outputs == 0) return;
    Normalize(in, outputs, true, final_norm_);
    if (c.reward_head) {
      Reward(stream, in, outputs, normed_.as<T>(), reward_head_.as<float>(), c.hidden_size,
             results_.device());
      return;
    }
    for (int first = 0; first < outputs; first += logit_rows_) {
      const int count = std::min(logit_rows_, outputs - first);
      (*products_)(stream, normed_.as<std::byte>() + size_t(first) * c.hidden_size * sizeof(T),
                   head_.as<void>(), count, c.vocab_size, c.hidden_size, false, logits_.as<float>());
      Draw(stream, in, first, count, logits_.as<float>(), c.vocab_size, weights_.as<float>(),
           results_.device());
    }
  }

  const ModelConfig config_;
  const int device_;
  const std::string numerics_id_;
  const Shape shape_;
  const int up_width_;
  const size_t half_block_;  // numbers of a block's keys in one layer
  int num_blocks_ = 0;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Products> products_;

  Memory embedding_, head_, reward_head_, cosines_, sines_;
  std::vector<Layer> layers_;
  Norm final_norm_;
  Memory cache_;  // [layers, blocks], of a block LayerCache

  // The step under way.
  std::vector<StepInput::Row> rows_;
  std::vector<StepInput::Piece> pieces_;
  std::vector<StepInput::Output> outputs_;
  std::vector<int32_t> tables_;
  size_t num_partials_ = 0;
  Mirrored<StepInput::Counts> counts_memory_;
  Mirrored<StepInput::Row> rows_memory_;
  Mirrored<StepInput::Piece> pieces_memory_;
  Mirrored<StepInput::Output> outputs_memory_;
  Mirrored<int32_t> tables_memory_;
  Mirrored<StepResult> results_;
  Room x_, normed_, qkv_, q_, attended_, up_, activated_, partials_, logits_, weights_;
  int logit_rows_ = 0;
  std::map<int, std::shared_ptr<Stream::Graph>> graphs_;  // by the sequences that they have room for
};

}  // namespace

absl::StatusOr<std::unique_ptr<StepRunner>> MakeRunner(const ModelFolder& model,
                                                       const RunnerOptions& options) {
  switch (ComputedType(model)) {
    case DType::kF16:
      return CudaRunner<Half>::Make(model, options);
    case DType::kBF16:
      return CudaRunner<Bfloat>::Make(model, options);
    default:
      return CudaRunner<float>::Make(model, options);
  }
}

}  // namespace almost::engine::cuda
