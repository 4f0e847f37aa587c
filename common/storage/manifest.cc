#include "common/storage/manifest.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"

namespace almost {

using nlohmann::json;

namespace {

constexpr int kSchemaVersion = 1;

json ManifestOf(const Artifact& artifact) {
  json files = json::array();
  for (const ArtifactFile& file : artifact.files) {
    files.push_back({{"path", file.path}, {"sha256", file.sha256}, {"size_bytes", file.size_bytes}});
  }
  return {{"schema_version", kSchemaVersion},   {"kind", artifact.kind},
          {"files", std::move(files)},          {"inputs", artifact.inputs},
          {"recipe", artifact.recipe},          {"stage_version", artifact.stage_version},
          {"numerics_id", artifact.numerics_id}};
}

}  // namespace

const ArtifactFile* Artifact::Find(absl::string_view path) const {
  for (const ArtifactFile& file : files) {
    if (file.path == path) return &file;
  }
  return nullptr;
}

absl::Status CheckDigest(absl::string_view digest) {
  const bool valid = digest.size() == 64 && std::all_of(digest.begin(), digest.end(), [](char c) {
                       return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
                     });
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("digest: must be 64 lowercase hexadecimal digits, got \"",
                                                 absl::CHexEscape(digest.substr(0, 80)), "\""));
}

absl::Status CheckPlainPath(absl::string_view path) {
  bool plain = !path.empty() && path.size() <= 1024 && path.find('\0') == absl::string_view::npos;
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    plain = plain && !part.empty() && part != "." && part != "..";
  }
  if (plain) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("path: must be relative and without '.' and '..', got \"",
                                                 absl::CHexEscape(path.substr(0, 160)), "\""));
}

absl::Status SealManifest(Artifact& artifact) {
  try {
    artifact.manifest_json = ManifestOf(artifact).dump();
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("the manifest cannot be written: ", error.what()));
  }
  artifact.digest = Sha256(artifact.manifest_json);
  return absl::OkStatus();
}

absl::StatusOr<Artifact> ParseManifest(absl::string_view digest, std::string text) {
  if (Sha256(text) != digest) {
    return absl::DataLossError(absl::StrCat("the manifest objects/", digest, " is damaged"));
  }
  Artifact artifact;
  artifact.digest = std::string(digest);
  try {
    const json manifest = json::parse(text);
    if (const int version = manifest.at("schema_version"); version != kSchemaVersion) {
      return absl::FailedPreconditionError(absl::StrCat("artifacts/", digest, " has manifest schema ",
                                                        version, "; this version reads ", kSchemaVersion));
    }
    manifest.at("kind").get_to(artifact.kind);
    for (const json& file : manifest.at("files")) {
      artifact.files.push_back({file.at("path"), file.at("sha256"), file.at("size_bytes")});
      ALMOST_RETURN_IF_ERROR(CheckPlainPath(artifact.files.back().path));
      ALMOST_RETURN_IF_ERROR(CheckDigest(artifact.files.back().sha256));
    }
    manifest.at("inputs").get_to(artifact.inputs);
    artifact.recipe = manifest.at("recipe");
    manifest.at("stage_version").get_to(artifact.stage_version);
    manifest.at("numerics_id").get_to(artifact.numerics_id);
  } catch (const json::exception& error) {
    return absl::DataLossError(absl::StrCat("the manifest of artifacts/", digest, ": ", error.what()));
  }
  artifact.manifest_json = std::move(text);
  return artifact;
}

}  // namespace almost
