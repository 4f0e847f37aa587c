#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/storage/json_lines_file.h"
#include "google/protobuf/message.h"
#include "nlohmann/json.hpp"
#include "services/orchestrator/core/stage.h"

// What stages read from one another and write for people.
namespace almost::orchestrator {

// A dataset's JSON Lines file, <kind>.jsonl or <kind>.jsonl.gz; null: the artifact is no dataset.
const ArtifactFile* DatasetFile(const Artifact& artifact);
// What it holds, unpacked where it is compressed. kInvalidArgument: no dataset; kDataLoss: damaged.
absl::StatusOr<std::string> DatasetText(ArtifactStore& store, const Artifact& artifact);

// Calls `use` for every line of the dataset that a stage published under `name`; stops at its first error.
// kDataLoss names the file and the line.
absl::Status ForEachInDataset(const StageContext& context, absl::string_view stage, absl::string_view name,
                              const std::function<absl::Status(const nlohmann::ordered_json&)>& use);
// All of them.
absl::StatusOr<std::vector<nlohmann::ordered_json>> ReadDataset(const StageContext& context,
                                                                absl::string_view stage,
                                                                absl::string_view name);

// The texts of the prompts; a prompt's id is its index.
absl::StatusOr<std::vector<std::string>> ReadPrompts(const StageContext& context);

// A message as the recipe's YAML would have it, keys sorted.
nlohmann::json ToJson(const google::protobuf::Message& message);

// An artifact of one JSON Lines file, <name>.jsonl, or with gzip <name>.jsonl.gz, written line by line to
// where the store takes it from. Not thread-safe.
class DatasetWriter {
 public:
  enum class Packing { kPlain, kGzip };
  static absl::StatusOr<DatasetWriter> Create(ArtifactStore& store, const std::string& name,
                                              Packing packing = Packing::kPlain);

  // As AppendJsonLine; or the disk is full.
  absl::Status Append(const nlohmann::ordered_json& line);
  // Lines that AppendJsonLine has made.
  absl::Status AppendLines(absl::string_view lines);
  bool empty() const { return empty_; }
  // The last call.
  absl::StatusOr<StageArtifact> Finish();

 private:
  DatasetWriter() = default;
  StageArtifact artifact_;
  std::unique_ptr<JsonLinesWriter> lines_;
  bool empty_ = true;
};

// The digest by which inputs name the demonstrations of that id.
std::string DemonstrationsDigest(const v1::Recipe& recipe, absl::string_view id);

}  // namespace almost::orchestrator
