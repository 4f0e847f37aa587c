#include "services/trainer/torch/train.h"

#include <chrono>
#include <cmath>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/storage/env.h"
#include "services/trainer/core/checkpoint_store.h"
#include "services/trainer/core/model_export.h"
#include "services/trainer/torch/runtime.h"
#include "services/trainer/torch/task.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using torch::Tensor;

using SteadyClock = std::chrono::steady_clock;

constexpr auto kCheckpointPeriod = std::chrono::minutes(1);

absl::Status CheckFrozen(const OptimizerSpec& optimizer, const Llama& model) {
  for (const std::string& prefix : optimizer.frozen) {
    const auto found = model.parameters().lower_bound(prefix);
    if (prefix.empty() || found == model.parameters().end() || !absl::StartsWith(found->first, prefix)) {
      return absl::InvalidArgumentError(
          absl::StrCat("optimizer.frozen: no parameter's name begins with \"", prefix, "\""));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<TaskInputs> Prepare(const JobSpec& spec) {
  const auto* pretrain = std::get_if<PretrainSpec>(&spec.kind);
  const bool fresh = spec.base_model.empty();
  const fs::path folder = fresh ? pretrain->model_config.parent_path() : spec.base_model;
  ALMOST_ASSIGN_OR_RETURN(std::shared_ptr<const Tokenizer> tokenizer, Tokenizer::Load(folder));
  ALMOST_ASSIGN_OR_RETURN(PromptFormat format, ChoosePromptFormat(spec.prompt_format, folder));
  if (fresh) {
    ALMOST_ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::FromFolder(folder));
    return TaskInputs{spec,   folder,
                      "",     tokenizer,
                      format, Llama::Initialize(config, torch::kFloat32, DeriveSeed(spec.seed, "weights"))};
  }
  ALMOST_ASSIGN_OR_RETURN(const auto weights, ModelFolder::Open(folder));
  ALMOST_ASSIGN_OR_RETURN(Llama model, Llama::Load(*weights, torch::kFloat32,
                                                   std::holds_alternative<RewardModelSpec>(spec.kind)));
  return TaskInputs{spec, folder, weights->digest(), tokenizer, format, std::move(model)};
}

absl::StatusOr<std::unique_ptr<Task>> MakeTask(TaskInputs inputs, const RewardFunction& reward,
                                               const RewardFunction& guard) {
  const KindSpec& kind = inputs.spec.kind;
  if (std::holds_alternative<PretrainSpec>(kind)) return MakePretrainTask(std::move(inputs));
  if (std::holds_alternative<SftSpec>(kind)) return MakeSftTask(std::move(inputs));
  if (std::holds_alternative<RewardModelSpec>(kind)) return MakeRewardModelTask(std::move(inputs));
  if (std::holds_alternative<DpoSpec>(kind)) return MakeDpoTask(std::move(inputs));
  return MakePpoTask(std::move(inputs), reward, guard);
}

absl::Status WriteCheckpoint(CheckpointStore& store, int64_t step, const std::string& numerics_id,
                             const Task& task) {
  std::vector<TensorToWrite> tensors;
  std::vector<Tensor> kept;
  for (const auto& [name, live] : task.Tensors()) {
    const Tensor& tensor = kept.emplace_back(live.to(torch::kCPU).contiguous());
    const DType dtype = tensor.scalar_type() == torch::kFloat64 ? DType::kF64 : DType::kF32;
    tensors.push_back({name,
                       dtype,
                       tensor.sizes().vec(),
                       {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()}});
  }
  return store.Write(step, numerics_id, task.Values(), tensors);
}

absl::Status RestoreCheckpoint(const Checkpoint& checkpoint, const std::string& numerics_id, Task& task) {
  if (checkpoint.numerics_id != numerics_id) {
    return absl::FailedPreconditionError(absl::StrCat("the job's checkpoint was made with ",
                                                      checkpoint.numerics_id, ", this process has ",
                                                      numerics_id, ": going on would change the result"));
  }
  for (const auto& [name, live] : task.Tensors()) {
    const auto saved = checkpoint.tensors->tensors().find(name);
    if (saved == checkpoint.tensors->tensors().end() || saved->second.bytes.size() != live.nbytes()) {
      return absl::DataLossError(absl::StrCat("checkpoint of step ", checkpoint.step, ": tensor ", name,
                                              " is missing or of another size"));
    }
    const Tensor read = torch::empty_like(live, torch::kCPU);
    std::memcpy(read.data_ptr(), saved->second.bytes.data(), saved->second.bytes.size());
    Tensor(live).copy_(read);
  }
  try {
    return task.Restore(checkpoint.values);
  } catch (const json::exception& e) {
    return absl::DataLossError(absl::StrCat("checkpoint of step ", checkpoint.step, ": ", e.what()));
  }
}

absl::StatusOr<TrainedModel> Run(const JobSpec& spec, const TrainContext& context) {
  const std::string numerics_id = TrainingNumericsId(spec.num_threads);
  const fs::path output = context.work_folder / "model";
  if (fs::exists(output)) {  // finished before; the caller was stopped before it took the model
    ALMOST_ASSIGN_OR_RETURN(const auto folder, ModelFolder::Open(output));
    return TrainedModel{folder->digest(), numerics_id};
  }
  ALMOST_ASSIGN_OR_RETURN(TaskInputs inputs, Prepare(spec));
  ExportedModel exported{
      .config = inputs.model.config(),
      .format = inputs.format,
      .tokenizer_folder = inputs.tokenizer_folder,
      .tokenizer = inputs.tokenizer,
      .training = {{"kind", KindName(spec.kind)}, {"seed", spec.seed}, {"numerics_id", numerics_id}},
      .reward = nullptr};
  if (!inputs.base_digest.empty()) exported.training["base_model_digest"] = inputs.base_digest;
  ALMOST_RETURN_IF_ERROR(CheckFrozen(spec.optimizer, inputs.model));
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<Task> task,
                          MakeTask(std::move(inputs), context.reward, context.guard));

  CheckpointStore checkpoints(context.work_folder / "checkpoints");
  std::vector<std::string> damaged;
  ALMOST_ASSIGN_OR_RETURN(const std::optional<Checkpoint> latest, checkpoints.Latest(&damaged));
  for (const std::string& message : damaged) {
    if (context.warn) context.warn(message);
  }
  int64_t step = 0;
  const auto timed = [&](CheckpointWork::Operation operation, const auto& work) {
    const auto begin = SteadyClock::now();
    absl::Status status = work();
    if (context.checkpoint) context.checkpoint({operation, SteadyClock::now() - begin, status});
    return status;
  };
  if (latest.has_value()) {
    ALMOST_RETURN_IF_ERROR(timed(CheckpointWork::Operation::kRestore,
                                 [&] { return RestoreCheckpoint(*latest, numerics_id, *task); }));
    step = latest->step;
  }

  const double peak_flops = PeakFlops(spec.num_threads);
  int64_t saved = step;
  SteadyClock::time_point saved_at = SteadyClock::now();
  while (step < task->num_steps()) {
    const bool stop = context.stop.stop_requested();
    const bool due = spec.checkpoint_steps > 0 ? step - saved >= spec.checkpoint_steps
                                               : SteadyClock::now() - saved_at >= kCheckpointPeriod;
    if (step > saved && (stop || due)) {
      ALMOST_RETURN_IF_ERROR(timed(CheckpointWork::Operation::kWrite,
                                   [&] { return WriteCheckpoint(checkpoints, step, numerics_id, *task); }));
      saved = step;
      saved_at = SteadyClock::now();
    }
    if (stop) return absl::CancelledError("stopped between two steps");
    const auto begin = SteadyClock::now();
    ALMOST_ASSIGN_OR_RETURN(Metrics metrics, task->Step(step));
    ++step;
    const double seconds = std::chrono::duration<double>(SteadyClock::now() - begin).count();
    if (!std::isfinite(metrics["loss"]) || !std::isfinite(metrics["grad_norm"])) {
      if (context.not_finite) context.not_finite();
      return absl::InternalError(absl::StrCat("step ", step, ": the loss is ", metrics["loss"],
                                              ", the norm of the gradient ", metrics["grad_norm"]));
    }
    metrics["step_seconds"] = seconds;
    metrics["peak_memory_bytes"] = PeakMemoryBytes();
    metrics["model_flop_utilisation_ratio"] = metrics["model_flops"] / seconds / peak_flops;
    if (const auto tokens = metrics.find("tokens"); tokens != metrics.end()) {
      metrics["tokens_per_second"] = tokens->second / seconds;
    }
    if (context.report) context.report(step, task->num_steps(), metrics);
  }

  ALMOST_ASSIGN_OR_RETURN(const Finished finished, task->Finish());
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
  return TrainedModel{folder->digest(), numerics_id};
}

}  // namespace

absl::StatusOr<int> MaxTokens(absl::string_view field, int value, const ModelConfig& config) {
  if (value <= config.max_positions) return value == 0 ? config.max_positions : value;
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": must be at most the model's context, ", config.max_positions, ", is ", value));
}

absl::StatusOr<TrainedModel> Train(const JobSpec& spec, const TrainContext& context) {
  ALMOST_RETURN_IF_ERROR(ValidateJobSpec(spec));
  try {
    return Run(spec, context);
  } catch (const c10::Error& e) {
    return absl::InternalError(absl::StrCat("LibTorch: ", e.what_without_backtrace()));
  } catch (const std::exception& e) {
    return absl::InternalError(e.what());
  }
}

}  // namespace almost::trainer
