#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/storage/s3_store.h"

namespace almost {

// Where artifacts are, as every service's operator says it. Secrets come from the environment alone, for
// flags show in process lists.
struct StoreOptions {
  std::string root;   // a folder, or s3://bucket[/prefix]
  std::string cache;  // for s3://: folder of fetched copies
  double cache_gigabytes = 100;
  S3Options s3;
};

inline bool IsS3(const StoreOptions& options) { return absl::StartsWith(options.root, "s3://"); }

// `app` reads them into `options`: flags, and for S3 the AWS_* variables that other tools read, too.
inline void AddStoreFlags(CLI::App& app, StoreOptions& options) {
  app.add_option("--store", options.root, "Where artifacts are: a folder, or s3://bucket/prefix")
      ->capture_default_str();
  app.add_option("--store_cache", options.cache, "With s3://: folder for copies of what was fetched");
  app.add_option("--store_cache_gigabytes", options.cache_gigabytes,
                 "With s3://: copies that nobody uses are removed beyond this")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--s3_endpoint", options.s3.endpoint, "Of a server other than AWS's, http(s)://host:port")
      ->envname("AWS_ENDPOINT_URL");
  app.add_option("--s3_region", options.s3.region, "Region that requests are signed for")
      ->envname("AWS_REGION")
      ->capture_default_str();
  app.add_option("--s3_ca_file", options.s3.ca_file,
                 "PEM file of the authorities that may vouch for the endpoint")
      ->envname("AWS_CA_BUNDLE");
  const auto variable = [](const char* name) {
    const char* const value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  options.s3.access_key_id = variable("AWS_ACCESS_KEY_ID");
  options.s3.secret_access_key = variable("AWS_SECRET_ACCESS_KEY");
  options.s3.session_token = variable("AWS_SESSION_TOKEN");
}

// kInvalidArgument names the flag; otherwise as the stores' Open.
inline absl::StatusOr<std::shared_ptr<ArtifactStore>> OpenStore(const StoreOptions& options) {
  if (!IsS3(options)) return ArtifactStore::Open(options.root);
  if (options.cache.empty()) {
    return absl::InvalidArgumentError(
        "store_cache: a store in S3 needs a folder for copies of what is fetched");
  }
  S3StoreOptions s3 = {options.s3, "", options.cache, static_cast<int64_t>(options.cache_gigabytes * 1e9)};
  const absl::string_view place = absl::StripPrefix(options.root, "s3://");
  const size_t slash = std::min(place.find('/'), place.size());
  s3.s3.bucket = std::string(place.substr(0, slash));
  s3.prefix = std::string(absl::StripPrefix(place.substr(slash), "/"));
  if (!s3.prefix.empty() && s3.prefix.back() != '/') s3.prefix += '/';
  return S3Store::Open(s3);
}

}  // namespace almost
