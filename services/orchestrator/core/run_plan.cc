#include "services/orchestrator/core/run_plan.h"

#include <algorithm>
#include <map>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "services/orchestrator/core/recipe_check.h"
#include "services/orchestrator/core/stage_outcome.h"

namespace almost::orchestrator {
namespace {

constexpr absl::Duration kUnloadTimeout = absl::Seconds(10);

// A stage's view of a run that has not begun: artifacts are those that would be taken over.
class PlanContext : public StageContext {
 public:
  PlanContext(const RunEnvironment& environment, const v1::Recipe& recipe)
      : environment_(environment),
        recipe_(recipe),
        retries_(environment.retry),
        services_(
            environment.services, environment.retry, &retries_, stop_.get_token(), &meter_,
            [this](const absl::Status& why) {
              if (why.ok()) return;
              away_ = why;
              stop_.request_stop();
            },
            [](const absl::Status&) {}) {}

  const std::string& run_id() const override { return run_id_; }
  const v1::Recipe& recipe() const override { return recipe_; }
  int priority() const override { return 0; }
  RetryingServices& services() override { return services_; }
  ArtifactStore& store() const override { return *environment_.store; }
  const PlacedModel& model(absl::string_view role) const override { return models_.find(role)->second; }
  absl::StatusOr<Artifact> Input(absl::string_view stage, absl::string_view name) const override {
    const auto artifact = artifacts_.find(absl::StrCat(stage, "/", name));
    if (artifact == artifacts_.end()) return absl::NotFoundError("not there yet");
    return environment_.store->Get(artifact->second);
  }
  absl::StatusOr<std::string> VanillaDigest(absl::string_view id) const override {
    const auto digest = vanilla_.find(id);
    if (digest == vanilla_.end()) return absl::NotFoundError("not in memory");
    return digest->second;
  }
  std::map<std::string, std::string> Artifacts() const override { return artifacts_; }
  FollowedItems* followed() override { return nullptr; }
  std::vector<v1::Stage> Stages() const override { return {}; }
  void Report(const std::map<std::string, double>&, int64_t, int64_t) override {}

  // Asks what each of the stage's models is, as far as it is there, and adds it to `plan`. Whether all are.
  // Those of a source of their own stay, to be asked by Identity, until UnloadAll.
  absl::StatusOr<bool> Describe(const Stage& stage, v1::StagePlan* plan) {
    models_.clear();
    bool all = true;
    for (const ModelNeed& need : stage.models()) {
      v1::PlannedModel& planned = *plan->add_models();
      planned.set_id(!need.stage.empty() ? need.stage : need.source.empty() ? need.recipe_model : need.role);
      planned.set_service(need.host == ModelHost::kGeneration ? "generation" : "reward");
      planned.set_turn(need.turn);
      auto request = LoadRequest(need, recipe_, artifacts_);
      if (absl::IsFailedPrecondition(request.status())) {
        // Yet to be trained.
        all = false;
        const ModelNeed base = {"", ModelHost::kGeneration, BaseModel(need, recipe_), ""};
        ALMOST_ASSIGN_OR_RETURN(request, LoadRequest(base, recipe_, artifacts_));
        ALMOST_ASSIGN_OR_RETURN(const types::v1::Model model, Ask(ModelHost::kGeneration, *request));
        Describe(Foreseen(need, recipe_, model), &planned);
        continue;
      }
      ALMOST_RETURN_IF_ERROR(request.status());
      ALMOST_ASSIGN_OR_RETURN(const types::v1::Model model,
                              Ask(need.host, *request, /*stays=*/!need.source.empty()));
      Describe(model, &planned);
      PlacedModel& placed = models_[need.role];
      placed = {request->name(),        model.digest(),       model.numerics_id(), "",
                model.context_tokens(), model.prompt_format()};
      if (!need.recipe_model.empty()) {
        vanilla_[need.recipe_model] = model.digest();
      } else if (!need.stage.empty()) {
        placed.artifact_digest = artifacts_.at(absl::StrCat(need.stage, "/model"));
      }
    }
    return all;
  }

  // The stage's outcome, if it would be taken over.
  absl::StatusOr<std::optional<StageOutcome>> Find(Stage& stage) {
    ALMOST_ASSIGN_OR_RETURN(const std::optional<StageIdentity> identity, stage.Identity(*this));
    if (!identity.has_value()) return std::nullopt;
    std::map<std::string, std::pair<std::string, std::string>> models;
    for (const auto& [role, model] : models_) models[role] = {model.digest, model.numerics_id};
    return FindOutcome(*environment_.journal, *environment_.store,
                       StageKey(stage, *identity, recipe_, models));
  }

  void TakeOver(absl::string_view stage, const StageOutcome& outcome) {
    for (const auto& [name, digest] : outcome.artifacts) artifacts_[absl::StrCat(stage, "/", name)] = digest;
  }

  void UnloadAll() {
    for (const Placement& placement : std::exchange(staying_, {})) Unload(placement);
  }

  // Why services() gave up, if it did.
  const absl::Status& away() const { return away_; }

 private:
  static void Describe(const types::v1::Model& model, v1::PlannedModel* planned) {
    planned->set_device(model.device());
    planned->set_dtype(model.dtype());
    planned->set_weight_bytes(model.weight_bytes());
    planned->set_context_tokens(model.context_tokens());
  }

  absl::StatusOr<types::v1::Model> Ask(ModelHost host, const types::v1::LoadModelRequest& request,
                                       bool stays = false) {
    const Placement placement = {host, request.name()};
    const auto known = known_.find(placement);
    if (known != known_.end()) return known->second;
    const CallOptions options = {environment_.retry.load_timeout, stop_.get_token()};
    ALMOST_ASSIGN_OR_RETURN(types::v1::Model model, environment_.services->LoadModel(options, host, request));
    if (stays) {
      staying_.push_back(placement);
    } else {
      Unload(placement);
    }
    return known_[placement] = std::move(model);
  }

  void Unload(const Placement& placement) {
    if (environment_.placement->IsHeld(placement)) return;
    types::v1::UnloadModelRequest request;
    request.set_name(placement.second);
    environment_.services->UnloadModel({kUnloadTimeout, {}}, placement.first, request).IgnoreError();
  }

  const RunEnvironment& environment_;
  const v1::Recipe& recipe_;
  const std::string run_id_;
  absl::Status away_;
  std::stop_source stop_;
  RetryBudget retries_;
  CostMeter meter_;
  RetryingServices services_;
  std::map<Placement, types::v1::Model> known_;
  std::vector<Placement> staying_;
  std::map<std::string, std::string, std::less<>> vanilla_;  // id -> digest
  std::map<std::string, std::string> artifacts_;
  std::map<std::string, PlacedModel, std::less<>> models_;  // of the stage asked about last
};

int64_t MaxGeneratedTokens(absl::string_view stage, const v1::Recipe& recipe) {
  // Of one answer.
  const auto tokens = [](const types::v1::SamplingParams& sampling, const v1::Configuration& configuration) {
    return static_cast<double>(configuration.max_new_tokens() > 0 ? configuration.max_new_tokens()
                                                                  : sampling.max_new_tokens());
  };
  double most = 0;
  if (stage == "prompts" && StageSize(stage, recipe) > 0) {
    most = static_cast<double>(recipe.prompts().max_rounds()) * recipe.prompts().attempts_per_round() *
           recipe.prompts().sampling().max_new_tokens();
  }
  if (stage == "responses") {
    const v1::ResponseStage& responses = recipe.responses();
    const double prompts = StageSize(stage, recipe) / responses.configurations_size();
    for (const v1::Configuration& each : responses.configurations()) {
      most += prompts * tokens(responses.sampling(), each);
    }
  }
  if (stage == "demonstrations") {
    const v1::DemonstrationStage& demonstration = recipe.demonstration();
    const double answers = StageSize(stage, recipe);
    // The user asks before every turn but the first.
    const double questions = answers / (demonstration.num_candidates() * demonstration.max_turns()) *
                             (demonstration.max_turns() - 1);
    most = (answers + questions) * tokens(demonstration.sampling(), demonstration.assistant());
  }
  if (stage == "evaluation") {
    const v1::EvaluationStage& evaluation = recipe.evaluation();
    const EvaluationSize size = SizeOfEvaluation(recipe);
    most = size.questions *
           (std::max(evaluation.best_of(), 1) * tokens(evaluation.sampling(), evaluation.baseline()) +
            (recipe.has_sft() + recipe.has_rl()) * tokens(evaluation.sampling(), {}));
    for (const v1::Configuration& each : evaluation.grid()) {
      most += size.grid_questions * tokens(evaluation.sampling(), each);
    }
  }
  return static_cast<int64_t>(most);
}

absl::Status Forecast(Journal& journal, const Stage& stage, const v1::Recipe& recipe, v1::StagePlan* plan) {
  plan->set_max_generated_tokens(MaxGeneratedTokens(stage.id(), recipe));
  const auto record = journal.LatestOutcome(stage.id(), StagePace(stage, recipe));
  if (absl::IsNotFound(record.status())) return absl::OkStatus();
  ALMOST_RETURN_IF_ERROR(record.status());
  ALMOST_ASSIGN_OR_RETURN(const StageOutcome measured, StageOutcome::FromRecord(*record));
  const double size = StageSize(stage.id(), recipe);
  if (!(measured.size > 0)) return absl::OkStatus();
  AddTo(measured.shown.cost(), plan->mutable_cost(), size / measured.size);
  plan->set_seconds(measured.shown.seconds() * size / measured.size);
  plan->set_measured_by(absl::StrCat("runs/", measured.run));
  return absl::OkStatus();
}

}  // namespace

absl::Status PlanRun(const RunEnvironment& environment, const v1::Recipe& recipe, bool recompute,
                     v1::Run* run) {
  PlanContext context(environment, recipe);
  bool known = !recompute;  // whether everything before the stage would be taken over
  for (const std::unique_ptr<Stage>& stage : environment.make_stages(recipe)) {
    v1::Stage& shown = *run->add_stages();
    shown.set_id(std::string(stage->id()));
    shown.set_state(v1::STAGE_STATE_WAITING);
    v1::StagePlan& plan = *shown.mutable_plan();
    const absl::StatusOr<bool> described = context.Describe(*stage, &plan);
    absl::StatusOr<std::optional<StageOutcome>> found = std::nullopt;
    if (known && described.ok() && *described) found = context.Find(*stage);
    context.UnloadAll();
    if (!described.ok()) return Annotate(described.status(), shown.id());
    if (!found.ok()) return context.away().ok() ? Annotate(found.status(), shown.id()) : context.away();
    known = found->has_value();
    if (known) {
      context.TakeOver(stage->id(), **found);
      shown.set_cached_from(absl::StrCat("runs/", (*found)->run));
      *shown.mutable_figures() = (*found)->shown.figures();
      continue;
    }
    ALMOST_RETURN_IF_ERROR(Forecast(*environment.journal, *stage, recipe, &plan));
  }
  return absl::OkStatus();
}

}  // namespace almost::orchestrator
