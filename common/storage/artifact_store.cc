#include "common/storage/artifact_store.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/ids.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"

namespace almost {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kSchemaVersion = 1;
constexpr char kManifest[] = "manifest.json";
constexpr char kProvenance[] = "provenance.json";
constexpr auto kTmpLifetime = std::chrono::hours(24);

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

absl::StatusOr<Artifact> ParseManifest(absl::string_view digest, std::string text) {
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

}  // namespace

const ArtifactFile* Artifact::Find(absl::string_view path) const {
  for (const ArtifactFile& file : files) {
    if (file.path == path) return &file;
  }
  return nullptr;
}

absl::StatusOr<std::shared_ptr<ArtifactStore>> ArtifactStore::Open(const fs::path& root, Env* env) {
  std::error_code error;
  const fs::path absolute = fs::absolute(root, error);
  if (error) return absl::InvalidArgumentError(absl::StrCat("not a path: ", root.string()));
  for (const char* folder : {"objects", "artifacts", "runs", "tmp"}) {
    ALMOST_RETURN_IF_ERROR(env->CreateFolders(absolute / folder));
  }
  std::shared_ptr<ArtifactStore> store(new ArtifactStore(absolute, env));
  ALMOST_RETURN_IF_ERROR(store->Clean());
  return store;
}

// Other processes may be at work in tmp/ now, none of them for a day.
absl::Status ArtifactStore::Clean() {
  ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> names, env_->List(root_ / "tmp"));
  for (const std::string& name : names) {
    std::error_code error;
    const auto written = fs::last_write_time(root_ / "tmp" / name, error);
    if (!error && fs::file_time_type::clock::now() - written > kTmpLifetime) {
      ALMOST_RETURN_IF_ERROR(env_->Remove(root_ / "tmp" / name));
    }
  }
  return absl::OkStatus();
}

fs::path ArtifactStore::Object(absl::string_view sha256) const {
  return root_ / "objects" / std::string(sha256);
}

absl::Status ArtifactStore::CheckObject(absl::string_view sha256) const {
  ALMOST_ASSIGN_OR_RETURN(const std::string found, Sha256File(Object(sha256)));
  if (found == sha256) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("objects/", sha256, " is damaged: its SHA-256 is ", found));
}

absl::Status ArtifactStore::StoreBytes(absl::string_view sha256, absl::string_view bytes) {
  if (CheckObject(sha256).ok()) return absl::OkStatus();
  const fs::path fresh = root_ / "tmp" / UniqueName();
  absl::Status status = env_->Write(fresh, bytes, Env::Mode::kReadOnly);
  if (status.ok()) status = env_->Rename(fresh, Object(sha256));
  if (!status.ok()) env_->Remove(fresh).IgnoreError();
  return status;
}

absl::Status ArtifactStore::StoreFile(absl::string_view sha256, const fs::path& file) {
  if (CheckObject(sha256).ok()) return absl::OkStatus();
  const fs::path fresh = root_ / "tmp" / UniqueName();
  absl::Status status = env_->Seal(file);
  if (status.ok()) status = env_->Link(file, fresh);
  if (status.ok()) status = env_->Rename(fresh, Object(sha256));
  // Renaming one of two names of a file onto the other leaves both.
  if (!status.ok() || fs::exists(fresh)) env_->Remove(fresh).IgnoreError();
  return status;
}

absl::StatusOr<Artifact> ArtifactStore::Publish(const ArtifactDraft& draft) {
  if (draft.kind.empty()) return absl::InvalidArgumentError("kind: must not be empty");
  std::map<std::string, fs::path> staged;
  if (!draft.folder.empty()) {
    std::error_code error;
    for (fs::recursive_directory_iterator it(draft.folder, error), end; !error && it != end;
         it.increment(error)) {
      if (it->is_regular_file()) {
        staged[it->path().lexically_relative(draft.folder).generic_string()] = it->path();
      }
    }
    if (error) return absl::NotFoundError(absl::StrCat("cannot read folder ", draft.folder.string()));
  }
  Artifact artifact;
  artifact.kind = draft.kind;
  artifact.inputs = draft.inputs;
  artifact.recipe = draft.recipe;
  artifact.stage_version = draft.stage_version;
  artifact.numerics_id = draft.numerics_id;
  for (const auto& [path, contents] : draft.files) {
    if (staged.contains(path)) return absl::InvalidArgumentError(absl::StrCat("path: twice \"", path, "\""));
    artifact.files.push_back({path, Sha256(contents), static_cast<int64_t>(contents.size())});
  }
  for (const auto& [path, file] : staged) {
    ALMOST_ASSIGN_OR_RETURN(const std::string sha256, Sha256File(file));
    std::error_code error;
    artifact.files.push_back({path, sha256, static_cast<int64_t>(fs::file_size(file, error))});
  }
  std::sort(artifact.files.begin(), artifact.files.end(),
            [](const ArtifactFile& a, const ArtifactFile& b) { return a.path < b.path; });
  if (artifact.files.empty()) return absl::InvalidArgumentError("files: an artifact needs at least one");
  for (const ArtifactFile& file : artifact.files) {
    ALMOST_RETURN_IF_ERROR(CheckPlainPath(file.path));
    if (file.path == kManifest || file.path == kProvenance) {
      return absl::InvalidArgumentError(absl::StrCat("path: \"", file.path, "\" is the store's own"));
    }
  }
  try {
    artifact.manifest_json = ManifestOf(artifact).dump();
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("the manifest cannot be written: ", error.what()));
  }
  artifact.digest = Sha256(artifact.manifest_json);

  for (const ArtifactFile& file : artifact.files) {
    const auto contents = draft.files.find(file.path);
    ALMOST_RETURN_IF_ERROR(contents != draft.files.end() ? StoreBytes(file.sha256, contents->second)
                                                         : StoreFile(file.sha256, staged[file.path]));
  }
  // The manifest's object comes after all others: its presence says that the artifact is whole.
  const fs::path folder = root_ / "artifacts" / artifact.digest;
  const bool known = Get(artifact.digest).ok() && fs::exists(folder);
  if (known) return artifact;
  ALMOST_RETURN_IF_ERROR(StoreBytes(artifact.digest, artifact.manifest_json));
  const fs::path fresh = root_ / "tmp" / UniqueName();
  absl::Status status = Materialise(artifact, fresh);
  if (status.ok())
    status = env_->Write(fresh / kProvenance, draft.provenance.dump(2) + "\n", Env::Mode::kReadOnly);
  if (status.ok()) status = Replace(fresh, folder);
  if (!status.ok()) {
    env_->Remove(fresh).IgnoreError();
    return status;
  }
  return artifact;
}

absl::StatusOr<Artifact> ArtifactStore::Get(absl::string_view digest) {
  ALMOST_RETURN_IF_ERROR(CheckDigest(digest));
  absl::StatusOr<std::string> manifest = env_->Read(Object(digest));
  if (absl::IsNotFound(manifest.status())) {
    return absl::NotFoundError(absl::StrCat("no artifacts/", digest, " in the store"));
  }
  ALMOST_RETURN_IF_ERROR(manifest.status());
  if (Sha256(*manifest) != digest) {
    return absl::DataLossError(absl::StrCat("the manifest objects/", digest, " is damaged"));
  }
  return ParseManifest(digest, *std::move(manifest));
}

absl::StatusOr<fs::path> ArtifactStore::Path(absl::string_view digest) {
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, Get(digest));
  const fs::path folder = root_ / "artifacts" / artifact.digest;
  {
    const absl::MutexLock lock(&mutex_);
    if (verified_.contains(digest)) return folder;
  }
  bool whole = true;
  for (const ArtifactFile& file : artifact.files) {
    const absl::StatusOr<std::string> found = Sha256File(folder / file.path);
    whole = whole && found.ok() && *found == file.sha256;
  }
  if (!whole) {
    for (const ArtifactFile& file : artifact.files) {
      ALMOST_RETURN_IF_ERROR(Annotate(CheckObject(file.sha256), file.path));
    }
    const fs::path fresh = root_ / "tmp" / UniqueName();
    absl::Status status = Materialise(artifact, fresh);
    if (status.ok()) status = Replace(fresh, folder);
    if (!status.ok()) {
      env_->Remove(fresh).IgnoreError();
      return status;
    }
  }
  const absl::MutexLock lock(&mutex_);
  verified_.insert(artifact.digest);
  return folder;
}

absl::StatusOr<std::string> ArtifactStore::ReadFile(absl::string_view digest, absl::string_view path) {
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, Get(digest));
  const ArtifactFile* file = artifact.Find(path);
  if (file == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("artifacts/", digest, " has no file \"", absl::CHexEscape(path.substr(0, 160)), "\""));
  }
  ALMOST_ASSIGN_OR_RETURN(std::string contents, env_->Read(Object(file->sha256)));
  if (Sha256(contents) != file->sha256) {
    return absl::DataLossError(absl::StrCat("objects/", file->sha256, " (", path, ") is damaged"));
  }
  return contents;
}

absl::StatusOr<std::vector<std::string>> ArtifactStore::List() {
  ALMOST_ASSIGN_OR_RETURN(std::vector<std::string> names, env_->List(root_ / "artifacts"));
  std::erase_if(names, [](const std::string& name) { return !CheckDigest(name).ok(); });
  return names;
}

absl::Status ArtifactStore::Materialise(const Artifact& artifact, const fs::path& to) {
  ALMOST_RETURN_IF_ERROR(env_->CreateFolders(to));
  for (const ArtifactFile& file : artifact.files) {
    const fs::path target = to / file.path;
    if (target.parent_path() != to) ALMOST_RETURN_IF_ERROR(env_->CreateFolders(target.parent_path()));
    ALMOST_RETURN_IF_ERROR(env_->Link(Object(file.sha256), target));
    if (target.parent_path() != to) ALMOST_RETURN_IF_ERROR(env_->SyncFolder(target.parent_path()));
  }
  ALMOST_RETURN_IF_ERROR(env_->Link(Object(artifact.digest), to / kManifest));
  return env_->SyncFolder(to);
}

absl::Status ArtifactStore::Replace(const fs::path& fresh, const fs::path& to) {
  if (env_->Rename(fresh, to).ok()) return absl::OkStatus();
  // Another folder is in the way: a folder cannot be replaced in one step, so `to` is missing for a moment.
  const fs::path old = root_ / "tmp" / UniqueName();
  if (fs::exists(to)) ALMOST_RETURN_IF_ERROR(env_->Rename(to, old));
  if (const absl::Status status = env_->Rename(fresh, to); !status.ok()) {
    if (fs::exists(old)) env_->Rename(old, to).IgnoreError();
    return status;
  }
  return env_->Remove(old);
}

absl::Status ArtifactStore::Link(absl::string_view run, absl::string_view stage, absl::string_view name,
                                 absl::string_view digest) {
  ALMOST_RETURN_IF_ERROR(ValidateId("run", run));
  ALMOST_RETURN_IF_ERROR(ValidateId("stage", stage));
  ALMOST_RETURN_IF_ERROR(ValidateId("name", name));
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, Get(digest));
  const fs::path folder = root_ / "runs" / std::string(run) / std::string(stage);
  ALMOST_RETURN_IF_ERROR(env_->CreateFolders(folder));
  const fs::path to = folder / std::string(name);
  if (Sha256File(to / kManifest).value_or("") == digest) return absl::OkStatus();
  const fs::path fresh = root_ / "tmp" / UniqueName();
  absl::Status status = Materialise(artifact, fresh);
  const fs::path provenance = root_ / "artifacts" / artifact.digest / kProvenance;
  if (status.ok() && fs::exists(provenance)) status = env_->Link(provenance, fresh / kProvenance);
  if (status.ok()) status = Replace(fresh, to);
  if (!status.ok()) env_->Remove(fresh).IgnoreError();
  return status;
}

absl::Status ArtifactStore::WriteRunFile(absl::string_view run, absl::string_view path,
                                         absl::string_view contents) {
  ALMOST_RETURN_IF_ERROR(ValidateId("run", run));
  ALMOST_RETURN_IF_ERROR(CheckPlainPath(path));
  const fs::path file = root_ / "runs" / std::string(run) / std::string(path);
  ALMOST_RETURN_IF_ERROR(env_->CreateFolders(file.parent_path()));
  return env_->WriteAtomically(file, contents);
}

absl::StatusOr<fs::path> ResolveModelSource(ArtifactStore* store, const fs::path& model_root,
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
  return folder;
}

}  // namespace almost
