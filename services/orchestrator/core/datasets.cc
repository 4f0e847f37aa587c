#include "services/orchestrator/core/datasets.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/storage/json_lines.h"
#include "google/protobuf/util/json_util.h"

namespace almost::orchestrator {

using nlohmann::ordered_json;

absl::StatusOr<std::vector<ordered_json>> ReadDataset(const StageContext& context, absl::string_view stage,
                                                      absl::string_view name) {
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, context.Input(stage, name));
  const std::string file = absl::StrCat(name, ".jsonl");
  ALMOST_ASSIGN_OR_RETURN(const std::string text, context.store().ReadFile(artifact.digest, file));
  std::vector<ordered_json> lines;
  ALMOST_RETURN_IF_ERROR(ForEachJsonLine(file, text, [&](int64_t, const ordered_json& line) {
    lines.push_back(line);
    return absl::OkStatus();
  }));
  return lines;
}

absl::StatusOr<std::vector<std::string>> ReadPrompts(const StageContext& context) {
  ALMOST_ASSIGN_OR_RETURN(const std::vector<ordered_json> lines, ReadDataset(context, "prompts", "prompts"));
  std::vector<std::string> prompts;
  for (const ordered_json& line : lines) prompts.push_back(line.at("prompt"));
  return prompts;
}

nlohmann::json ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  // Fails for Any and extensions of well-known types only; recipes hold neither.
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok()) return nullptr;
  return nlohmann::json::parse(text);
}

StageArtifact DatasetArtifact(const std::string& name, std::string lines) {
  StageArtifact artifact;
  artifact.name = name;
  artifact.draft.kind = name;
  artifact.draft.files[absl::StrCat(name, ".jsonl")] = std::move(lines);
  return artifact;
}

std::string DemonstrationsDigest(const v1::Recipe& recipe, absl::string_view id) {
  std::string digests;
  for (const v1::DemonstrationSet& set : recipe.demonstrations()) {
    if (absl::string_view(set.id()) != id) continue;
    for (const std::string& text : set.texts()) absl::StrAppend(&digests, Sha256(text), "\n");
  }
  return Sha256(digests);
}

}  // namespace almost::orchestrator
