#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

// gzip (RFC 1952), as Python's gzip and `datasets.load_dataset("json")` read it.
namespace almost {

// Equal data give equal bytes for one version of zlib: the header holds no time and no name.
std::string Gzip(absl::string_view data);

// kDataLoss: not gzip, damaged, or cut off; kResourceExhausted: more than `max_bytes`.
absl::StatusOr<std::string> Gunzip(absl::string_view compressed, int64_t max_bytes = int64_t{1} << 36);

}  // namespace almost
