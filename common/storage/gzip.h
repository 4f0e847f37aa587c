#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

// gzip (RFC 1952), as Python's gzip and `datasets.load_dataset("json")` read it.
namespace almost {

// Equal data give equal bytes for one version of zlib: the header holds no time and no name.
std::string Gzip(absl::string_view data);

// The same in pieces as they come, which may be as small or large as they like. Not thread-safe.
class GzipEncoder {
 public:
  GzipEncoder();
  ~GzipEncoder();
  GzipEncoder(const GzipEncoder&) = delete;
  GzipEncoder& operator=(const GzipEncoder&) = delete;

  // Adds to `compressed` what is ready so far.
  void Add(absl::string_view data, std::string* compressed);
  // The rest. Nothing may be added afterwards.
  void Finish(std::string* compressed);

 private:
  struct Stream;
  void Deflate(absl::string_view data, bool last, std::string* compressed);
  const std::unique_ptr<Stream> stream_;
};

// kDataLoss: not gzip, damaged, or cut off; kResourceExhausted: more than `max_bytes`.
absl::StatusOr<std::string> Gunzip(absl::string_view compressed, int64_t max_bytes = int64_t{1} << 36);

}  // namespace almost
