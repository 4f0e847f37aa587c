#include "services/orchestrator/core/model_placement.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"

namespace almost::orchestrator {
namespace {

constexpr absl::Duration kUnloadTimeout = absl::Seconds(10);

const v1::VanillaModel* FindModel(const v1::Recipe& recipe, absl::string_view id) {
  for (const v1::VanillaModel& model : recipe.models()) {
    if (model.id() == id) return &model;
  }
  return nullptr;
}

}  // namespace

const std::string& BaseModel(const ModelNeed& need, const v1::Recipe& recipe) {
  if (need.stage.empty()) return need.recipe_model;
  return need.stage == "reward_model" ? recipe.reward_model().base_model() : recipe.sft().base_model();
}

absl::StatusOr<types::v1::LoadModelRequest> LoadRequest(const ModelNeed& need, const v1::Recipe& recipe,
                                                        const std::map<std::string, std::string>& artifacts) {
  if (!need.source.empty()) {
    types::v1::LoadModelRequest request;
    request.set_name(
        absl::StrCat("models/", need.role.substr(0, 64), "-", Sha256(need.source).substr(0, 12)));
    request.set_source(need.source);
    return request;
  }
  // A trained model runs where the one does from which it was trained.
  const std::string& base = BaseModel(need, recipe);
  const v1::VanillaModel* const model = FindModel(recipe, base);
  if (model == nullptr) return absl::InvalidArgumentError(absl::StrCat("models: no \"", base, "\""));
  std::string source = model->source();
  if (!need.stage.empty()) {
    const auto artifact = artifacts.find(absl::StrCat(need.stage, "/model"));
    if (artifact == artifacts.end()) {
      return absl::FailedPreconditionError(absl::StrCat("stage ", need.stage, " has published no model"));
    }
    source = absl::StrCat("artifacts/", artifact->second);
  }
  types::v1::LoadModelRequest request;
  const std::string place =
      Sha256(absl::StrCat(source, "\n", model->device(), "\n", static_cast<int>(model->dtype())));
  request.set_name(absl::StrCat("models/", (need.stage.empty() ? base : need.stage).substr(0, 64), "-",
                                place.substr(0, 12)));
  request.set_source(source);
  request.set_device(model->device());
  // A trained model has the dtype that it was trained in, whatever the recipe says of its base.
  if (need.stage.empty()) request.set_dtype(model->dtype());
  return request;
}

types::v1::Model Foreseen(const ModelNeed& need, const v1::Recipe& recipe, types::v1::Model base) {
  if (need.stage.empty()) return base;
  const trainer::v1::MemorySpec& memory = need.stage == "reward_model" ? recipe.reward_model().memory()
                                          : need.stage == "sft"        ? recipe.sft().memory()
                                                                       : recipe.rl().memory();
  const bool is_half = memory.precision() == trainer::v1::MemorySpec::PRECISION_BFLOAT16;
  base.set_weight_bytes(base.num_parameters() * (is_half ? 2 : 4));
  base.set_dtype(is_half && base.device() != "cpu" ? types::v1::DTYPE_BFLOAT16 : types::v1::DTYPE_FLOAT32);
  return base;
}

void ModelPlacement::Hold(const std::string& run, const Placement& placement) {
  const absl::MutexLock lock(&mutex_);
  holders_[placement].insert(run);
}

bool ModelPlacement::IsHeld(const Placement& placement) const {
  const absl::MutexLock lock(&mutex_);
  return holders_.contains(placement);
}

void ModelPlacement::ReleaseAllBut(const std::string& run, const std::set<Placement>& keep) {
  std::vector<Placement> unwanted;
  {
    const absl::MutexLock lock(&mutex_);
    for (auto it = holders_.begin(); it != holders_.end();) {
      const bool released = !keep.contains(it->first) && it->second.erase(run) > 0;
      if (released && it->second.empty()) {
        unwanted.push_back(it->first);
        it = holders_.erase(it);
      } else {
        ++it;
      }
    }
  }
  // Should another run load one of these at this moment, it will miss it and load it again.
  for (const auto& [host, name] : unwanted) {
    types::v1::UnloadModelRequest request;
    request.set_name(name);
    services_->UnloadModel({kUnloadTimeout, std::stop_token()}, host, request).IgnoreError();
  }
}

}  // namespace almost::orchestrator
