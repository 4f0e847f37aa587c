#include "services/orchestrator/core/stage_outcome.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "google/protobuf/util/json_util.h"
#include "services/orchestrator/core/datasets.h"
#include "services/orchestrator/core/model_placement.h"

namespace almost::orchestrator {

using nlohmann::json;

OutcomeRecord StageOutcome::ToRecord(std::string key, std::string pace) const {
  const json detail = {{"run", run},
                       {"artifacts", artifacts},
                       {"run_files", run_files},
                       {"size", size},
                       {"shown", ToJson(shown)}};
  return {std::move(key), shown.id(), std::move(pace), detail.dump()};
}

absl::StatusOr<StageOutcome> StageOutcome::FromRecord(const OutcomeRecord& record) {
  StageOutcome outcome;
  try {
    const json detail = json::parse(record.detail);
    detail.at("run").get_to(outcome.run);
    detail.at("artifacts").get_to(outcome.artifacts);
    detail.at("run_files").get_to(outcome.run_files);
    detail.at("size").get_to(outcome.size);
    google::protobuf::util::JsonParseOptions options;
    options.ignore_unknown_fields = true;
    if (google::protobuf::util::JsonStringToMessage(detail.at("shown").dump(), &outcome.shown, options)
            .ok()) {
      return outcome;
    }
  } catch (const json::exception&) {
  }
  return absl::DataLossError(absl::StrCat("the journal's outcome of a stage ", record.stage, " is damaged"));
}

absl::StatusOr<std::optional<StageOutcome>> FindOutcome(Journal& journal, ArtifactStore& store,
                                                        const std::string& key) {
  const absl::StatusOr<OutcomeRecord> record = journal.GetOutcome(key);
  if (absl::IsNotFound(record.status())) return std::nullopt;
  ALMOST_RETURN_IF_ERROR(record.status());
  ALMOST_ASSIGN_OR_RETURN(StageOutcome outcome, StageOutcome::FromRecord(*record));
  for (const auto& [name, digest] : outcome.artifacts) {
    const absl::Status there = store.Get(digest).status();
    if (absl::IsNotFound(there)) return std::nullopt;  // collected, since no run referred to it any more
    ALMOST_RETURN_IF_ERROR(there);
  }
  return outcome;
}

std::string StageKey(const Stage& stage, const StageIdentity& identity, const v1::Recipe& recipe,
                     const std::map<std::string, std::pair<std::string, std::string>>& models) {
  const json whole = {{"stage", std::string(stage.id())},
                      {"version", stage.version()},
                      {"recipe", identity.recipe},
                      {"inputs", identity.inputs},
                      {"numerics_id", identity.numerics_id},
                      {"prompt_format", recipe.prompt_format()},
                      {"dataset_license", recipe.dataset_license()},
                      {"models", models}};
  return Sha256(whole.dump());
}

double StageSize(absl::string_view stage, const v1::Recipe& recipe) {
  const double prompts = recipe.prompts().given_prompts().empty() ? recipe.prompts().num_prompts()
                                                                  : recipe.prompts().given_prompts_size();
  const auto of = [prompts](int32_t num_prompts) {
    return num_prompts > 0 ? std::min<double>(num_prompts, prompts) : prompts;
  };
  const double answers = of(recipe.responses().num_prompts()) * recipe.responses().configurations_size();
  const double dialogues = of(recipe.demonstration().num_prompts());
  if (stage == "prompts") return recipe.prompts().given_prompts().empty() ? prompts : 0;
  if (stage == "responses" || stage == "comparisons") return answers;
  if (stage == "reward_model") {
    const double most = recipe.comparisons().max_pairs();
    return (most > 0 ? std::min(most, answers) : answers) * recipe.reward_model().spec().epochs();
  }
  if (stage == "demonstrations") {
    return dialogues * recipe.demonstration().num_candidates() * recipe.demonstration().max_turns();
  }
  if (stage == "sft") return dialogues * recipe.sft().spec().epochs();
  if (stage == "rl") {
    const v1::RlStage& rl = recipe.rl();
    if (rl.algorithm() == v1::RlStage::ALGORITHM_DPO) return dialogues * rl.dpo().epochs();
    return static_cast<double>(rl.spec().num_iterations()) * rl.spec().rollouts();
  }
  if (stage == "evaluation") {
    const v1::EvaluationStage& evaluation = recipe.evaluation();
    const EvaluationSize size = SizeOfEvaluation(recipe);
    return size.questions * (std::max(evaluation.best_of(), 1) + recipe.has_sft() + recipe.has_rl()) +
           size.grid_questions * evaluation.grid_size();
  }
  return 0;
}

EvaluationSize SizeOfEvaluation(const v1::Recipe& recipe) {
  const v1::EvaluationStage& evaluation = recipe.evaluation();
  const double questions =
      evaluation.world_questions() > 0 ? evaluation.world_questions() : evaluation.prompts_size();
  const double grid =
      evaluation.grid_prompts() > 0 ? std::min<double>(evaluation.grid_prompts(), questions) : questions;
  return {questions, grid};
}

std::string StagePace(const Stage& stage, const v1::Recipe& recipe) {
  std::set<std::string> bases;
  for (const ModelNeed& need : stage.models()) bases.insert(BaseModel(need, recipe));
  if (stage.id() == "reward_model") bases.insert(recipe.reward_model().base_model());
  if (stage.id() == "sft" || stage.id() == "rl") bases.insert(recipe.sft().base_model());
  std::vector<std::string> parts;
  for (const v1::VanillaModel& model : recipe.models()) {
    if (!bases.contains(model.id())) continue;
    parts.push_back(absl::StrCat(model.source(), "@", model.device(), "/", static_cast<int>(model.dtype())));
  }
  const v1::RlStage::Algorithm algorithm = recipe.rl().algorithm();
  if (stage.id() == "rl" && algorithm > v1::RlStage::ALGORITHM_PPO) {
    parts.push_back(v1::RlStage::Algorithm_Name(algorithm));
  }
  return absl::StrJoin(parts, " ");
}

}  // namespace almost::orchestrator
