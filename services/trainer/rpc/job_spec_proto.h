#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "almost/trainer/v1/trainer.pb.h"
#include "common/storage/artifact_store.h"
#include "nlohmann/json.hpp"
#include "services/trainer/core/job_spec.h"

namespace almost::trainer {

// The proto with sources resolved to files and defaults filled in, checked by ValidateJobSpec and
// CheckDataset. kInvalidArgument (what is named is not there, too) and kFailedPrecondition name the field.
absl::StatusOr<JobSpec> ReadJobSpec(const v1::JobSpec& proto, ArtifactStore* store,
                                    const std::filesystem::path& model_root);

// What the manifest of the job's model says of it. The part of the spec that the weights depend on, as JSON:
// no addresses, names or paths. What those stand for is pinned by the inputs.
absl::StatusOr<nlohmann::json> ManifestRecipe(v1::JobSpec spec);
// What the job began from, by digest where it is an artifact.
std::map<std::string, std::string> ManifestInputs(const v1::JobSpec& spec);

}  // namespace almost::trainer
