#include "services/trainer/rpc/job_spec_proto.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "google/protobuf/util/json_util.h"
#include "services/trainer/core/datasets.h"
#include "services/trainer/core/output_folder.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;

class Sources {
 public:
  Sources(ArtifactStore* store, const fs::path& model_root) : store_(store), model_root_(model_root) {}

  absl::StatusOr<fs::path> Folder(absl::string_view field, const std::string& source) const {
    absl::StatusOr<LocalFolder> folder = ResolveModelSource(store_, model_root_, source);
    // To whoever asks for a job, what is not there is a wrong value, not the lack of a job.
    if (absl::IsNotFound(folder.status())) {
      return absl::InvalidArgumentError(absl::StrCat(field, ": ", folder.status().message()));
    }
    if (!folder.ok()) return Annotate(folder.status(), field);
    holds_.push_back(std::move(folder->hold));
    return std::move(folder->path);
  }

  // An artifact's only JSON Lines file, or a file beneath model_root.
  absl::StatusOr<fs::path> File(absl::string_view field, const std::string& source) const {
    if (!absl::StartsWith(source, "artifacts/")) {
      const fs::path file(source);
      ALMOST_ASSIGN_OR_RETURN(const fs::path folder,
                              Folder(field, file.has_parent_path() ? file.parent_path().string() : "."));
      if (!fs::is_regular_file(folder / file.filename())) {
        return InvalidField(field, "a file beneath the model root", source);
      }
      return folder / file.filename();
    }
    ALMOST_ASSIGN_OR_RETURN(const fs::path folder, Folder(field, source));
    fs::path found;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() != ".jsonl") continue;
      if (!found.empty()) return InvalidField(field, "an artifact with one .jsonl file", source);
      found = entry.path();
    }
    if (found.empty()) return InvalidField(field, "an artifact with a .jsonl file", source);
    return found;
  }

  // Of every folder so far.
  std::vector<std::shared_ptr<const void>> TakeHolds() { return std::move(holds_); }

 private:
  ArtifactStore* const store_;
  const fs::path& model_root_;
  mutable std::vector<std::shared_ptr<const void>> holds_;
};

OptimizerSpec ReadOptimizer(const v1::OptimizerSpec& proto) {
  OptimizerSpec spec;
  spec.learning_rate = proto.learning_rate();
  spec.weight_decay = proto.weight_decay();
  if (proto.has_beta1()) spec.beta1 = proto.beta1();
  if (proto.has_beta2()) spec.beta2 = proto.beta2();
  spec.schedule = proto.schedule() == v1::OptimizerSpec::SCHEDULE_LINEAR     ? Schedule::kLinear
                  : proto.schedule() == v1::OptimizerSpec::SCHEDULE_CONSTANT ? Schedule::kConstant
                                                                             : Schedule::kCosine;
  spec.warmup_steps = proto.warmup_steps();
  spec.warmup_fraction = proto.warmup_fraction();
  spec.hold_fraction = proto.hold_fraction();
  spec.final_fraction = proto.final_fraction();
  spec.max_grad_norm = proto.max_grad_norm();
  spec.muon_learning_rate = proto.muon_learning_rate();
  spec.muon_weight_decay = proto.muon_weight_decay();
  spec.frozen.assign(proto.frozen().begin(), proto.frozen().end());
  return spec;
}

absl::StatusOr<MemorySpec> ReadMemory(const v1::MemorySpec& proto) {
  MemorySpec spec;
  if (!v1::MemorySpec::Precision_IsValid(proto.precision())) {
    return InvalidField("memory.precision", "a precision that is known here",
                        absl::StrCat(proto.precision()));
  }
  if (proto.precision() == v1::MemorySpec::PRECISION_BFLOAT16) spec.precision = Precision::kBfloat16;
  spec.recompute_layers = proto.recompute_activations();
  if (proto.micro_batch_tokens() != 0) spec.micro_batch_tokens = proto.micro_batch_tokens();
  if (proto.has_lora()) {
    spec.adapters = MemorySpec::Adapters{.rank = proto.lora().rank(), .alpha = proto.lora().alpha()};
  }
  return spec;
}

absl::StatusOr<KindSpec> ReadPretrain(const v1::PretrainSpec& proto, const Sources& sources) {
  PretrainSpec spec;
  if (!proto.dataset().empty()) {
    ALMOST_ASSIGN_OR_RETURN(spec.dataset, sources.File("pretrain.dataset", proto.dataset()));
  }
  if (proto.has_world_seed()) spec.world_seed = proto.world_seed();
  spec.world = proto.world();
  if (!proto.model_config().empty()) {
    ALMOST_ASSIGN_OR_RETURN(spec.model_config, sources.File("pretrain.model_config", proto.model_config()));
  }
  spec.num_tokens = proto.num_tokens();
  spec.sequence_tokens = proto.sequence_tokens();
  spec.batch_sequences = proto.batch_sequences();
  spec.first_document = proto.first_document();
  return spec;
}

absl::StatusOr<KindSpec> ReadSft(const v1::SftSpec& proto, const Sources& sources) {
  SftSpec spec{.epochs = proto.epochs(), .batch_size = proto.batch_size(), .max_tokens = proto.max_tokens()};
  ALMOST_ASSIGN_OR_RETURN(spec.dataset, sources.File("sft.dataset", proto.dataset()));
  return spec;
}

absl::StatusOr<KindSpec> ReadRewardModel(const v1::RewardModelSpec& proto, const Sources& sources) {
  RewardModelSpec spec{.epochs = proto.epochs(),
                       .batch_size = proto.batch_size(),
                       .max_tokens = proto.max_tokens(),
                       .held_out_fraction = proto.held_out_fraction(),
                       .use_margins = proto.use_margins(),
                       .center_coefficient = proto.center_coefficient(),
                       .whole_prompts = proto.whole_prompts(),
                       .evaluation_steps = proto.evaluation_steps(),
                       .patience = proto.patience()};
  ALMOST_ASSIGN_OR_RETURN(spec.dataset, sources.File("reward_model.dataset", proto.dataset()));
  return spec;
}

absl::StatusOr<KindSpec> ReadDpo(const v1::DpoSpec& proto, const Sources& sources) {
  DpoSpec spec{.epochs = proto.epochs(),
               .batch_size = proto.batch_size(),
               .max_tokens = proto.max_tokens(),
               .beta = proto.beta()};
  ALMOST_ASSIGN_OR_RETURN(spec.dataset, sources.File("dpo.dataset", proto.dataset()));
  return spec;
}

absl::StatusOr<KindSpec> ReadPpo(const std::string& kind, const v1::PpoSpec& proto, const Sources& sources) {
  PpoSpec spec;
  ALMOST_ASSIGN_OR_RETURN(spec.dataset, sources.File(kind + ".dataset", proto.dataset()));
  if (!proto.mix_dataset().empty()) {
    ALMOST_ASSIGN_OR_RETURN(spec.mix_dataset, sources.File(kind + ".mix_dataset", proto.mix_dataset()));
  }
  if (kind == "grpo") {
    // ValidateJobSpec knows grpo by its group size, and this field alone makes it one.
    if (proto.group_size() < 2)
      return InvalidField("grpo.group_size", "at least 2", absl::StrCat(proto.group_size()));
    spec.group_size = proto.group_size();
    if (proto.has_scale_advantages()) spec.scale_advantages = proto.scale_advantages();
  } else if (proto.group_size() != 0 || proto.has_scale_advantages()) {
    return InvalidField("ppo.group_size", "unset, as scale_advantages: they are grpo's",
                        absl::StrCat(proto.group_size()));
  }
  spec.num_iterations = proto.num_iterations();
  spec.rollouts = proto.rollouts();
  spec.epochs = proto.epochs();
  spec.minibatch_size = proto.minibatch_size();
  spec.max_new_tokens = proto.max_new_tokens();
  if (proto.has_top_p()) spec.top_p = proto.top_p();
  if (proto.has_temperature()) spec.temperature = proto.temperature();
  spec.kl_coefficient = proto.kl_coefficient();
  spec.kl_target = proto.kl_target();
  if (proto.has_clip_range()) spec.clip_range = proto.clip_range();
  if (proto.has_value_clip_range()) spec.value_clip_range = proto.value_clip_range();
  if (proto.has_gae_lambda()) spec.gae_lambda = proto.gae_lambda();
  if (proto.has_gamma()) spec.gamma = proto.gamma();
  if (proto.has_value_coefficient()) spec.value_coefficient = proto.value_coefficient();
  spec.value_learning_rate = proto.value_learning_rate();
  if (!proto.value_model().empty()) {
    ALMOST_ASSIGN_OR_RETURN(spec.value_model, sources.Folder(kind + ".value_model", proto.value_model()));
  }
  if (proto.has_missing_stop_reward()) spec.missing_stop_reward = proto.missing_stop_reward();
  spec.normalize_rewards = proto.normalize_rewards();
  spec.value_warmup_iterations = proto.value_warmup_iterations();
  spec.reward_clip = proto.reward_clip();
  spec.length_penalty = proto.length_penalty();
  spec.kl_limit = proto.kl_limit();
  spec.mix_coefficient = proto.mix_coefficient();
  if (proto.reward_target().empty())
    return InvalidField(kind + ".reward_target", "the reward service's address", "nothing");
  if (proto.reward_model().empty()) return InvalidField(kind + ".reward_model", "models/{id}", "nothing");
  if (proto.guard_model().empty() && !proto.guard_digest().empty())
    return InvalidField(kind + ".guard_digest", "empty without a guard_model", proto.guard_digest());
  return spec;
}

absl::StatusOr<KindSpec> ReadKind(const v1::JobSpec& proto, const Sources& sources) {
  switch (proto.kind_case()) {
    case v1::JobSpec::kPretrain:
      return ReadPretrain(proto.pretrain(), sources);
    case v1::JobSpec::kSft:
      return ReadSft(proto.sft(), sources);
    case v1::JobSpec::kRewardModel:
      return ReadRewardModel(proto.reward_model(), sources);
    case v1::JobSpec::kDpo:
      return ReadDpo(proto.dpo(), sources);
    case v1::JobSpec::kPpo:
      return ReadPpo("ppo", proto.ppo(), sources);
    case v1::JobSpec::kGrpo:
      return ReadPpo("grpo", proto.grpo(), sources);
    default:
      return InvalidField("kind", "pretrain, sft, reward_model, dpo, ppo or grpo", "nothing");
  }
}

void ClearPlaces(v1::PpoSpec& spec) {
  spec.clear_dataset();
  spec.clear_mix_dataset();
  spec.clear_reward_target();
  spec.clear_reward_model();
  spec.clear_reward_source();
  spec.clear_value_model();
  spec.clear_guard_model();
  spec.clear_guard_digest();
}

}  // namespace

absl::StatusOr<JobSpec> ReadJobSpec(const v1::JobSpec& proto, ArtifactStore* store,
                                    const fs::path& model_root) {
  if (!proto.output().empty()) ALMOST_RETURN_IF_ERROR(OutputFolder(model_root, proto.output()).status());
  Sources sources(store, model_root);
  JobSpec spec;
  if (!proto.base_model().empty()) {
    ALMOST_ASSIGN_OR_RETURN(spec.base_model, sources.Folder("base_model", proto.base_model()));
  }
  spec.seed = proto.seed();
  spec.optimizer = ReadOptimizer(proto.optimizer());
  spec.prompt_format = proto.prompt_format();
  spec.num_threads = proto.num_threads() == 0 ? 1 : proto.num_threads();
  spec.checkpoint_steps = proto.checkpoint_steps();
  ALMOST_ASSIGN_OR_RETURN(spec.memory, ReadMemory(proto.memory()));
  ALMOST_ASSIGN_OR_RETURN(spec.kind, ReadKind(proto, sources));
  spec.holds = sources.TakeHolds();
  ALMOST_RETURN_IF_ERROR(ValidateJobSpec(spec));
  ALMOST_RETURN_IF_ERROR(CheckDataset(spec.kind));
  return spec;
}

absl::StatusOr<nlohmann::json> ManifestRecipe(v1::JobSpec spec) {
  spec.clear_base_model();
  spec.clear_output();
  spec.clear_checkpoint_steps();
  spec.clear_priority();
  switch (spec.kind_case()) {
    case v1::JobSpec::kPretrain:
      spec.mutable_pretrain()->clear_dataset();
      spec.mutable_pretrain()->clear_model_config();
      break;
    case v1::JobSpec::kSft:
      spec.mutable_sft()->clear_dataset();
      break;
    case v1::JobSpec::kRewardModel:
      spec.mutable_reward_model()->clear_dataset();
      break;
    case v1::JobSpec::kDpo:
      spec.mutable_dpo()->clear_dataset();
      break;
    case v1::JobSpec::kPpo:
      ClearPlaces(*spec.mutable_ppo());
      break;
    case v1::JobSpec::kGrpo:
      ClearPlaces(*spec.mutable_grpo());
      break;
    default:
      break;
  }
  std::string text;
  google::protobuf::util::JsonPrintOptions print;
  print.preserve_proto_field_names = true;
  if (!google::protobuf::util::MessageToJsonString(spec, &text, print).ok()) {
    return absl::InternalError("the spec has no JSON form");
  }
  return nlohmann::json::parse(text);
}

std::map<std::string, std::string> ManifestInputs(const v1::JobSpec& spec) {
  std::map<std::string, std::string> inputs;
  const auto add = [&](const char* name, const std::string& source) {
    constexpr absl::string_view kArtifacts = "artifacts/";
    if (absl::StartsWith(source, kArtifacts)) inputs[name] = source.substr(kArtifacts.size());
  };
  add("base_model", spec.base_model());
  switch (spec.kind_case()) {
    case v1::JobSpec::kPretrain:
      add("dataset", spec.pretrain().dataset());
      break;
    case v1::JobSpec::kSft:
      add("dataset", spec.sft().dataset());
      break;
    case v1::JobSpec::kRewardModel:
      add("dataset", spec.reward_model().dataset());
      break;
    case v1::JobSpec::kDpo:
      add("dataset", spec.dpo().dataset());
      break;
    case v1::JobSpec::kPpo:
    case v1::JobSpec::kGrpo: {
      const v1::PpoSpec& kind = spec.has_ppo() ? spec.ppo() : spec.grpo();
      add("dataset", kind.dataset());
      add("mix_dataset", kind.mix_dataset());
      add("reward_model", kind.reward_source());
      add("value_model", kind.value_model());
      break;
    }
    default:
      break;
  }
  return inputs;
}

}  // namespace almost::trainer
