#pragma once

#include <filesystem>

#include "absl/status/statusor.h"
#include "almost/trainer/v1/trainer.pb.h"
#include "common/storage/artifact_store.h"
#include "services/trainer/core/job_spec.h"

namespace almost::trainer {

// The proto with sources resolved to files and defaults filled in, checked by ValidateJobSpec and
// CheckDataset. kInvalidArgument (what is named is not there, too) and kFailedPrecondition name the field.
absl::StatusOr<JobSpec> ReadJobSpec(const v1::JobSpec& proto, ArtifactStore* store,
                                    const std::filesystem::path& model_root);

}  // namespace almost::trainer
