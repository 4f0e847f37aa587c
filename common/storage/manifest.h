#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/storage/artifact_store.h"

// What both kinds of store know of manifests and names; the format is in artifact_store.h.
namespace almost {

inline constexpr char kManifestFile[] = "manifest.json";
inline constexpr char kProvenanceFile[] = "provenance.json";

// kInvalidArgument unless 64 lowercase hexadecimal digits.
absl::Status CheckDigest(absl::string_view digest);
// kInvalidArgument unless relative, without empty parts, "." and "..".
absl::Status CheckPlainPath(absl::string_view path);

// Sets the artifact's manifest_json and digest from all else. kInvalidArgument: text that is not UTF-8.
absl::Status SealManifest(Artifact& artifact);
// The artifact whose manifest's bytes `text` is. kDataLoss: it does not parse, or has another digest;
// kFailedPrecondition: a newer version wrote it.
absl::StatusOr<Artifact> ParseManifest(absl::string_view digest, std::string text);

}  // namespace almost
