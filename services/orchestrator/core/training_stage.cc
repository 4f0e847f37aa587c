#include <algorithm>
#include <map>
#include <set>
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
// Jobs that a run may start for a stage, over failures of the world, cancellations and resumptions.
constexpr int kMaxJobs = 20;

// A failure of the world, not of the job: another job of the same spec may succeed. kNotFound: the reward
// service has lost the model and was not given it back in time. Not kResourceExhausted: the trainer's disk is
// full, and stays so until somebody makes room and resumes the run.
bool IsWorthAnotherJob(const absl::Status& status) {
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

// Trains one model by one job of the trainer. The job's id is a function of the run, the stage and the spec,
// so that asking for it again is harmless. The only item's result is {digest, figures, curves}.
class TrainingStage : public Stage {
 public:
  bool only_waits() const override { return true; }

  // The trainer tells the numerics that a job would have.
  absl::StatusOr<std::optional<StageIdentity>> Identity(StageContext& context) override {
    trainer::v1::CreateJobRequest request;
    request.set_validate_only(true);
    ALMOST_ASSIGN_OR_RETURN(*request.mutable_spec(), SpecToValidate(context));
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

  absl::Status Begin(StageContext&) override { return absl::OkStatus(); }
  absl::StatusOr<int64_t> NumItems(StageContext&, const ItemResults&) override { return 1; }

  absl::StatusOr<std::string> RunItem(StageContext& context, int64_t) override {
    trainer::v1::CreateJobRequest request;
    ALMOST_ASSIGN_OR_RETURN(*request.mutable_spec(), Spec(context));
    request.mutable_spec()->set_seed(DeriveSeed(context.recipe().seed(), id()));
    request.mutable_spec()->set_prompt_format(context.recipe().prompt_format());
    request.mutable_spec()->set_priority(context.priority());
    absl::Status status;
    for (int number = 0; number < kMaxJobs; ++number) {
      request.set_job_id(RunJobId(context.run_id(), id(), request.spec(), number));
      ALMOST_ASSIGN_OR_RETURN(trainer::v1::Job job, context.services().CreateJob(request));
      if (job.state() == trainer::v1::JOB_STATE_PAUSED) {  // with this run, which now goes on
        trainer::v1::ResumeJobRequest resume;
        resume.set_name(job.name());
        ALMOST_ASSIGN_OR_RETURN(job, context.services().ResumeJob(resume));
      }
      // One that had ended without a model before we asked belongs to an earlier try.
      if (HasEnded(job.state()) && job.state() != trainer::v1::JOB_STATE_SUCCEEDED) {
        status = ErrorOf(job);
        continue;
      }
      std::map<int64_t, std::map<std::string, double>> curves;
      ALMOST_RETURN_IF_ERROR(Follow(context, job, curves));
      if (job.state() == trainer::v1::JOB_STATE_SUCCEEDED) return Result(context, job, curves);
      status = ErrorOf(job);
      if (!IsWorthAnotherJob(status)) return status;
    }
    return status;
  }

  absl::StatusOr<StageOutput> Publish(StageContext&, const ItemResults& results) override {
    StageOutput output;
    ALMOST_RETURN_IF_ERROR(results.ForEach([&](int64_t, const absl::StatusOr<std::string>& result) {
      if (!result.ok()) return result.status();
      const ordered_json item = ordered_json::parse(*result);
      output.artifacts.push_back({"model", {}, item.at("digest")});
      for (const auto& [name, value] : item.at("figures").items()) {
        if (value.is_number()) output.figures[name] = value;
      }
      output.run_files[absl::StrCat(std::string(id()), "/curves.jsonl")] = item.at("curves");
      return AddArtifacts(item, output);
    }));
    return output;
  }

 protected:
  // What to train; seed and prompt format are filled in.
  virtual absl::StatusOr<trainer::v1::JobSpec> Spec(StageContext& context) = 0;
  // The same, naming only what is there already.
  virtual absl::StatusOr<trainer::v1::JobSpec> SpecToValidate(StageContext& context) {
    ALMOST_ASSIGN_OR_RETURN(trainer::v1::JobSpec spec, Spec(context));
    spec.set_prompt_format(context.recipe().prompt_format());
    return spec;
  }
  // Adds the stage's part of the recipe, and its inputs.
  virtual absl::Status AddIdentity(StageContext& context, StageIdentity& identity) = 0;
  // What the stage publishes besides the model.
  virtual absl::Status AddArtifacts(const ordered_json& /*item*/, StageOutput& /*output*/) {
    return absl::OkStatus();
  }
  // Kept in the item's result for AddArtifacts.
  virtual ordered_json Extra() const { return nullptr; }

  static absl::Status AddInput(const StageContext& context, absl::string_view stage, absl::string_view name,
                               StageIdentity& identity) {
    ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, context.Input(stage, name));
    identity.inputs[absl::StrCat(stage, "/", name)] = artifact.digest;
    return absl::OkStatus();
  }
  static absl::StatusOr<std::string> Source(const StageContext& context, absl::string_view stage,
                                            absl::string_view name) {
    ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, context.Input(stage, name));
    return absl::StrCat("artifacts/", artifact.digest);
  }

 private:
  // Watches until the job has ended and leaves it so in `job`.
  absl::Status Follow(StageContext& context, trainer::v1::Job& job,
                      std::map<int64_t, std::map<std::string, double>>& curves) {
    trainer::v1::WatchJobRequest watch;
    watch.set_name(job.name());
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
            curves[event.step()] = metrics;
            context.Report(metrics, event.step(), event.num_steps());
            return true;
          }));
      ALMOST_ASSIGN_OR_RETURN(job, context.services().GetJob(get));
      if (HasEnded(job.state())) break;
    }
    double tokens = 0;
    for (const auto& [step, metrics] : curves) {
      if (const auto count = metrics.find("tokens"); count != metrics.end()) tokens += count->second;
    }
    v1::Cost cost;
    cost.set_trained_tokens(static_cast<int64_t>(tokens));
    meter.Add(cost);
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Result(StageContext& context, const trainer::v1::Job& job,
                                     const std::map<int64_t, std::map<std::string, double>>& curves) const {
    // A model that cannot be read must not be published.
    ALMOST_RETURN_IF_ERROR(context.store().Get(job.output_digest()).status());
    ordered_json result = {{"digest", job.output_digest()}, {"figures", ordered_json::object()}};
    result["figures"]["steps"] = job.num_steps();
    for (const auto& [name, value] : std::map(job.metrics().begin(), job.metrics().end())) {
      result["figures"][name] = value;
    }
    std::string lines;
    for (const auto& [step, metrics] : curves) {
      ordered_json line = {{"step", step}};
      for (const auto& [name, value] : metrics) line[name] = value;
      // A figure that is not finite has no place in JSON, and is no reason to lose a trained model.
      AppendJsonLine(line, &lines).IgnoreError();
    }
    result["curves"] = lines;
    result["extra"] = Extra();
    return result.dump();
  }
};

class RewardModelStage : public TrainingStage {
 public:
  absl::string_view id() const override { return "reward_model"; }

 protected:
  absl::StatusOr<trainer::v1::JobSpec> Spec(StageContext& context) override {
    const v1::RewardModelStage& recipe = context.recipe().reward_model();
    trainer::v1::JobSpec spec;
    spec.set_base_model(VanillaSource(context.recipe(), recipe.base_model()));
    *spec.mutable_optimizer() = recipe.optimizer();
    if (recipe.has_memory()) *spec.mutable_memory() = recipe.memory();
    *spec.mutable_reward_model() = recipe.spec();
    ALMOST_ASSIGN_OR_RETURN(*spec.mutable_reward_model()->mutable_dataset(),
                            Source(context, "comparisons", "comparisons"));
    return spec;
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
  absl::StatusOr<trainer::v1::JobSpec> Spec(StageContext& context) override {
    const v1::SftStage& recipe = context.recipe().sft();
    trainer::v1::JobSpec spec;
    spec.set_base_model(VanillaSource(context.recipe(), recipe.base_model()));
    *spec.mutable_optimizer() = recipe.optimizer();
    if (recipe.has_memory()) *spec.mutable_memory() = recipe.memory();
    *spec.mutable_sft() = recipe.spec();
    ALMOST_ASSIGN_OR_RETURN(*spec.mutable_sft()->mutable_dataset(),
                            Source(context, "demonstrations", "demonstrations"));
    return spec;
  }
  absl::Status AddIdentity(StageContext& context, StageIdentity& identity) override {
    identity.recipe["sft"] = ToJson(context.recipe().sft());
    ALMOST_ASSIGN_OR_RETURN(identity.inputs["base_model"],
                            context.VanillaDigest(context.recipe().sft().base_model()));
    return AddInput(context, "demonstrations", "demonstrations", identity);
  }
};

class RlStage : public TrainingStage {
 public:
  explicit RlStage(StageSettings settings) : settings_(std::move(settings)) {}

  absl::string_view id() const override { return "rl"; }
  std::vector<ModelNeed> models() const override {
    return {{"reward_model", ModelHost::kReward, "", "reward_model"}};
  }

 protected:
  absl::StatusOr<trainer::v1::JobSpec> Spec(StageContext& context) override {
    ALMOST_ASSIGN_OR_RETURN(prompts_digest_, PublishPrompts(context));
    return SpecOver(context, absl::StrCat("artifacts/", prompts_digest_));
  }
  // Of all prompts, for those left are not published before the stage is to be done.
  absl::StatusOr<trainer::v1::JobSpec> SpecToValidate(StageContext& context) override {
    ALMOST_ASSIGN_OR_RETURN(const std::string prompts, Source(context, "prompts", "prompts"));
    ALMOST_ASSIGN_OR_RETURN(trainer::v1::JobSpec spec, SpecOver(context, prompts));
    spec.set_prompt_format(context.recipe().prompt_format());
    return spec;
  }
  absl::Status AddIdentity(StageContext& context, StageIdentity& identity) override {
    identity.recipe["rl"] = ToJson(context.recipe().rl());
    ALMOST_RETURN_IF_ERROR(AddInput(context, "prompts", "prompts", identity));
    ALMOST_RETURN_IF_ERROR(AddInput(context, "sft", "model", identity));
    ALMOST_RETURN_IF_ERROR(AddInput(context, "reward_model", "model", identity));
    if (!context.recipe().rl().only_unseen_prompts()) return absl::OkStatus();
    return AddInput(context, "demonstrations", "demonstrations", identity);
  }

  ordered_json Extra() const override { return prompts_digest_; }
  absl::Status AddArtifacts(const ordered_json& item, StageOutput& output) override {
    output.artifacts.push_back({"prompts", {}, item.at("extra")});
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<trainer::v1::JobSpec> SpecOver(StageContext& context, const std::string& dataset) const {
    const v1::RlStage& recipe = context.recipe().rl();
    trainer::v1::JobSpec spec;
    ALMOST_ASSIGN_OR_RETURN(*spec.mutable_base_model(), Source(context, "sft", "model"));
    *spec.mutable_optimizer() = recipe.optimizer();
    if (recipe.has_memory()) *spec.mutable_memory() = recipe.memory();
    trainer::v1::PpoSpec& ppo = *spec.mutable_ppo();
    ppo = recipe.spec();
    ppo.set_dataset(dataset);
    ppo.set_reward_target(settings_.reward_target);
    ppo.set_reward_model(context.model("reward_model").name);
    ppo.set_reward_digest(context.model("reward_model").digest);
    ALMOST_ASSIGN_OR_RETURN(*ppo.mutable_reward_source(), Source(context, "reward_model", "model"));
    return spec;
  }

  static absl::StatusOr<std::string> PublishPrompts(StageContext& context) {
    ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> prompts, ReadPrompts(context));
    ALMOST_ASSIGN_OR_RETURN(const Artifact prompts_artifact, context.Input("prompts", "prompts"));
    std::map<std::string, std::string> inputs = {{"prompts", prompts_artifact.digest}};
    std::set<int64_t> seen;
    if (context.recipe().rl().only_unseen_prompts()) {
      ALMOST_ASSIGN_OR_RETURN(const auto demonstrations,
                              ReadDataset(context, "demonstrations", "demonstrations"));
      for (const ordered_json& line : demonstrations) seen.insert(line.at("prompt_id").get<int64_t>());
      ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, context.Input("demonstrations", "demonstrations"));
      inputs["demonstrations"] = artifact.digest;
    }
    ALMOST_ASSIGN_OR_RETURN(DatasetWriter unseen, DatasetWriter::Create(context.store(), "prompts"));
    for (size_t id = 0; id < prompts.size(); ++id) {
      if (seen.contains(static_cast<int64_t>(id))) continue;
      ALMOST_RETURN_IF_ERROR(unseen.Append({{"prompt", prompts[id]}, {"prompt_id", id}}));
    }
    if (unseen.empty()) {
      return absl::FailedPreconditionError(
          "rl.only_unseen_prompts: SFT has used every prompt; mine more, or simulate fewer dialogues");
    }
    ALMOST_ASSIGN_OR_RETURN(StageArtifact artifact, unseen.Finish());
    artifact.draft.inputs = std::move(inputs);
    artifact.draft.recipe = {{"only_unseen_prompts", context.recipe().rl().only_unseen_prompts()}};
    ALMOST_ASSIGN_OR_RETURN(const Artifact made, context.store().Publish(artifact.draft));
    return made.digest;
  }

  const StageSettings settings_;
  std::string prompts_digest_;
};

}  // namespace

std::unique_ptr<Stage> MakeRewardModelStage() { return std::make_unique<RewardModelStage>(); }
std::unique_ptr<Stage> MakeSftStage() { return std::make_unique<SftStage>(); }
std::unique_ptr<Stage> MakeRlStage(const StageSettings& settings) {
  return std::make_unique<RlStage>(settings);
}

}  // namespace almost::orchestrator
