#include "services/orchestrator/core/training_stage.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "common/storage/json_lines.h"
#include "services/orchestrator/core/datasets.h"
#include "services/orchestrator/core/run_jobs.h"
#include "services/orchestrator/core/stages.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

constexpr absl::Duration kWatch = absl::Seconds(5);
// Jobs that a run may start for a stage, and goes at one, over failures of the world, cancellations and
// resumptions.
constexpr int kMaxJobs = 20;

// A failure of the world, not of the job: another go at it may succeed. kNotFound: the reward service has
// lost the model and was not given it back in time. Not kResourceExhausted: the trainer's disk is full, and
// stays so until somebody makes room and resumes the run.
bool IsWorthAnotherGo(const absl::Status& status) {
  return (IsTransient(status) && !absl::IsResourceExhausted(status)) || absl::IsNotFound(status);
}

bool HasEnded(trainer::v1::JobState state) {
  return state == trainer::v1::JOB_STATE_SUCCEEDED || state == trainer::v1::JOB_STATE_FAILED ||
         state == trainer::v1::JOB_STATE_CANCELLED;
}

absl::Status ErrorOf(const trainer::v1::Job& job) {
  if (job.state() == trainer::v1::JOB_STATE_CANCELLED) {
    return absl::UnavailableError(absl::StrCat(job.name(), " was cancelled"));
  }
  const auto code = static_cast<absl::StatusCode>(job.error().code());
  return absl::Status(code == absl::StatusCode::kOk ? absl::StatusCode::kInternal : code,
                      absl::StrCat(job.name(), ": ", job.error().message()));
}

std::string VanillaSource(const v1::Recipe& recipe, absl::string_view id) {
  for (const v1::VanillaModel& model : recipe.models()) {
    if (absl::string_view(model.id()) == id) return model.source();
  }
  return "";
}

// What has been seen of a job, over all goes at it.
struct History {
  int64_t sequence = 0;  // of the last event
  std::map<int64_t, std::map<std::string, double>> curves;

  double Tokens() const {
    double tokens = 0;
    for (const auto& [step, metrics] : curves) {
      if (const auto count = metrics.find("tokens"); count != metrics.end()) tokens += count->second;
    }
    return tokens;
  }
};

// Watches until the job has ended and leaves it so in `job`.
absl::Status Follow(StageContext& context, trainer::v1::Job& job, History& history) {
  const double tokens_before = history.Tokens();
  trainer::v1::WatchJobRequest watch;
  watch.set_name(job.name());
  watch.set_after_sequence(history.sequence);
  trainer::v1::GetJobRequest get;
  get.set_name(job.name());
  CostMeter& meter = context.services().meter();
  // From when the job has left the trainer's queue.
  std::optional<CostMeter::Busy> busy;
  while (true) {
    ALMOST_RETURN_IF_ERROR(
        context.services().WatchJob(watch, kWatch, [&](const trainer::v1::JobEvent& event) {
          watch.set_after_sequence(std::max(watch.after_sequence(), event.sequence()));
          if (event.state() == trainer::v1::JOB_STATE_RUNNING && !busy) {
            busy.emplace(&meter, CostMeter::Device::kTrainer, 1);
          }
          if (event.metrics().empty()) return true;
          const std::map<std::string, double> metrics(event.metrics().begin(), event.metrics().end());
          history.curves[event.step()] = metrics;
          context.Report(metrics, event.step(), event.num_steps());
          return true;
        }));
    history.sequence = watch.after_sequence();
    ALMOST_ASSIGN_OR_RETURN(job, context.services().GetJob(get));
    if (HasEnded(job.state())) break;
  }
  v1::Cost cost;
  cost.set_trained_tokens(static_cast<int64_t>(history.Tokens() - tokens_before));
  meter.Add(cost);
  return absl::OkStatus();
}

// A JSON Lines text of {step, metrics by name}.
std::string CurvesText(const std::map<int64_t, std::map<std::string, double>>& curves) {
  std::string lines;
  for (const auto& [step, metrics] : curves) {
    ordered_json line = {{"step", step}};
    for (const auto& [name, value] : metrics) line[name] = value;
    // A figure that is not finite has no place in JSON, and is no reason to lose a trained model.
    AppendJsonLine(line, &lines).IgnoreError();
  }
  return lines;
}

}  // namespace

absl::StatusOr<std::optional<StageIdentity>> TrainingStage::Identity(StageContext& context) {
  trainer::v1::CreateJobRequest request;
  request.set_validate_only(true);
  ALMOST_ASSIGN_OR_RETURN(*request.mutable_spec(), SpecToValidate(context));
  request.mutable_spec()->set_prompt_format(context.recipe().prompt_format());
  ALMOST_ASSIGN_OR_RETURN(const trainer::v1::Job job, context.services().CreateJob(request));
  StageIdentity identity;
  identity.numerics_id = job.numerics_id();
  identity.recipe = {{"seed", context.recipe().seed()}};
  const absl::Status known = AddIdentity(context, identity);
  // A base model that no stage has had in memory has no digest here.
  if (absl::IsNotFound(known) || identity.numerics_id.empty()) return std::nullopt;
  ALMOST_RETURN_IF_ERROR(known);
  return identity;
}

absl::StatusOr<std::string> TrainingStage::RunItem(StageContext& context, int64_t) {
  ALMOST_ASSIGN_OR_RETURN(Job made, MakeJob(context));
  trainer::v1::CreateJobRequest request;
  *request.mutable_spec() = std::move(made.spec);
  request.mutable_spec()->set_seed(DeriveSeed(context.recipe().seed(), id()));
  request.mutable_spec()->set_prompt_format(context.recipe().prompt_format());
  request.mutable_spec()->set_priority(context.priority());
  absl::Status status;
  History history;  // of the job with this number
  for (int number = 0, goes = 0; number < kMaxJobs && goes < kMaxJobs;) {
    request.set_job_id(RunJobId(context.run_id(), id(), request.spec(), number));
    ALMOST_ASSIGN_OR_RETURN(trainer::v1::Job job, context.services().CreateJob(request));
    // Paused with this run, which now goes on; or failed of the world, and with its checkpoints kept.
    const bool has_failed = job.state() == trainer::v1::JOB_STATE_FAILED;
    const bool had_no_ground = has_failed && absl::IsFailedPrecondition(ErrorOf(job));
    if (job.state() == trainer::v1::JOB_STATE_PAUSED || has_failed) {
      trainer::v1::ResumeJobRequest resume;
      resume.set_name(job.name());
      ALMOST_ASSIGN_OR_RETURN(job, context.services().ResumeJob(resume));
    }
    // It ended without a model, and there is nothing that it could go on from: another one begins anew.
    if (HasEnded(job.state()) && job.state() != trainer::v1::JOB_STATE_SUCCEEDED) {
      status = ErrorOf(job);
      history = {};
      ++number;
      continue;
    }
    ALMOST_RETURN_IF_ERROR(Follow(context, job, history));
    if (job.state() == trainer::v1::JOB_STATE_SUCCEEDED) {
      return Result(context, job, history.curves, made.dataset);
    }
    status = ErrorOf(job);
    if (had_no_ground && absl::IsFailedPrecondition(status)) {
      // Nobody has mended that on which its checkpoints depend, and the run was resumed all the same.
      trainer::v1::CancelJobRequest cancel;
      cancel.set_name(job.name());
      ALMOST_RETURN_IF_ERROR(context.services().CancelJob(cancel).status());
      history = {};
      ++number;
      continue;
    }
    if (!IsWorthAnotherGo(status)) return status;
    ++goes;
  }
  return status;
}

absl::StatusOr<std::string> TrainingStage::Result(
    const StageContext& context, const trainer::v1::Job& job,
    const std::map<int64_t, std::map<std::string, double>>& curves,
    const std::optional<MadeDataset>& dataset) {
  // A model that cannot be read must not be published.
  ALMOST_RETURN_IF_ERROR(context.store().Get(job.output_digest()).status());
  ordered_json result = {{"digest", job.output_digest()}, {"figures", ordered_json::object()}};
  result["figures"]["steps"] = job.num_steps();
  for (const auto& [name, value] : std::map(job.metrics().begin(), job.metrics().end())) {
    result["figures"][name] = value;
  }
  result["curves"] = CurvesText(curves);
  if (dataset.has_value()) {
    result["dataset"] = {{"name", dataset->name}, {"digest", dataset->digest}};
    for (const auto& [name, value] : dataset->figures) result["figures"][name] = value;
  }
  return result.dump();
}

absl::StatusOr<StageOutput> TrainingStage::Publish(StageContext&, const ItemResults& results) {
  StageOutput output;
  ALMOST_RETURN_IF_ERROR(results.ForEach([&](int64_t, const absl::StatusOr<std::string>& result) {
    if (!result.ok()) return result.status();
    const ordered_json item = ordered_json::parse(*result);
    output.artifacts.push_back({"model", {}, item.at("digest")});
    for (const auto& [name, value] : item.at("figures").items()) {
      if (value.is_number()) output.figures[name] = value;
    }
    output.run_files[absl::StrCat(std::string(id()), "/curves.jsonl")] = item.at("curves");
    if (const auto dataset = item.find("dataset"); dataset != item.end()) {
      output.artifacts.push_back({dataset->at("name"), {}, dataset->at("digest")});
    }
    return absl::OkStatus();
  }));
  return output;
}

absl::StatusOr<trainer::v1::JobSpec> TrainingStage::SpecToValidate(StageContext& context) {
  ALMOST_ASSIGN_OR_RETURN(Job job, MakeJob(context));
  return std::move(job.spec);
}

absl::Status TrainingStage::AddInput(const StageContext& context, absl::string_view stage,
                                     absl::string_view name, StageIdentity& identity) {
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, context.Input(stage, name));
  identity.inputs[absl::StrCat(stage, "/", name)] = artifact.digest;
  return absl::OkStatus();
}

absl::StatusOr<std::string> TrainingStage::Source(const StageContext& context, absl::string_view stage,
                                                  absl::string_view name) {
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, context.Input(stage, name));
  return absl::StrCat("artifacts/", artifact.digest);
}

namespace {

class RewardModelStage : public TrainingStage {
 public:
  absl::string_view id() const override { return "reward_model"; }

 protected:
  absl::StatusOr<Job> MakeJob(StageContext& context) override {
    const v1::RewardModelStage& recipe = context.recipe().reward_model();
    Job job;
    trainer::v1::JobSpec& spec = job.spec;
    spec.set_base_model(VanillaSource(context.recipe(), recipe.base_model()));
    *spec.mutable_optimizer() = recipe.optimizer();
    if (recipe.has_memory()) *spec.mutable_memory() = recipe.memory();
    *spec.mutable_reward_model() = recipe.spec();
    ALMOST_ASSIGN_OR_RETURN(*spec.mutable_reward_model()->mutable_dataset(),
                            Source(context, "comparisons", "comparisons"));
    return job;
  }
  absl::Status AddIdentity(StageContext& context, StageIdentity& identity) override {
    identity.recipe["reward_model"] = ToJson(context.recipe().reward_model());
    ALMOST_ASSIGN_OR_RETURN(identity.inputs["base_model"],
                            context.VanillaDigest(context.recipe().reward_model().base_model()));
    return AddInput(context, "comparisons", "comparisons", identity);
  }
};

class SftStage : public TrainingStage {
 public:
  absl::string_view id() const override { return "sft"; }

 protected:
  absl::StatusOr<Job> MakeJob(StageContext& context) override {
    const v1::SftStage& recipe = context.recipe().sft();
    Job job;
    trainer::v1::JobSpec& spec = job.spec;
    spec.set_base_model(VanillaSource(context.recipe(), recipe.base_model()));
    *spec.mutable_optimizer() = recipe.optimizer();
    if (recipe.has_memory()) *spec.mutable_memory() = recipe.memory();
    *spec.mutable_sft() = recipe.spec();
    ALMOST_ASSIGN_OR_RETURN(*spec.mutable_sft()->mutable_dataset(),
                            Source(context, "demonstrations", "demonstrations"));
    return job;
  }
  absl::Status AddIdentity(StageContext& context, StageIdentity& identity) override {
    identity.recipe["sft"] = ToJson(context.recipe().sft());
    ALMOST_ASSIGN_OR_RETURN(identity.inputs["base_model"],
                            context.VanillaDigest(context.recipe().sft().base_model()));
    return AddInput(context, "demonstrations", "demonstrations", identity);
  }
};

}  // namespace

std::unique_ptr<Stage> MakeRewardModelStage() { return std::make_unique<RewardModelStage>(); }
std::unique_ptr<Stage> MakeSftStage() { return std::make_unique<SftStage>(); }

}  // namespace almost::orchestrator
