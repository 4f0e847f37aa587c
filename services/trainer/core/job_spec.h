#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"

// What a training job is to do, with every path resolved and every default filled in.
namespace almost::trainer {

enum class Schedule { kCosine, kLinear, kConstant };

struct OptimizerSpec {
  double learning_rate = 0;  // peak, of AdamW
  double weight_decay = 0;   // decoupled; of matrices, not of norms and biases
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  Schedule schedule = Schedule::kCosine;
  int64_t warmup_steps = 0;
  double warmup_fraction = 0;     // of all steps, when warmup_steps is 0
  double hold_fraction = 0;       // of all steps, before the decay begins
  double final_fraction = 0;      // of the peak, at the end
  double max_grad_norm = 0;       // over all parameters; 0: no clipping
  double muon_learning_rate = 0;  // above 0: hidden matrices are trained by Muon, the rest by AdamW
  double muon_weight_decay = 0;
  std::vector<std::string> frozen;  // prefixes of the names of parameters that stay as they are
};

// Packed documents, end-of-text in front of each.
struct PretrainSpec {
  std::filesystem::path dataset;       // JSON Lines of {"text"}
  std::optional<uint64_t> world_seed;  // a world's corpus instead
  std::string world;                   // whose: a name as world::World::Named takes it
  std::filesystem::path
      model_config;  // a config.json with tokenizer files beside it, where there is no base_model
  int64_t num_tokens = 0;
  int sequence_tokens = 0;
  int batch_sequences = 0;
  int64_t first_document = 0;
};

struct SftSpec {
  std::filesystem::path dataset;  // JSON Lines of {"messages": [{role, content}]}
  int epochs = 1;
  int batch_size = 0;  // dialogues of a step
  int max_tokens = 0;  // longer ones are cut; 0: the model's context
};

struct RewardModelSpec {
  std::filesystem::path dataset;  // JSON Lines of {"prompt", "chosen", "rejected"}
  int epochs = 1;
  int batch_size = 0;  // pairs of a step
  int max_tokens = 0;
  double held_out_fraction = 0;   // of the pairs, by a hash of their prompt
  bool use_margins = false;       // a line's "margin" is by how much its scores are to differ
  double center_coefficient = 0;  // weight of (chosen + rejected)², which draws scores towards mean 0
  bool whole_prompts = false;     // all pairs of a prompt are in one batch, each of its answers read once
  int64_t evaluation_steps = 0;   // between evaluations on the held-out pairs; 0: after the last step alone
  int patience = 0;  // evaluations in a row without a smaller loss that end the job with the best; 0: none do
};

struct DpoSpec {
  std::filesystem::path dataset;  // JSON Lines of {"prompt", "chosen", "rejected"}
  int epochs = 1;
  int batch_size = 0;
  int max_tokens = 0;
  double beta = 0.1;
};

// Proximal policy optimisation; with a group size, its kind without a value function: GRPO.
struct PpoSpec {
  std::filesystem::path dataset;  // JSON Lines of {"prompt"}
  int num_iterations = 0;
  int rollouts = 0;  // of an iteration
  int epochs = 1;    // passes over an iteration's rollouts
  int minibatch_size = 0;
  int max_new_tokens = 0;
  double top_p = 1;
  double temperature = 1;
  double kl_coefficient = 0;
  double kl_target = 0;  // nats per rollout; above 0: the coefficient adapts towards it
  double clip_range = 0.2;
  double value_clip_range = 0.2;
  double gae_lambda = 0.95;
  double gamma = 1;
  double value_coefficient = 0.5;
  double value_learning_rate = 0;
  std::filesystem::path value_model;  // a reward model that the value function begins as; empty: a small head
  std::optional<double> missing_stop_reward;  // of a rollout that did not stop by itself
  int value_warmup_iterations = 0;            // at first the value function learns alone
  bool normalize_rewards = false;             // by mean and deviation over rollouts of the base model
  double reward_clip = 0;                     // above 0: the (normalised) score is kept within ± this
  double length_penalty = 0;                  // taken off the reward for each generated token
  double kl_limit = 0;  // nats per rollout; above 0: a policy beyond it ends the job with the one before
  std::filesystem::path mix_dataset;  // JSON Lines of {"text"}, learned beside the rollouts
  double mix_coefficient = 0;         // weight of their loss
  int group_size = 0;            // answers of a prompt; above 0: GRPO, and the value function's fields are 0
  bool scale_advantages = true;  // GRPO: whether scores are divided by their group's deviation
};

using KindSpec = std::variant<PretrainSpec, SftSpec, RewardModelSpec, DpoSpec, PpoSpec>;

// "pretrain", "sft", "reward_model", "dpo", "ppo" or "grpo".
const char* KindName(const KindSpec& kind);

enum class Precision { kFloat32, kBfloat16 };

// What training takes of memory, and what it gives for it.
struct MemorySpec {
  // Of weights, activations and their arithmetic. With kBfloat16 the optimizer steps a float32 copy of the
  // weights, and micro-batches' gradients add up in float32.
  Precision precision = Precision::kFloat32;
  bool recompute_layers = false;      // keeps a layer's input alone for the backward pass; same bits
  int64_t micro_batch_tokens = 4096;  // most tokens of a micro-batch, but for longer samples
  struct Adapters {
    int rank = 0;
    double alpha = 0;
  };
  std::optional<Adapters> adapters;  // LoRA: these are trained in place of the base model's weights
};

struct JobSpec {
  std::filesystem::path base_model;  // a Hugging Face folder; empty: fresh weights (pretrain alone)
  uint64_t seed = 0;
  OptimizerSpec optimizer;
  std::string prompt_format;     // empty: as the base model's almost.json says
  int num_threads = 1;           // data-parallel; results depend on it
  int64_t checkpoint_steps = 0;  // 0: about one a minute
  MemorySpec memory;
  KindSpec kind;
  std::vector<std::shared_ptr<const void>> holds;  // what is fetched stays where it is while these live
};

// kInvalidArgument names the field, its rule and its value. Files are not looked at.
absl::Status ValidateJobSpec(const JobSpec& spec);

}  // namespace almost::trainer
