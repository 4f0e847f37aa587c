#include "services/trainer/torch/train.h"

#include <ATen/DeviceAccelerator.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/storage/env.h"
#include "services/trainer/core/checkpoint_store.h"
#include "services/trainer/core/model_export.h"
#include "services/trainer/torch/group.h"
#include "services/trainer/torch/runtime.h"
#include "services/trainer/torch/task.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using torch::Tensor;

using SteadyClock = std::chrono::steady_clock;

constexpr auto kCheckpointPeriod = std::chrono::minutes(1);

absl::Status CheckFrozen(const OptimizerSpec& optimizer, const Transformer& model) {
  for (const std::string& prefix : optimizer.frozen) {
    const auto found = model.parameters().lower_bound(prefix);
    if (prefix.empty() || found == model.parameters().end() || !absl::StartsWith(found->first, prefix)) {
      return absl::InvalidArgumentError(
          absl::StrCat("optimizer.frozen: no parameter's name begins with \"", prefix, "\""));
    }
  }
  return absl::OkStatus();
}

// The base model, or a fresh one, as the spec wants it held.
absl::StatusOr<TaskInputs> Prepare(const JobSpec& spec, const TrainContext& context, Group& group) {
  const torch::Device device = context.device;
  const torch::ScalarType dtype =
      spec.memory.precision == Precision::kFloat32 ? torch::kFloat32 : torch::kBFloat16;
  const auto* pretrain = std::get_if<PretrainSpec>(&spec.kind);
  const bool fresh = spec.base_model.empty();
  const fs::path folder = fresh ? pretrain->model_config.parent_path() : spec.base_model;
  ALMOST_ASSIGN_OR_RETURN(std::shared_ptr<const Tokenizer> tokenizer, Tokenizer::Load(folder));
  ALMOST_ASSIGN_OR_RETURN(PromptFormat format, ChoosePromptFormat(spec.prompt_format, folder));
  if (fresh) {
    ALMOST_ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::FromFolder(folder));
    Transformer model = Transformer::Initialize(config, dtype, DeriveSeed(spec.seed, "weights")).To(device);
    if (spec.memory.recompute_layers) model.RecomputeLayers();
    return TaskInputs{spec, folder, "", tokenizer, format, std::move(model), &group, context.stop};
  }
  ALMOST_ASSIGN_OR_RETURN(const auto weights, ModelFolder::Open(folder));
  const bool reward_head = std::holds_alternative<RewardModelSpec>(spec.kind);
  ALMOST_ASSIGN_OR_RETURN(Transformer model, Transformer::Load(*weights, dtype, reward_head));
  model = model.To(device);
  if (spec.memory.recompute_layers) model.RecomputeLayers();
  if (const auto& adapters = spec.memory.adapters) {
    model.AddAdapters(adapters->rank, adapters->alpha, DeriveSeed(spec.seed, "adapters"));
  }
  return TaskInputs{spec,   folder,      weights->digest(), tokenizer, format, std::move(model),
                    &group, context.stop};
}

absl::StatusOr<std::unique_ptr<Task>> MakeTask(TaskInputs inputs, const TrainContext& context) {
  const KindSpec& kind = inputs.spec.kind;
  if (std::holds_alternative<PretrainSpec>(kind)) return MakePretrainTask(std::move(inputs));
  if (std::holds_alternative<SftSpec>(kind)) return MakeSftTask(std::move(inputs));
  if (std::holds_alternative<RewardModelSpec>(kind)) return MakeRewardModelTask(std::move(inputs));
  if (std::holds_alternative<DpoSpec>(kind)) return MakeDpoTask(std::move(inputs));
  return MakePpoTask(std::move(inputs), context.reward, context.guard, context.scorers);
}

// Ranks that hold the tensor of each name.
std::map<std::string, std::vector<int>> Holders(const std::map<std::string, Tensor>& tensors, Group& group) {
  std::string held;
  for (const auto& [name, tensor] : tensors) held.push_back(tensor.is_meta() ? 0 : 1);
  const std::vector<std::string> by_rank = group.Gather(held);
  std::map<std::string, std::vector<int>> holders;
  size_t i = 0;
  for (const auto& [name, tensor] : tensors) {
    for (int rank = 0; rank < group.size(); ++rank) {
      if (by_rank[rank][i] != 0) holders[name].push_back(rank);
    }
    ++i;
  }
  return holders;
}

// Rank 0 writes; what only others hold comes to it.
absl::Status WriteCheckpoint(CheckpointStore& store, int64_t step, const std::string& numerics_id,
                             const Task& task, Group& group) {
  const std::map<std::string, Tensor> live = task.Tensors();
  const auto holders = Holders(live, group);
  std::vector<TensorToWrite> tensors;
  std::vector<Tensor> kept;
  for (const auto& [name, tensor] : live) {
    const int holder = holders.at(name).front();
    if (group.rank() != 0 && group.rank() != holder) continue;
    const Tensor here =
        (tensor.is_meta() ? torch::empty_like(tensor, torch::kCPU) : tensor.to(torch::kCPU)).contiguous();
    group.Move(here, holder, 0);
    if (group.rank() != 0) continue;
    kept.push_back(here);
    const DType dtype = here.scalar_type() == torch::kFloat64    ? DType::kF64
                        : here.scalar_type() == torch::kBFloat16 ? DType::kBF16
                                                                 : DType::kF32;
    tensors.push_back(
        {name, dtype, here.sizes().vec(), {static_cast<const std::byte*>(here.data_ptr()), here.nbytes()}});
  }
  return group.rank() == 0 ? store.Write(step, numerics_id, task.Values(), tensors) : absl::OkStatus();
}

// From rank 0's checkpoint, null on the others. `values` are the checkpoint's.
absl::Status RestoreCheckpoint(const Checkpoint* checkpoint, int64_t step, const json& values, Task& task,
                               Group& group) {
  const std::map<std::string, Tensor> tensors = task.Tensors();
  const auto holders = Holders(tensors, group);
  if (checkpoint != nullptr) {
    for (const auto& [name, live] : tensors) {
      const auto saved = checkpoint->tensors->tensors().find(name);
      if (saved == checkpoint->tensors->tensors().end() || saved->second.bytes.size() != live.nbytes()) {
        return absl::DataLossError(
            absl::StrCat("checkpoint of step ", step, ": tensor ", name, " is missing or of another size"));
      }
    }
  }
  for (const auto& [name, live] : tensors) {
    const std::vector<int>& ranks = holders.at(name);
    Tensor read;
    if (checkpoint != nullptr) {
      const TensorView& saved = checkpoint->tensors->tensors().at(name);
      read = torch::empty(live.sizes(), live.options().device(torch::kCPU));
      std::memcpy(read.data_ptr(), saved.bytes.data(), saved.bytes.size());
      if (!live.is_meta()) Tensor(live).copy_(read);
    }
    if (ranks.size() > 1) {
      group.Broadcast({live}, 0);
    } else {
      group.Move(group.rank() == 0 ? read : live, 0, ranks.front());
    }
  }
  try {
    return task.Restore(values);
  } catch (const json::exception& e) {
    return absl::DataLossError(absl::StrCat("checkpoint of step ", step, ": ", e.what()));
  }
}

// What rank 0 says to all.
json Tell(const json& message, Group& group) {
  std::string bytes;
  json::to_msgpack(message, bytes);
  return json::from_msgpack(group.Broadcast(bytes));
}

absl::StatusOr<TrainedModel> Run(const JobSpec& spec, const TrainContext& context, Group& group) {
  const bool leads = group.rank() == 0;
  const std::string numerics_id =
      TrainingNumericsId(context.device, spec.memory.precision, spec.num_threads, group.size());
  const fs::path output = context.work_folder / "model";
  // Finished before; the caller was stopped before it took the model.
  std::string digest;
  if (leads && fs::exists(output)) {
    ALMOST_ASSIGN_OR_RETURN(const auto folder, ModelFolder::Open(output));
    digest = folder->digest();
  }
  digest = group.Broadcast(digest);
  if (!digest.empty()) return TrainedModel{digest, numerics_id};
  ALMOST_ASSIGN_OR_RETURN(TaskInputs inputs, Prepare(spec, context, group));
  ExportedModel exported{
      .config = inputs.model.config(),
      .format = inputs.format,
      .tokenizer_folder = inputs.tokenizer_folder,
      .tokenizer = inputs.tokenizer,
      .training = {{"kind", KindName(spec.kind)}, {"seed", spec.seed}, {"numerics_id", numerics_id}},
      .reward = nullptr};
  if (!inputs.base_digest.empty()) exported.training["base_model_digest"] = inputs.base_digest;
  ALMOST_RETURN_IF_ERROR(CheckFrozen(spec.optimizer, inputs.model));
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<Task> task, MakeTask(std::move(inputs), context));

  CheckpointStore checkpoints(context.work_folder / "checkpoints");
  std::optional<Checkpoint> latest;
  if (leads) {
    std::vector<std::string> damaged;
    ALMOST_ASSIGN_OR_RETURN(latest, checkpoints.Latest(&damaged));
    for (const std::string& message : damaged) {
      if (context.warn) context.warn(message);
    }
    if (latest && latest->numerics_id != numerics_id) {
      return absl::FailedPreconditionError(absl::StrCat("the job's checkpoint was made with ",
                                                        latest->numerics_id, ", this process has ",
                                                        numerics_id, ": going on would change the result"));
    }
  }
  json from = nullptr;  // step and values of the checkpoint
  if (latest) from = {{"step", latest->step}, {"values", latest->values}};
  from = Tell(from, group);
  int64_t step = 0;
  const auto timed = [&](CheckpointWork::Operation operation, const auto& work) {
    const auto begin = SteadyClock::now();
    absl::Status status = work();
    if (context.checkpoint) context.checkpoint({operation, SteadyClock::now() - begin, status});
    return status;
  };
  if (!from.is_null()) {
    step = from.at("step");
    ALMOST_RETURN_IF_ERROR(timed(CheckpointWork::Operation::kRestore, [&] {
      return RestoreCheckpoint(latest ? &*latest : nullptr, step, from.at("values"), *task, group);
    }));
  }

  const double peak_flops = PeakFlops(context.device, spec.memory.precision, spec.num_threads) * group.size();
  int64_t saved = step;
  SteadyClock::time_point saved_at = SteadyClock::now();
  const auto save = [&] {
    absl::Status status = timed(CheckpointWork::Operation::kWrite, [&] {
      return WriteCheckpoint(checkpoints, step, numerics_id, *task, group);
    });
    saved = step;
    saved_at = SteadyClock::now();
    return status;
  };
  while (step < task->num_steps()) {
    // Anybody's wish to stop is everybody's; whether a checkpoint is due, rank 0's clock says.
    std::vector<double> wishes(group.size() + 1);
    wishes[group.rank()] = context.stop.stop_requested() ? 1 : 0;
    wishes.back() = leads && SteadyClock::now() - saved_at >= kCheckpointPeriod ? 1 : 0;
    group.Merge(wishes);
    const bool stop = std::any_of(wishes.begin(), wishes.end() - 1, [](double wish) { return wish != 0; });
    const bool due = spec.checkpoint_steps > 0 ? step - saved >= spec.checkpoint_steps : wishes.back() != 0;
    if (step > saved && (stop || due)) ALMOST_RETURN_IF_ERROR(save());
    if (stop) return absl::CancelledError("stopped between two steps");
    const auto begin = SteadyClock::now();
    absl::StatusOr<Metrics> stepped = task->Step(step);
    if (absl::IsCancelled(stepped.status()) && step > saved) ALMOST_RETURN_IF_ERROR(save());
    ALMOST_ASSIGN_OR_RETURN(Metrics metrics, std::move(stepped));
    ++step;
    const double seconds = std::chrono::duration<double>(SteadyClock::now() - begin).count();
    if (!std::isfinite(metrics["loss"]) || !std::isfinite(metrics["grad_norm"])) {
      if (context.not_finite) context.not_finite();
      return absl::InternalError(absl::StrCat("step ", step, ": the loss is ", metrics["loss"],
                                              ", the norm of the gradient ", metrics["grad_norm"]));
    }
    metrics["step_seconds"] = seconds;
    metrics["peak_memory_bytes"] = PeakMemoryBytes(context.device);
    metrics["model_flop_utilisation_ratio"] = metrics["model_flops"] / seconds / peak_flops;
    if (const auto tokens = metrics.find("tokens"); tokens != metrics.end()) {
      metrics["tokens_per_second"] = tokens->second / seconds;
    }
    if (context.report) context.report(step, task->num_steps(), metrics);
  }

  absl::StatusOr<Finished> ended = task->Finish();
  if (absl::IsCancelled(ended.status()) && step > saved) ALMOST_RETURN_IF_ERROR(save());
  ALMOST_ASSIGN_OR_RETURN(const Finished finished, std::move(ended));
  if (!leads) return TrainedModel{group.Broadcast(""), numerics_id};
  exported.training["num_steps"] = task->num_steps();
  exported.training["measured"] = finished.measured;
  exported.reward = finished.reward;
  const fs::path fresh = output.string() + ".new";
  Env& env = *Env::Posix();
  ALMOST_RETURN_IF_ERROR(env.Remove(fresh));
  ALMOST_RETURN_IF_ERROR(env.CreateFolders(fresh));
  ALMOST_RETURN_IF_ERROR(task->model().Save(fresh));
  ALMOST_RETURN_IF_ERROR(WriteModelFiles(exported, !std::holds_alternative<PretrainSpec>(spec.kind), fresh));
  ALMOST_RETURN_IF_ERROR(env.Rename(fresh, output));
  ALMOST_ASSIGN_OR_RETURN(const auto folder, ModelFolder::Open(output));
  group.Broadcast(folder->digest());
  return TrainedModel{folder->digest(), numerics_id};
}

}  // namespace

absl::StatusOr<int> MaxTokens(absl::string_view field, int value, const ModelConfig& config) {
  if (value <= config.max_positions) return value == 0 ? config.max_positions : value;
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": must be at most the model's context, ", config.max_positions, ", is ", value));
}

absl::StatusOr<TrainedModel> Train(const JobSpec& asked, const TrainContext& context) {
  ALMOST_RETURN_IF_ERROR(ValidateJobSpec(asked));
  JobSpec spec = asked;
  if (!context.device.is_cpu()) spec.num_threads = 1;
  // LibTorch keeps what a job has freed; on a GPU others have a use for it.
  const absl::Cleanup give_back = [&] {
    if (context.device.is_cuda()) at::accelerator::emptyCache();
  };
  Group alone;
  try {
    return Run(spec, context, context.group == nullptr ? alone : *context.group);
  } catch (const RankLost& e) {
    return absl::UnavailableError(absl::StrCat("a rank was lost: ", e.what()));
  } catch (const c10::Error& e) {
    return absl::InternalError(absl::StrCat("LibTorch: ", e.what_without_backtrace()));
  } catch (const std::exception& e) {
    return absl::InternalError(e.what());
  }
}

}  // namespace almost::trainer
