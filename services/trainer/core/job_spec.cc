#include "services/trainer/core/job_spec.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/world/world.h"

namespace almost::trainer {
namespace {

template <typename T>
absl::Status Check(absl::string_view field, bool holds, absl::string_view rule, T value) {
  if (holds) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": must be ", rule, ", is ", value));
}

absl::Status Positive(absl::string_view field, double value) {
  return Check(field, std::isfinite(value) && value > 0, "above 0", value);
}
absl::Status NotNegative(absl::string_view field, double value) {
  return Check(field, std::isfinite(value) && value >= 0, "at least 0", value);
}
absl::Status Share(absl::string_view field, double value) {
  return Check(field, value >= 0 && value < 1, "in [0, 1)", value);
}

absl::Status Validate(const OptimizerSpec& spec) {
  ALMOST_RETURN_IF_ERROR(Positive("optimizer.learning_rate", spec.learning_rate));
  ALMOST_RETURN_IF_ERROR(NotNegative("optimizer.weight_decay", spec.weight_decay));
  ALMOST_RETURN_IF_ERROR(Share("optimizer.beta1", spec.beta1));
  ALMOST_RETURN_IF_ERROR(Share("optimizer.beta2", spec.beta2));
  ALMOST_RETURN_IF_ERROR(Positive("optimizer.epsilon", spec.epsilon));
  ALMOST_RETURN_IF_ERROR(NotNegative("optimizer.warmup_steps", static_cast<double>(spec.warmup_steps)));
  ALMOST_RETURN_IF_ERROR(Share("optimizer.warmup_fraction", spec.warmup_fraction));
  ALMOST_RETURN_IF_ERROR(Share("optimizer.hold_fraction", spec.hold_fraction));
  ALMOST_RETURN_IF_ERROR(Check("optimizer.final_fraction",
                               spec.final_fraction >= 0 && spec.final_fraction <= 1, "in [0, 1]",
                               spec.final_fraction));
  ALMOST_RETURN_IF_ERROR(NotNegative("optimizer.max_grad_norm", spec.max_grad_norm));
  ALMOST_RETURN_IF_ERROR(NotNegative("optimizer.muon_learning_rate", spec.muon_learning_rate));
  return NotNegative("optimizer.muon_weight_decay", spec.muon_weight_decay);
}

absl::Status Validate(const MemorySpec& spec) {
  // Times threads and ranks it stays within 64 bits.
  constexpr int64_t kMaxMicroBatchTokens = int64_t{1} << 32;
  ALMOST_RETURN_IF_ERROR(
      Check("memory.micro_batch_tokens",
            spec.micro_batch_tokens >= 1 && spec.micro_batch_tokens <= kMaxMicroBatchTokens,
            absl::StrCat("in [1, ", kMaxMicroBatchTokens, "]"), spec.micro_batch_tokens));
  if (!spec.adapters) return absl::OkStatus();
  ALMOST_RETURN_IF_ERROR(Check("memory.lora.rank", spec.adapters->rank >= 1 && spec.adapters->rank <= 1024,
                               "in [1, 1024]", spec.adapters->rank));
  return Positive("memory.lora.alpha", spec.adapters->alpha);
}

absl::Status Validate(const PretrainSpec& spec) {
  if (spec.dataset.empty() == !spec.world_seed.has_value()) {
    return absl::InvalidArgumentError("pretrain: exactly one of dataset and world_seed must be set");
  }
  if (world::World::Named(spec.world) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("pretrain.world: must be \"tiny\" or \"large\", is \"", spec.world, "\""));
  }
  ALMOST_RETURN_IF_ERROR(
      Check("pretrain.sequence_tokens", spec.sequence_tokens > 1, "above 1", spec.sequence_tokens));
  ALMOST_RETURN_IF_ERROR(Positive("pretrain.batch_sequences", spec.batch_sequences));
  ALMOST_RETURN_IF_ERROR(NotNegative("pretrain.first_document", static_cast<double>(spec.first_document)));
  const int64_t batch = int64_t{spec.sequence_tokens} * spec.batch_sequences;
  return Check("pretrain.num_tokens", spec.num_tokens >= batch, absl::StrCat("at least one batch, ", batch),
               spec.num_tokens);
}

absl::Status ValidatePasses(absl::string_view kind, int epochs, int batch_size, int max_tokens) {
  ALMOST_RETURN_IF_ERROR(Positive(absl::StrCat(kind, ".epochs"), epochs));
  ALMOST_RETURN_IF_ERROR(Positive(absl::StrCat(kind, ".batch_size"), batch_size));
  return Check(absl::StrCat(kind, ".max_tokens"), max_tokens == 0 || max_tokens > 1, "0 or above 1",
               max_tokens);
}

absl::Status Validate(const SftSpec& spec) {
  return ValidatePasses("sft", spec.epochs, spec.batch_size, spec.max_tokens);
}

absl::Status Validate(const RewardModelSpec& spec) {
  ALMOST_RETURN_IF_ERROR(ValidatePasses("reward_model", spec.epochs, spec.batch_size, spec.max_tokens));
  ALMOST_RETURN_IF_ERROR(Check("reward_model.held_out_fraction",
                               spec.held_out_fraction >= 0 && spec.held_out_fraction <= 0.5, "in [0, 0.5]",
                               spec.held_out_fraction));
  ALMOST_RETURN_IF_ERROR(NotNegative("reward_model.center_coefficient", spec.center_coefficient));
  ALMOST_RETURN_IF_ERROR(
      NotNegative("reward_model.evaluation_steps", static_cast<double>(spec.evaluation_steps)));
  ALMOST_RETURN_IF_ERROR(Check("reward_model.evaluation_steps",
                               spec.evaluation_steps == 0 || spec.held_out_fraction > 0,
                               "0 without reward_model.held_out_fraction", spec.evaluation_steps));
  return Check("reward_model.patience",
               spec.patience == 0 || (spec.patience > 0 && spec.evaluation_steps > 0),
               "at least 0, and 0 without reward_model.evaluation_steps", spec.patience);
}

absl::Status Validate(const DpoSpec& spec) {
  ALMOST_RETURN_IF_ERROR(ValidatePasses("dpo", spec.epochs, spec.batch_size, spec.max_tokens));
  return Positive("dpo.beta", spec.beta);
}

absl::Status ValidateGroups(const PpoSpec& spec) {
  ALMOST_RETURN_IF_ERROR(Check("grpo.group_size", spec.group_size >= 2, "at least 2", spec.group_size));
  ALMOST_RETURN_IF_ERROR(Check("grpo.rollouts", spec.rollouts % spec.group_size == 0,
                               absl::StrCat("a multiple of group_size = ", spec.group_size), spec.rollouts));
  ALMOST_RETURN_IF_ERROR(Check("grpo.value_warmup_iterations", spec.value_warmup_iterations == 0,
                               "0, there is no value function", spec.value_warmup_iterations));
  ALMOST_RETURN_IF_ERROR(Check("grpo.value_model", spec.value_model.empty(),
                               "unset, there is no value function", spec.value_model.string()));
  return Check("grpo.value_learning_rate", spec.value_learning_rate == 0, "0, there is no value function",
               spec.value_learning_rate);
}

absl::Status ValidateValueFunction(const PpoSpec& spec) {
  ALMOST_RETURN_IF_ERROR(Positive("ppo.value_clip_range", spec.value_clip_range));
  ALMOST_RETURN_IF_ERROR(
      Check("ppo.gae_lambda", spec.gae_lambda >= 0 && spec.gae_lambda <= 1, "in [0, 1]", spec.gae_lambda));
  ALMOST_RETURN_IF_ERROR(Check("ppo.gamma", spec.gamma > 0 && spec.gamma <= 1, "in (0, 1]", spec.gamma));
  ALMOST_RETURN_IF_ERROR(NotNegative("ppo.value_coefficient", spec.value_coefficient));
  ALMOST_RETURN_IF_ERROR(NotNegative("ppo.value_warmup_iterations", spec.value_warmup_iterations));
  return Positive("ppo.value_learning_rate", spec.value_learning_rate);
}

absl::Status Validate(const PpoSpec& spec) {
  const std::string kind = spec.group_size > 0 ? "grpo." : "ppo.";
  const auto positive = [&](const char* field, double value) { return Positive(kind + field, value); };
  const auto not_negative = [&](const char* field, double value) { return NotNegative(kind + field, value); };
  ALMOST_RETURN_IF_ERROR(positive("num_iterations", spec.num_iterations));
  ALMOST_RETURN_IF_ERROR(positive("rollouts", spec.rollouts));
  ALMOST_RETURN_IF_ERROR(positive("epochs", spec.epochs));
  ALMOST_RETURN_IF_ERROR(Check(kind + "minibatch_size",
                               spec.minibatch_size > 0 && spec.minibatch_size <= spec.rollouts,
                               absl::StrCat("in [1, rollouts = ", spec.rollouts, "]"), spec.minibatch_size));
  ALMOST_RETURN_IF_ERROR(positive("max_new_tokens", spec.max_new_tokens));
  ALMOST_RETURN_IF_ERROR(Check(kind + "top_p", spec.top_p > 0 && spec.top_p <= 1, "in (0, 1]", spec.top_p));
  ALMOST_RETURN_IF_ERROR(positive("temperature", spec.temperature));
  ALMOST_RETURN_IF_ERROR(not_negative("kl_coefficient", spec.kl_coefficient));
  ALMOST_RETURN_IF_ERROR(not_negative("kl_target", spec.kl_target));
  ALMOST_RETURN_IF_ERROR(not_negative("kl_limit", spec.kl_limit));
  ALMOST_RETURN_IF_ERROR(positive("clip_range", spec.clip_range));
  ALMOST_RETURN_IF_ERROR(not_negative("reward_clip", spec.reward_clip));
  ALMOST_RETURN_IF_ERROR(not_negative("length_penalty", spec.length_penalty));
  ALMOST_RETURN_IF_ERROR(not_negative("mix_coefficient", spec.mix_coefficient));
  ALMOST_RETURN_IF_ERROR(Check(kind + "mix_coefficient",
                               (spec.mix_coefficient > 0) == !spec.mix_dataset.empty(),
                               "above 0 with a mix_dataset and 0 without", spec.mix_coefficient));
  return spec.group_size > 0 ? ValidateGroups(spec) : ValidateValueFunction(spec);
}

}  // namespace

const char* KindName(const KindSpec& kind) {
  constexpr const char* kNames[] = {"pretrain", "sft", "reward_model", "dpo", "ppo"};
  static_assert(std::variant_size_v<KindSpec> == std::size(kNames));
  const auto* ppo = std::get_if<PpoSpec>(&kind);
  return ppo != nullptr && ppo->group_size > 0 ? "grpo" : kNames[kind.index()];
}

absl::Status ValidateJobSpec(const JobSpec& spec) {
  const bool pretrain = std::holds_alternative<PretrainSpec>(spec.kind);
  if (spec.base_model.empty() && !pretrain) {
    return absl::InvalidArgumentError("base_model: must be set, is empty");
  }
  if (spec.base_model.empty() && std::get<PretrainSpec>(spec.kind).model_config.empty()) {
    return absl::InvalidArgumentError("pretrain.model_config: must be set when base_model is empty");
  }
  ALMOST_RETURN_IF_ERROR(Check("num_threads", spec.num_threads >= 1 && spec.num_threads <= 256, "in [1, 256]",
                               spec.num_threads));
  ALMOST_RETURN_IF_ERROR(NotNegative("checkpoint_steps", static_cast<double>(spec.checkpoint_steps)));
  ALMOST_RETURN_IF_ERROR(Validate(spec.optimizer));
  ALMOST_RETURN_IF_ERROR(Validate(spec.memory));
  if (spec.memory.adapters && spec.base_model.empty()) {
    return absl::InvalidArgumentError("memory.lora: needs a base_model, which is empty");
  }
  return std::visit([](const auto& kind) { return Validate(kind); }, spec.kind);
}

}  // namespace almost::trainer
