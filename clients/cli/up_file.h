#pragma once

#include <sys/types.h>

#include <filesystem>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace almost::cli {

// `<store>/up.json`: where the services of a running `almost up` are.
//
//   {"pid": 4711, "services": {"generation": {"address": "127.0.0.1:50051", "metrics": "127.0.0.1:9451",
//                                             "pid": 4712}, …}}
struct UpFile {
  struct Service {
    std::string address;
    std::string metrics;
    pid_t pid = 0;  // 0 while it is being restarted
  };
  pid_t pid = 0;  // of `almost up`
  std::map<std::string, Service> services;
};

// Empty when there is no such file, or when the `almost up` that wrote it is gone.
// kDataLoss: the file does not parse; names it.
absl::StatusOr<UpFile> ReadUpFile(const std::filesystem::path& store);

// Replaces the file in one step.
absl::Status WriteUpFile(const std::filesystem::path& store, const UpFile& up);

void RemoveUpFile(const std::filesystem::path& store);

}  // namespace almost::cli
