#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/storage/env.h"
#include "common/storage/gzip.h"
#include "nlohmann/json.hpp"

// Files of JSON Lines, plain or, where the name ends in ".gz", compressed. Datasets may be larger than
// memory: some MiB of them are in it.
namespace almost {

// Writes a file line by line. Not thread-safe.
class JsonLinesWriter {
 public:
  // Creates or replaces `file`. `env` outlives the writer.
  static absl::StatusOr<std::unique_ptr<JsonLinesWriter>> Create(Env* env, std::filesystem::path file);

  // As AppendJsonLine, and the errors of `env`.
  absl::Status Append(const nlohmann::ordered_json& value);
  // Lines that AppendJsonLine has made.
  absl::Status AppendLines(absl::string_view lines);
  // Until then some lines are not in the file. Nothing may be appended afterwards.
  absl::Status Close();

 private:
  JsonLinesWriter(Env* env, std::filesystem::path file) : env_(env), file_(std::move(file)) {}
  absl::Status Flush(bool last);

  Env* const env_;
  const std::filesystem::path file_;
  std::string lines_;  // not in the file yet
  std::unique_ptr<GzipEncoder> gzip_;
};

// As ForEachJsonLine, of a file. kNotFound: it is not there; kDataLoss also: its compression is damaged.
absl::Status ForEachJsonLineOf(
    const std::filesystem::path& file,
    const std::function<absl::Status(int64_t, const nlohmann::ordered_json&)>& use);

}  // namespace almost
