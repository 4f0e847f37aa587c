#pragma once

#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Where a job's `output` leads: to a model folder beneath the model root.
namespace almost::trainer {

// The folder that `output` names. kInvalidArgument names the field: it is absolute, has a "..", is the root
// itself or leads out of it, or what is there now is not to be replaced: anything but an empty folder or a
// model's, which has a config.json and no folder within.
absl::StatusOr<std::filesystem::path> OutputFolder(const std::filesystem::path& model_root,
                                                   const std::string& output);

// Copies the folder `model` there, whole or not at all, in place of the model that was there. Refuses as
// OutputFolder does, and changes nothing then. kResourceExhausted: the disk is full.
absl::Status PlaceModel(const std::filesystem::path& model, const std::filesystem::path& model_root,
                        const std::string& output);

}  // namespace almost::trainer
