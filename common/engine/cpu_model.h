#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/engine/kernels.h"
#include "common/model/model_folder.h"

namespace almost::engine {

// Keys and values of `num_blocks` blocks of 16 tokens over all layers. A block holds one layer's keys of one
// head as [D, 16] and values as [16, D]. Plain memory: who may write which block is the scheduler's business.
class KvCache {
 public:
  KvCache(const ModelConfig& config, int num_blocks);
  static int64_t BlockBytes(const ModelConfig& config);

  float* keys(int layer, int block, int head) {
    return data_.get() + (((size_t(layer) * num_blocks_ + block) * heads_ + head) * 2) * block_head_floats_;
  }
  float* values(int layer, int block, int head) { return keys(layer, block, head) + block_head_floats_; }
  HeadCache head(int layer, int head) {
    return {keys(layer, 0, head), values(layer, 0, head), size_t(heads_) * 2 * block_head_floats_};
  }
  // Block `to` becomes a copy of block `from`.
  void Copy(int from, int to);

 private:
  int num_layers_;
  int num_blocks_;
  int heads_;
  size_t block_head_floats_;
  std::unique_ptr<float[]> data_;  // not touched until used
};

// Consecutive tokens of one sequence to be computed now.
struct SequenceChunk {
  std::span<const int32_t> tokens;
  int first_position = 0;       // tokens before it have their keys and values in `blocks`
  std::span<const int> blocks;  // of the sequence from its start, enough for all its tokens
  int num_outputs = 0;          // hidden states wanted, of the chunk's last tokens
};

// A decoder-only transformer of the Llama or GPT-NeoX family in float32, weights packed for the kernels. The
// families differ in what a layer is read from; computed is one shape of layer, with a few choices of
// ModelConfig's. Immutable after Load and thread-safe: several threads may run chunks of different sequences
// side by side.
class CpuModel {
 public:
  // kFailedPrecondition: this processor lacks AVX2 or FMA; kNotFound or kDataLoss name a tensor.
  static absl::StatusOr<std::unique_ptr<const CpuModel>> Load(const ModelFolder& folder);

  // Computes the chunks, writes their keys and values into `cache`, and appends the wanted hidden states
  // (after the final norm), [sum of num_outputs, hidden_size], to `hidden`. No chunk may read a block another
  // one writes.
  void Forward(std::span<const SequenceChunk> chunks, KvCache& cache, std::vector<float>& hidden) const;

  // The language-model head: [rows, vocab_size].
  void Logits(std::span<const float> hidden, std::vector<float>& logits) const;
  // The reward head on one hidden state.
  float Reward(std::span<const float> hidden) const;

  const ModelConfig& config() const { return config_; }

 private:
  struct Norm {
    std::vector<float> weight, bias;  // no bias: RMSNorm
  };
  struct Layer {
    Norm input_norm, post_attention_norm;
    std::vector<float> query_norm, key_norm;                       // empty: none
    std::vector<float> qkv_bias, output_bias, up_bias, down_bias;  // empty: none
    PackedMatrix qkv;                                              // heads of q, then k, then v
    PackedMatrix output;
    PackedMatrix up;  // gate and up under each other where the MLP is gated
    PackedMatrix down;
  };

  class Reader;

  CpuModel() = default;
  static Layer ReadLlamaLayer(Reader& read, const ModelConfig& config, int number);
  static Layer ReadNeoXLayer(Reader& read, const ModelConfig& config, int number);
  void Normalize(const float* x, const Norm& norm, int rows, float* out) const;

  ModelConfig config_;
  std::vector<float> embedding_;  // [V, hidden]
  std::vector<Layer> layers_;
  Norm final_norm_;
  PackedMatrix head_;               // empty with a reward head
  std::vector<float> reward_head_;  // [hidden]
  std::vector<float> cosines_;      // [max_positions, R/2], R dimensions of a head turn
  std::vector<float> sines_;
};

}  // namespace almost::engine
