#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/safetensors.h"
#include "nlohmann/json.hpp"

// Checkpoints of one job, the last two of them, beneath its folder:
//   step-000000000120/tensors.safetensors   parameters, optimizer moments
//   step-000000000120/state.json            {"sha256": of the rest, "checkpoint": {"schema": 1, "step",
//                                           "tensors_sha256", "numerics_id", "values"}}
// Each appears by rename, whole or not at all, and is verified when it is read.
namespace almost::trainer {

struct Checkpoint {
  int64_t step = 0;  // steps done
  std::string numerics_id;
  nlohmann::json values;
  std::unique_ptr<const SafetensorsFile> tensors;
};

// Not thread-safe; one at a time on a folder.
class CheckpointStore {
 public:
  explicit CheckpointStore(std::filesystem::path folder) : folder_(std::move(folder)) {}

  // Durable when it returns OK, and then all but the last two are removed. After an error the earlier ones
  // are there. kResourceExhausted: the disk is full.
  absl::Status Write(int64_t step, const std::string& numerics_id, const nlohmann::json& values,
                     const std::vector<TensorToWrite>& tensors);

  // The newest that is whole; none when there is none. What was passed over is named in `damaged`.
  absl::StatusOr<std::optional<Checkpoint>> Latest(std::vector<std::string>* damaged) const;

 private:
  std::filesystem::path folder_;
};

}  // namespace almost::trainer
