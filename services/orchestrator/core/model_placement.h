#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "services/orchestrator/core/services.h"
#include "services/orchestrator/core/stage.h"

namespace almost::orchestrator {

// A place in a host's memory: the host and the model's name there.
using Placement = std::pair<ModelHost, std::string>;

// How to load what a stage needs. The name contains a hash of where the model comes from, so that runs share
// what is the same and nothing else. `artifacts`: "stage/name" -> digest. kFailedPrecondition: the stage
// that makes the model has not published.
absl::StatusOr<types::v1::LoadModelRequest> LoadRequest(const ModelNeed& need, const v1::Recipe& recipe,
                                                        const std::map<std::string, std::string>& artifacts);

// What `need` will bring into memory, of whose base model this is the description: a model that is trained
// from it has as many weights, of the width of its training.
types::v1::Model Foreseen(const ModelNeed& need, const v1::Recipe& recipe, types::v1::Model base);

// Id of the vanilla model that a need is, or whose trained form it is.
const std::string& BaseModel(const ModelNeed& need, const v1::Recipe& recipe);

// Which runs want which models in memory, so that one run does not unload another's. Thread-safe.
class ModelPlacement {
 public:
  // `services` outlives this.
  explicit ModelPlacement(Services* services) : services_(services) {}

  // Before `run` loads it.
  void Hold(const std::string& run, const Placement& placement);
  // Whether any run wants it.
  bool IsHeld(const Placement& placement) const;
  // `run` no longer needs any but `keep`; unloads what now no run holds. That a host does not answer is no
  // matter: it is the host's memory.
  void ReleaseAllBut(const std::string& run, const std::set<Placement>& keep);

 private:
  Services* const services_;
  mutable absl::Mutex mutex_;
  std::map<Placement, std::set<std::string>> holders_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace almost::orchestrator
