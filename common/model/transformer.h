#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/model_config.h"
#include "common/model/model_folder.h"

// The Llama and GPT-NeoX families on LibTorch, differentiable: what training computes with, in float32 on the
// CPU by the engine's kernels (common/kernels), elsewhere by LibTorch's operators. Not here: key-value cache,
// dropout, tensor parallelism.
//
// Shapes: N tokens of all samples, S samples, T tokens of the longest one, D hidden size, H heads,
// K key-value heads, E head dimension, R dimensions of it that turn, F intermediate size, V vocabulary.
namespace almost {

// Samples packed end to end: no padding, no attention across samples, positions from 0 in each. Those that
// begin alike may share their first tokens: only the first of them has these, the others attend to its rows.
struct PackedSamples {
  torch::Tensor tokens_N;        // int64
  torch::Tensor positions_N;     // int64
  std::vector<int64_t> offsets;  // [S + 1]: where samples' own tokens begin and the last one's end
  // [S]: sample s begins with the tokens of rows [prefix_rows[s], prefix_rows[s] + prefix_tokens[s]), which
  // are those that an earlier sample begins with, and goes on with its own.
  std::vector<int64_t> prefix_rows, prefix_tokens;

  // Its tensors on the device. No sample may be empty. `prompt_tokens` [S], or none: how many tokens of a
  // sample, fewer than all, are shared with those samples that have the same ones as their prompt.
  static PackedSamples Pack(std::span<const std::vector<int32_t>> samples, torch::Device device = torch::kCPU,
                            std::span<const int64_t> prompt_tokens = {});
  int64_t num_samples() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t num_tokens() const { return offsets.back(); }
  // The packed index of each sample's last token, int64 [S].
  torch::Tensor LastTokens() const;
};

// Parameters by their Hugging Face names, and the forward pass over them, in float64, float32 or bfloat16.
// Copies share parameters. Const methods may run on several threads; backward passes may too when each has
// its own Replica.
class Transformer {
 public:
  // The folder's weights in `dtype`. kNotFound and kDataLoss name the tensor. With `reward_head` unlike the
  // folder's, the other head is left out and a new one is zero (reward) or kFailedPrecondition (language).
  static absl::StatusOr<Transformer> Load(const ModelFolder& folder, torch::ScalarType dtype,
                                          bool reward_head);
  // Fresh weights: normal with deviation 0.02 for embeddings and 0.7 / sqrt(inputs) for matrices, those that
  // add to the residual stream further divided by sqrt(2 · layers); norms one, biases zero.
  static Transformer Initialize(const ModelConfig& config, torch::ScalarType dtype, uint64_t seed);

  // The model on another device, before it is trained; where it is there already, the same storage.
  Transformer To(torch::Device device) const;
  // Where its parameters are, and what it computes; samples have to be there too.
  torch::Device device() const { return embedding_.device(); }

  // Low-rank adapters (Hu et al. 2021, LoRA, arXiv 2106.09685) on every matrix of the layers: y = x Wᵀ +
  // alpha / rank · x Aᵀ Bᵀ, A [rank, inputs] uniform within ± 1 / sqrt(inputs), B [outputs, rank] zero. They,
  // and a reward head, are all that takes gradients from here on. Once; before replicas are made.
  void AddAdapters(int rank, double alpha, uint64_t seed);
  // Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): of each layer a backward pass finds the
  // input alone, and computes the rest again, to the same bits.
  void RecomputeLayers() { recompute_ = true; }

  // After the final norm, of the rows `rows_M`, which are distinct, [M, D]; undefined: of all, [N, D]. Of the
  // others the last layer computes keys and values alone.
  torch::Tensor Hidden(const PackedSamples& samples, const torch::Tensor& rows_M = {}) const;
  // The language-model head, [V, D]: the embedding where they are tied.
  const torch::Tensor& HeadWeight() const { return head_; }
  // The reward head on each sample's last token, [S]; float32 where weights are bfloat16.
  torch::Tensor Rewards(const PackedSamples& samples) const;

  // Same storage, own gradients: for a backward pass on another thread.
  Transformer Replica() const;
  // The model as it is now, without gradients, which training this one leaves as it is: with adapters, which
  // are zero when they are added, the same storage without them; else a copy.
  Transformer Frozen() const;

  const ModelConfig& config() const { return config_; }
  // Leaves, by name; those that are trained require gradients. Their data may be changed in place.
  const std::map<std::string, torch::Tensor>& parameters() const { return parameters_; }
  // The same as an opened folder in memory, adapters merged, in float32 where there are some: what the engine
  // loads.
  std::shared_ptr<const ModelFolder> InMemoryFolder() const;
  // config.json and model.safetensors: adapters merged, bfloat16 where the parameters are, else float32.
  absl::Status Save(const std::filesystem::path& folder) const;

 private:
  struct Norm {
    torch::Tensor weight, bias;
  };
  struct Linear {
    torch::Tensor weight, bias;  // undefined: none
    torch::Tensor adapter_a, adapter_b;
    double adapter_scale = 0;
    torch::Tensor operator()(const torch::Tensor& x) const;
    torch::Tensor Adapter(const torch::Tensor& x) const;
  };
  struct Layer {
    Norm input_norm, post_attention_norm;
    torch::Tensor query_norm, key_norm;
    Linear query, key, value;  // the Llama family's,
    Linear query_key_value;    // or GPT-NeoX's: q, k and v of the first head, then of the second, …
    Linear output;
    Linear gate;  // where the MLP is gated
    Linear up, down;
    std::vector<torch::Tensor> Leaves() const;
  };
  struct Pass;
  struct Recomputation;
  class RecomputedLayer;

  Transformer(ModelConfig config, std::map<std::string, torch::Tensor> parameters, double adapter_scale);
  torch::Tensor Normalize(const torch::Tensor& x, const Norm& norm) const;
  // Heads of q, then k, then v, [N, H + 2K, E].
  torch::Tensor QueriesKeysValues(const Layer& layer, const torch::Tensor& x_ND) const;
  // Of all rows, [N, H · E], before the output matrix. `first_queries` [S], or none: a sample's rows before
  // that token are not needed and hold anything.
  torch::Tensor Attention(const Layer& layer, const torch::Tensor& x_ND, const Pass& pass,
                          const std::vector<int64_t>& first_queries) const;
  torch::Tensor Mlp(const Layer& layer, const torch::Tensor& x_ND) const;
  // The last layer's result is of the pass's rows alone.
  torch::Tensor Forward(size_t number, const torch::Tensor& x_ND, const Pass& pass) const;
  // Parameters with adapters added to the matrices they belong to.
  std::map<std::string, torch::Tensor> Merged() const;

  ModelConfig config_;
  std::map<std::string, torch::Tensor> parameters_;
  double adapter_scale_ = 0;  // 0: none
  bool recompute_ = false;
  torch::Tensor embedding_, head_;
  Norm final_norm_;
  std::vector<Layer> layers_;
};

}  // namespace almost
