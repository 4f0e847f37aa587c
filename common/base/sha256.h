#pragma once

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace almost {

// SHA-256 as 64 lowercase hexadecimal digits: the digest by which the suite names contents.
std::string Sha256(absl::string_view bytes);

// Of a file's contents. kNotFound names the path.
absl::StatusOr<std::string> Sha256File(const std::filesystem::path& path);

}  // namespace almost
