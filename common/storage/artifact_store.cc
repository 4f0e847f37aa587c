#include "common/storage/artifact_store.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"

namespace almost {

namespace fs = std::filesystem;

absl::StatusOr<std::vector<Garbage>> ArtifactStore::Sweep(const std::set<std::string>& keep,
                                                          absl::Duration min_age, bool dry_run,
                                                          const std::set<std::string>& weak) {
  const absl::Time youngest = absl::Now() - min_age;
  // Before the artifacts: an object that is not listed here yet is no garbage.
  ALMOST_ASSIGN_OR_RETURN(const std::vector<Stored> objects, ListObjects());
  std::map<std::string, const Stored*> by_name;
  for (const Stored& object : objects) by_name[object.name] = &object;
  const auto is_young = [&](const std::string& object) {
    const auto found = by_name.find(object);
    return found == by_name.end() || found->second->time > youngest;
  };

  ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> digests, List());
  std::map<std::string, Artifact> artifacts;
  std::vector<std::string> marked;
  for (const std::string& digest : digests) {
    absl::StatusOr<Artifact> artifact = Get(digest);
    if (absl::IsNotFound(artifact.status())) {  // a sweep ended in the middle of it
      if (!dry_run) ALMOST_RETURN_IF_ERROR(RemoveArtifact(digest));
      continue;
    }
    ALMOST_RETURN_IF_ERROR(artifact.status());
    artifacts.emplace(digest, *std::move(artifact));
    if (keep.contains(digest) || is_young(digest) || IsHeld(digest)) marked.push_back(digest);
  }
  std::set<std::string> kept(marked.begin(), marked.end());
  std::set<std::string> needed;  // objects
  while (!marked.empty()) {
    const Artifact& artifact = artifacts.at(marked.back());
    marked.pop_back();
    needed.insert(artifact.digest);
    for (const ArtifactFile& file : artifact.files) needed.insert(file.sha256);
    for (const auto& [name, digest] : artifact.inputs) {
      const bool keeps = !weak.contains(name) && artifacts.contains(digest);
      if (keeps && kept.insert(digest).second) marked.push_back(digest);
    }
  }

  std::vector<Garbage> garbage;
  std::set<std::string> counted;
  const auto count = [&](const std::string& object) -> int64_t {
    const auto found = by_name.find(object);
    const bool goes = found != by_name.end() && !needed.contains(object) && !is_young(object);
    return goes && counted.insert(object).second ? found->second->size_bytes : 0;
  };
  for (const auto& [digest, artifact] : artifacts) {
    if (kept.contains(digest)) continue;
    Garbage& each = garbage.emplace_back();
    each.digest = digest;
    each.kind = artifact.kind;
    each.size_bytes = count(digest);
    for (const ArtifactFile& file : artifact.files) each.size_bytes += count(file.sha256);
  }
  Garbage leftovers;
  for (const Stored& object : objects) leftovers.size_bytes += count(object.name);
  if (leftovers.size_bytes > 0) garbage.push_back(leftovers);
  if (dry_run) return garbage;
  // What has been published again meanwhile is young by now.
  const auto is_still_old = [&](const std::string& object) -> absl::StatusOr<bool> {
    const absl::StatusOr<absl::Time> time = PublishedAt(object);
    if (absl::IsNotFound(time.status())) return true;
    ALMOST_RETURN_IF_ERROR(time.status());
    return *time <= youngest;
  };
  for (const Garbage& each : garbage) {
    if (each.digest.empty()) continue;
    ALMOST_ASSIGN_OR_RETURN(const bool goes, is_still_old(each.digest));
    if (goes) ALMOST_RETURN_IF_ERROR(RemoveArtifact(each.digest));
  }
  for (const std::string& object : counted) {
    ALMOST_ASSIGN_OR_RETURN(const bool goes, is_still_old(object));
    if (goes) ALMOST_RETURN_IF_ERROR(RemoveObject(object));
  }
  return garbage;
}

absl::StatusOr<LocalFolder> ResolveModelSource(ArtifactStore* store, const fs::path& model_root,
                                               absl::string_view source) {
  absl::string_view digest = source;
  if (absl::ConsumePrefix(&digest, "artifacts/")) {
    if (store == nullptr) {
      return absl::FailedPreconditionError("source: artifacts need a store, and this service has none");
    }
    return store->Path(digest);
  }
  const std::string shown = absl::CHexEscape(source.substr(0, 160));
  bool plain = !source.empty() && source.find('\0') == absl::string_view::npos;
  for (const absl::string_view part : absl::StrSplit(source, '/')) plain = plain && part != "..";
  if (!plain) {
    return absl::InvalidArgumentError(absl::StrCat(
        "source: must be artifacts/{digest} or a folder beneath the model root, got \"", shown, "\""));
  }
  std::error_code error;
  const fs::path root = fs::canonical(model_root, error);
  if (error) return absl::FailedPreconditionError("the model root is not a folder");
  const fs::path folder = fs::canonical(root / std::string(source), error);
  if (error || !fs::is_directory(folder)) {
    return absl::NotFoundError(absl::StrCat("source: no folder \"", shown, "\" beneath the model root"));
  }
  const auto [end, ignored] = std::mismatch(root.begin(), root.end(), folder.begin(), folder.end());
  if (end != root.end()) {
    return absl::InvalidArgumentError(absl::StrCat("source: \"", shown, "\" leads out of the model root"));
  }
  return LocalFolder{folder, nullptr};
}

}  // namespace almost
