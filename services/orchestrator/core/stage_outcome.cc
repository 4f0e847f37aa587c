#include "services/orchestrator/core/stage_outcome.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/sha256.h"
#include "google/protobuf/util/json_util.h"
#include "services/orchestrator/core/datasets.h"
#include "services/orchestrator/core/model_placement.h"

namespace almost::orchestrator {

using nlohmann::json;

OutcomeRecord StageOutcome::ToRecord(std::string key, std::string pace) const {
  const json detail = {
      {"run", run}, {"artifacts", artifacts}, {"run_files", run_files}, {"shown", ToJson(shown)}};
  return {std::move(key), shown.id(), std::move(pace), detail.dump()};
}

absl::StatusOr<StageOutcome> StageOutcome::FromRecord(const OutcomeRecord& record) {
  StageOutcome outcome;
  try {
    const json detail = json::parse(record.detail);
    detail.at("run").get_to(outcome.run);
    detail.at("artifacts").get_to(outcome.artifacts);
    detail.at("run_files").get_to(outcome.run_files);
    google::protobuf::util::JsonParseOptions options;
    options.ignore_unknown_fields = true;
    if (google::protobuf::util::JsonStringToMessage(detail.at("shown").dump(), &outcome.shown, options).ok()) {
      return outcome;
    }
  } catch (const json::exception&) {
  }
  return absl::DataLossError(absl::StrCat("the journal's outcome of a stage ", record.stage, " is damaged"));
}

std::string StageKey(const Stage& stage, const StageIdentity& identity, const v1::Recipe& recipe,
                     const std::map<std::string, std::pair<std::string, std::string>>& models) {
  const json whole = {{"stage", std::string(stage.id())},
                      {"version", stage.version()},
                      {"recipe", identity.recipe},
                      {"inputs", identity.inputs},
                      {"numerics_id", identity.numerics_id},
                      {"prompt_format", recipe.prompt_format()},
                      {"models", models}};
  return Sha256(whole.dump());
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
  return absl::StrJoin(parts, " ");
}

}  // namespace almost::orchestrator
