#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/engine/weights.h"
#include "common/kernels/aligned_buffer.h"
#include "common/kernels/kernels.h"
#include "common/kernels/thread_team.h"
#include "common/model/model_folder.h"

namespace almost::engine {

// Keys and values of `num_blocks` blocks of 16 tokens over all layers. A block holds one layer's keys of one
// head as [D, 16] and values as [16, D]. Plain memory: who may write which block is the scheduler's business.
class KvCache {
 public:
  KvCache(const ModelConfig& config, int num_blocks);
  static int64_t BlockBytes(const ModelConfig& config);

  float* keys(int layer, int block, int head) {
    return data_.data() + (((size_t(layer) * num_blocks_ + block) * heads_ + head) * 2) * block_head_floats_;
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
  AlignedBuffer<float> data_;  // not touched until used
};

// Consecutive tokens of one sequence to be computed now.
struct SequenceChunk {
  std::span<const int32_t> tokens;
  int first_position = 0;       // tokens before it have their keys and values in `blocks`
  std::span<const int> blocks;  // of the sequence from its start, enough for all its tokens
  int num_outputs = 0;          // hidden states wanted, of the chunk's last tokens
};

// out = x · Wᵀ, or out += x · Wᵀ with `accumulate`, by all threads of the team: each takes panels, so that
// a weight is read by one of them.
void Multiply(const Kernels& kernels, ThreadTeam& team, const float* x, size_t x_stride, int rows,
              const PackedMatrix& weight, bool accumulate, float* out, size_t out_stride);

// What passes through a model need besides its weights: buffers, which grow to the largest pass, and threads,
// which other workspaces may use between passes. One pass at a time.
class Workspace {
 public:
  // `threads` must outlive it.
  explicit Workspace(ThreadTeam& threads) : team(threads), scratch(threads.size()) {}

  ThreadTeam& team;

 private:
  friend class CpuModel;
  friend class ForwardPass;
  std::vector<float> x, normed, qkv, attended, up, activated;
  std::vector<std::vector<float>> scratch;  // of each thread
};

// A decoder-only transformer of the Llama or GPT-NeoX family: float32 arithmetic, weights packed for the
// kernels in the type of the checkpoint. The families differ in what a layer is read from; computed is one
// shape of layer, with a few choices of ModelConfig's. Immutable after Load and thread-safe.
class CpuModel {
 public:
  // kFailedPrecondition: this processor lacks AVX2, FMA or F16C; kNotFound or kDataLoss name a tensor.
  // `kernels`: those of Kernels::Best() but in tests.
  static absl::StatusOr<std::unique_ptr<const CpuModel>> Load(const ModelFolder& folder,
                                                              const Kernels* kernels = Kernels::Best());

  // Computes the chunks, writes their keys and values into `cache`, and leaves the wanted hidden states
  // (after the final norm), [sum of num_outputs, hidden_size], in `hidden`. No chunk may read a block another
  // one writes. Bits do not depend on the number of threads.
  void Forward(std::span<const SequenceChunk> chunks, KvCache& cache, Workspace& workspace,
               std::vector<float>& hidden) const;

  // The language-model head: [rows, vocab_size].
  void Logits(std::span<const float> hidden, Workspace& workspace, std::vector<float>& logits) const;
  // The reward head on one hidden state.
  float Reward(std::span<const float> hidden) const;

  const Kernels& kernels() const { return *kernels_; }
  const ModelConfig& config() const { return config_; }

 private:
  friend class ForwardPass;
  struct Layer : Weights::LayerVectors {
    PackedMatrix qkv, output, up, down;
  };

  CpuModel() = default;
  void Normalize(const float* x, const Weights::Norm& norm, float* out) const;

  ModelConfig config_;
  const Kernels* kernels_ = nullptr;
  std::vector<float> embedding_;  // [V, hidden]
  std::vector<Layer> layers_;
  Weights::Norm final_norm_;
  PackedMatrix head_;               // empty with a reward head
  std::vector<float> reward_head_;  // [hidden]
  std::vector<float> cosines_;      // [max_positions, R/2], R dimensions of a head turn
  std::vector<float> sines_;
};

}  // namespace almost::engine
