#pragma once

#include <filesystem>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json_fwd.hpp"

namespace almost {

// Parses JSON from a file that may be hostile: nesting is bounded, since what prints or copies a value
// recurses. kDataLoss names `name`.
absl::StatusOr<nlohmann::json> ParseBoundedJson(absl::string_view text, absl::string_view name);

// kNotFound names the path.
absl::StatusOr<nlohmann::json> ReadBoundedJson(const std::filesystem::path& path);

}  // namespace almost
