#pragma once

#include "absl/status/status.h"
#include "almost/orchestrator/v1/recipe.pb.h"
#include "services/orchestrator/core/services.h"

// Whether a recipe can work, asked before anything starts. Errors begin with the field's path, for instance
// "responses.configurations[2].model: …".
namespace almost::orchestrator {

// `recipe` with the defaults that recipe.proto states, and without stages whose inputs it does not make.
v1::Recipe WithDefaults(v1::Recipe recipe);

// What can be checked by reading: ids are unique, references exist, numbers are in range, demonstration files
// hold as many demonstrations as shots ask for. kInvalidArgument or kFailedPrecondition. Stages without their
// inputs are not an error: they are left out.
absl::Status CheckRecipe(const v1::Recipe& recipe);

// Bytes of weights that a replica can hold beside its caches; 0: not known, and not checked.
struct HostMemory {
  int64_t generation = 0;
  int64_t reward = 0;
};

// Loads every model in turn, and asks whether what it will read fits: demonstrations, prompt and new tokens,
// and what is trained on, against its context; and whether the models that a stage has in memory at once fit
// each host. `holds` says whether a loaded model is to stay, else it is unloaded again. Errors: the services'
// own; kFailedPrecondition: too long for the context, or too large for the host.
absl::Status CheckModels(const v1::Recipe& recipe, Services& services,
                         const std::function<bool(const std::string& model_name)>& holds,
                         const HostMemory& memory = {});

}  // namespace almost::orchestrator
