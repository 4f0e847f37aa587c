#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace almost {

struct S3Options {
  // Behaviour.
  std::string bucket;
  std::string
      endpoint;  // http(s)://host[:port], addressed as endpoint/bucket/key; empty: AWS's of the region
  std::string region = "us-east-1";
  std::string access_key_id;
  std::string secret_access_key;
  std::string session_token;  // of temporary credentials; empty: none
  std::string ca_file;        // PEM; empty: the system's
  // Performance.
  int64_t part_bytes = 16 << 20;  // larger files travel in parts of this size; at least 5 MiB
  int transfers = 4;              // parts of a file in memory and on their way at once
  // Limits.
  int max_tries = 8;  // of each request
  absl::Duration first_backoff = absl::Milliseconds(200);
  absl::Duration max_backoff = absl::Seconds(10);
  absl::Duration connect_timeout = absl::Seconds(10);
  absl::Duration stall_timeout = absl::Minutes(1);  // without a byte
};

struct S3Object {
  std::string key;
  int64_t size_bytes = 0;
  absl::Time modified;
};

// A bucket of S3 or a server that speaks like it; requests are signed by libcurl (AWS Signature Version 4).
// Thread-safe. A request that meets a network error, a timeout, 429 or 5xx is sent again, with backoff and
// jitter; after max_tries that is kUnavailable. Other errors: kNotFound; kPermissionDenied;
// kFailedPrecondition for a bucket that is not there; kUnknown for the rest, with S3's own code and message.
class S3Client {
 public:
  // kInvalidArgument: no bucket, no credentials, or an endpoint without http:// or https://.
  static absl::StatusOr<std::unique_ptr<S3Client>> Create(const S3Options& options);
  ~S3Client();

  absl::Status Put(absl::string_view key, absl::string_view bytes);
  // In parts if it is large. Nothing is there until all is.
  absl::Status PutFile(absl::string_view key, const std::filesystem::path& file);
  absl::StatusOr<std::string> Get(absl::string_view key);
  // An object of that size to a new file, in parts if it is large; the file is undefined after an error.
  // kDataLoss: it has another size.
  absl::Status GetFile(absl::string_view key, int64_t size_bytes, const std::filesystem::path& file);
  // kNotFound: there is none.
  absl::StatusOr<S3Object> Head(absl::string_view key);
  // All whose keys begin so, sorted.
  absl::StatusOr<std::vector<S3Object>> List(absl::string_view prefix);
  // Harmless when missing.
  absl::Status Remove(absl::string_view key);

 private:
  struct Request;
  struct Response;

  explicit S3Client(const S3Options& options) : options_(options) {}
  // Tries until it has an answer that trying again would not change.
  absl::StatusOr<Response> Send(const Request& request);
  // One try; kUnavailable: worth another.
  absl::StatusOr<Response> SendOnce(const Request& request, void* curl);
  // Runs `part(i)` for all i in [0, num_parts), some at once; the first error ends it.
  absl::Status ForEachPart(int64_t num_parts, const std::function<absl::Status(int64_t)>& part) const;

  const S3Options options_;
  absl::Mutex mutex_;
  std::vector<void*> idle_ ABSL_GUARDED_BY(mutex_);  // curl handles, with their connections
};

}  // namespace almost
