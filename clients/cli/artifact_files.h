#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "almost/orchestrator/v1/orchestrator.pb.h"
#include "clients/cli/endpoints.h"

namespace almost::cli {

// All artifacts of `run` (`runs/x`) in the order in which they were made.
absl::StatusOr<std::vector<almost::orchestrator::v1::Artifact>> ListArtifacts(const Endpoint& orchestrator,
                                                                              const std::string& run);

// Copies one file of an artifact to `to`, which appears whole or not at all; goes on where it was when the
// connection breaks. kDataLoss: what came is not what the artifact's manifest names.
absl::Status FetchFile(const Endpoint& orchestrator, const std::string& artifact, const std::string& path,
                       const std::filesystem::path& to);

// OK where `file` can be written whole or not at all: its folder is there and lets us, and it is no folder,
// and no device or pipe, which the finished file would replace. Asked before what takes long to make.
absl::Status CheckOutput(const std::filesystem::path& file);

}  // namespace almost::cli
