#include "services/orchestrator/core/datasets.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/storage/gzip.h"
#include "google/protobuf/util/json_util.h"

namespace almost::orchestrator {

using nlohmann::ordered_json;

const ArtifactFile* DatasetFile(const Artifact& artifact) {
  const ArtifactFile* plain = artifact.Find(absl::StrCat(artifact.kind, ".jsonl"));
  return plain != nullptr ? plain : artifact.Find(absl::StrCat(artifact.kind, ".jsonl.gz"));
}

absl::StatusOr<std::string> DatasetText(ArtifactStore& store, const Artifact& artifact) {
  const ArtifactFile* file = DatasetFile(artifact);
  if (file == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("artifacts/", artifact.digest, " is no dataset"));
  }
  ALMOST_ASSIGN_OR_RETURN(std::string text, store.ReadFile(artifact.digest, file->path));
  return absl::EndsWith(file->path, ".gz") ? Gunzip(text) : absl::StatusOr<std::string>(std::move(text));
}

absl::Status ForEachInDataset(const StageContext& context, absl::string_view stage, absl::string_view name,
                              const std::function<absl::Status(const ordered_json&)>& use) {
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, context.Input(stage, name));
  const ArtifactFile* const file = DatasetFile(artifact);
  if (file == nullptr) return absl::InvalidArgumentError(absl::StrCat(stage, "/", name, " is no dataset"));
  ALMOST_ASSIGN_OR_RETURN(const LocalFolder folder, context.store().Path(artifact.digest));
  return ForEachJsonLineOf(folder.path / file->path,
                           [&](int64_t, const ordered_json& line) { return use(line); });
}

absl::StatusOr<std::vector<ordered_json>> ReadDataset(const StageContext& context, absl::string_view stage,
                                                      absl::string_view name) {
  std::vector<ordered_json> lines;
  ALMOST_RETURN_IF_ERROR(ForEachInDataset(context, stage, name, [&](const ordered_json& line) {
    lines.push_back(line);
    return absl::OkStatus();
  }));
  return lines;
}

absl::StatusOr<std::vector<std::string>> ReadPrompts(const StageContext& context) {
  std::vector<std::string> prompts;
  ALMOST_RETURN_IF_ERROR(ForEachInDataset(context, "prompts", "prompts", [&](const ordered_json& line) {
    prompts.push_back(line.at("prompt"));
    return absl::OkStatus();
  }));
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

absl::StatusOr<DatasetWriter> DatasetWriter::Create(ArtifactStore& store, const std::string& name,
                                                    Packing packing) {
  DatasetWriter writer;
  writer.artifact_.name = name;
  writer.artifact_.draft.kind = name;
  ALMOST_ASSIGN_OR_RETURN(writer.artifact_.folder, store.Scratch());
  writer.artifact_.draft.folder = writer.artifact_.folder.path;
  const std::string file = absl::StrCat(name, packing == Packing::kGzip ? ".jsonl.gz" : ".jsonl");
  ALMOST_ASSIGN_OR_RETURN(writer.lines_,
                          JsonLinesWriter::Create(store.env(), writer.artifact_.folder.path / file));
  return writer;
}

absl::Status DatasetWriter::Append(const ordered_json& line) {
  empty_ = false;
  return lines_->Append(line);
}

absl::Status DatasetWriter::AppendLines(absl::string_view lines) {
  empty_ = empty_ && lines.empty();
  return lines_->AppendLines(lines);
}

absl::StatusOr<StageArtifact> DatasetWriter::Finish() {
  ALMOST_RETURN_IF_ERROR(lines_->Close());
  return std::move(artifact_);
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
