#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "services/orchestrator/core/dataset_card.h"
#include "services/orchestrator/core/datasets.h"
#include "services/orchestrator/core/preference_pairs.h"
#include "services/orchestrator/core/stages.h"
#include "services/orchestrator/core/training_stage.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

// The SFT model improved by a job over a dataset that the stage makes for it.
class RlStage : public TrainingStage {
 public:
  absl::string_view id() const override { return "rl"; }

 protected:
  // The spec without what is the algorithm's own.
  static absl::StatusOr<trainer::v1::JobSpec> FromSft(const StageContext& context) {
    const v1::RlStage& recipe = context.recipe().rl();
    trainer::v1::JobSpec spec;
    ALMOST_ASSIGN_OR_RETURN(*spec.mutable_base_model(), Source(context, "sft", "model"));
    *spec.mutable_optimizer() = recipe.optimizer();
    if (recipe.has_memory()) *spec.mutable_memory() = recipe.memory();
    return spec;
  }

  // The digest of what was written, with its card.
  absl::StatusOr<std::string> PublishDataset(StageContext& context, DatasetWriter& lines,
                                             std::map<std::string, std::string> inputs, nlohmann::json recipe,
                                             const std::map<std::string, double>& figures) const {
    ALMOST_ASSIGN_OR_RETURN(StageArtifact artifact, lines.Finish());
    artifact.draft.stage_version = version();
    artifact.draft.inputs = std::move(inputs);
    artifact.draft.recipe = std::move(recipe);
    ALMOST_ASSIGN_OR_RETURN(
        artifact.draft.files["README.md"],
        DatasetCard(artifact.draft, std::string(id()), figures, context.recipe().dataset_license()));
    ALMOST_ASSIGN_OR_RETURN(const Artifact made, context.store().Publish(artifact.draft));
    return made.digest;
  }
};

// PPO and GRPO: rollouts to prompts, scored by the reward model.
class RolloutStage : public RlStage {
 public:
  explicit RolloutStage(StageSettings settings) : settings_(std::move(settings)) {}

  std::vector<ModelNeed> models() const override {
    return {{"reward_model", ModelHost::kReward, "", "reward_model"}};
  }

 protected:
  absl::StatusOr<Job> MakeJob(StageContext& context) override {
    ALMOST_ASSIGN_OR_RETURN(const std::string prompts, PublishPrompts(context));
    ALMOST_ASSIGN_OR_RETURN(trainer::v1::JobSpec spec,
                            SpecOver(context, absl::StrCat("artifacts/", prompts)));
    return Job{std::move(spec), MadeDataset{"prompts", prompts, {}}};
  }
  // Of all prompts, for those left are not published before the stage is to be done.
  absl::StatusOr<trainer::v1::JobSpec> SpecToValidate(StageContext& context) override {
    ALMOST_ASSIGN_OR_RETURN(const std::string prompts, Source(context, "prompts", "prompts"));
    return SpecOver(context, prompts);
  }
  absl::Status AddIdentity(StageContext& context, StageIdentity& identity) override {
    v1::RlStage recipe = context.recipe().rl();
    // Left out as recipes that are older than the choice leave it out: what they have made is taken over.
    if (recipe.algorithm() == v1::RlStage::ALGORITHM_PPO) recipe.clear_algorithm();
    identity.recipe["rl"] = ToJson(recipe);
    ALMOST_RETURN_IF_ERROR(AddInput(context, "prompts", "prompts", identity));
    ALMOST_RETURN_IF_ERROR(AddInput(context, "sft", "model", identity));
    ALMOST_RETURN_IF_ERROR(AddInput(context, "reward_model", "model", identity));
    if (!recipe.only_unseen_prompts()) return absl::OkStatus();
    return AddInput(context, "demonstrations", "demonstrations", identity);
  }

 private:
  absl::StatusOr<trainer::v1::JobSpec> SpecOver(const StageContext& context,
                                                const std::string& dataset) const {
    const v1::RlStage& recipe = context.recipe().rl();
    ALMOST_ASSIGN_OR_RETURN(trainer::v1::JobSpec spec, FromSft(context));
    const bool grpo = recipe.algorithm() == v1::RlStage::ALGORITHM_GRPO;
    trainer::v1::PpoSpec& rollouts = grpo ? *spec.mutable_grpo() : *spec.mutable_ppo();
    rollouts = recipe.spec();
    rollouts.set_dataset(dataset);
    rollouts.set_reward_target(settings_.reward_target);
    rollouts.set_reward_model(context.model("reward_model").name);
    rollouts.set_reward_digest(context.model("reward_model").digest);
    ALMOST_ASSIGN_OR_RETURN(*rollouts.mutable_reward_source(), Source(context, "reward_model", "model"));
    return spec;
  }

  absl::StatusOr<std::string> PublishPrompts(StageContext& context) const {
    ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> prompts, ReadPrompts(context));
    ALMOST_ASSIGN_OR_RETURN(const Artifact prompts_artifact, context.Input("prompts", "prompts"));
    const bool only_unseen = context.recipe().rl().only_unseen_prompts();
    std::map<std::string, std::string> inputs = {{"prompts", prompts_artifact.digest}};
    std::set<int64_t> seen;
    if (only_unseen) {
      ALMOST_RETURN_IF_ERROR(
          ForEachInDataset(context, "demonstrations", "demonstrations", [&](const ordered_json& line) {
            seen.insert(line.at("prompt_id").get<int64_t>());
            return absl::OkStatus();
          }));
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
    return PublishDataset(context, unseen, std::move(inputs), {{"only_unseen_prompts", only_unseen}}, {});
  }

  const StageSettings settings_;
};

// DPO: pairs of what was answered for the demonstrations. No model is in memory but the trainer's.
class DpoStage : public RlStage {
 protected:
  absl::StatusOr<Job> MakeJob(StageContext& context) override {
    ALMOST_ASSIGN_OR_RETURN(MadeDataset pairs, PublishPairs(context));
    ALMOST_ASSIGN_OR_RETURN(trainer::v1::JobSpec spec,
                            SpecOver(context, absl::StrCat("artifacts/", pairs.digest)));
    return Job{std::move(spec), std::move(pairs)};
  }
  // Of the comparisons, which are of the same form, for the pairs are not published before the stage is to be
  // done.
  absl::StatusOr<trainer::v1::JobSpec> SpecToValidate(StageContext& context) override {
    ALMOST_ASSIGN_OR_RETURN(const std::string comparisons, Source(context, "comparisons", "comparisons"));
    return SpecOver(context, comparisons);
  }
  absl::Status AddIdentity(StageContext& context, StageIdentity& identity) override {
    v1::RlStage recipe = context.recipe().rl();
    recipe.clear_spec();  // unused
    identity.recipe["rl"] = ToJson(recipe);
    ALMOST_RETURN_IF_ERROR(AddInput(context, "sft", "model", identity));
    return AddInput(context, "demonstrations", "candidates", identity);
  }

 private:
  static absl::StatusOr<trainer::v1::JobSpec> SpecOver(const StageContext& context,
                                                       const std::string& dataset) {
    ALMOST_ASSIGN_OR_RETURN(trainer::v1::JobSpec spec, FromSft(context));
    *spec.mutable_dpo() = context.recipe().rl().dpo();
    spec.mutable_dpo()->set_dataset(dataset);
    return spec;
  }

  absl::StatusOr<MadeDataset> PublishPairs(StageContext& context) const {
    const double min_margin = context.recipe().rl().min_margin();
    MadeDataset made = {"pairs", "", {{"kept", 0}, {"dropped_no_margin", 0}}};
    ALMOST_ASSIGN_OR_RETURN(DatasetWriter pairs, DatasetWriter::Create(context.store(), made.name));
    ALMOST_RETURN_IF_ERROR(
        ForEachInDataset(context, "demonstrations", "candidates", [&](const ordered_json& dialogue) {
          if (dialogue.at("drop_reason") != "") return absl::OkStatus();  // no demonstration
          const std::optional<ordered_json> pair = PreferencePair(dialogue, min_margin);
          made.figures[pair.has_value() ? "kept" : "dropped_no_margin"] += 1;
          return pair.has_value() ? pairs.Append(*pair) : absl::OkStatus();
        }));
    if (pairs.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("rl.min_margin: no demonstration has suitable candidates whose scores are more than ",
                       min_margin, " apart"));
    }
    ALMOST_ASSIGN_OR_RETURN(const Artifact candidates, context.Input("demonstrations", "candidates"));
    ALMOST_ASSIGN_OR_RETURN(made.digest, PublishDataset(context, pairs, {{"candidates", candidates.digest}},
                                                        {{"min_margin", min_margin}}, made.figures));
    return made;
  }
};

}  // namespace

std::unique_ptr<Stage> MakeRlStage(const v1::Recipe& recipe, const StageSettings& settings) {
  if (recipe.rl().algorithm() == v1::RlStage::ALGORITHM_DPO) return std::make_unique<DpoStage>();
  return std::make_unique<RolloutStage>(settings);
}

}  // namespace almost::orchestrator
