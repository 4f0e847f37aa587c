#include "common/storage/s3_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/base/ids.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/storage/manifest.h"

namespace almost {
namespace {

namespace fs = std::filesystem;

// An object older than this is uploaded again rather than relied on: a sweep may be about to remove it.
constexpr absl::Duration kFresh = absl::Hours(1);
// Others may make room in the same cache at any moment.
constexpr int kMaxTries = 5;

// What the cache lacks or has damaged is to be had from S3.
bool IsToBeFetched(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsDataLoss(status);
}

}  // namespace

absl::StatusOr<std::shared_ptr<S3Store>> S3Store::Open(const S3StoreOptions& options, Env* env) {
  ALMOST_ASSIGN_OR_RETURN(std::unique_ptr<S3Client> s3, S3Client::Create(options.s3));
  ALMOST_ASSIGN_OR_RETURN(std::shared_ptr<FolderStore> cache, FolderStore::Open(options.cache, env));
  ALMOST_RETURN_IF_ERROR(s3->List(absl::StrCat(options.prefix, "tmp/")).status());
  return std::shared_ptr<S3Store>(new S3Store(options, std::move(s3), std::move(cache)));
}

std::string S3Store::Key(absl::string_view path) const { return absl::StrCat(options_.prefix, path); }

absl::Status S3Store::Upload(absl::string_view sha256) {
  const std::string key = Key(absl::StrCat("objects/", sha256));
  const absl::StatusOr<S3Object> there = s3_->Head(key);
  if (there.ok() && absl::Now() - there->modified < kFresh) return absl::OkStatus();
  if (!there.ok() && !absl::IsNotFound(there.status())) return there.status();
  return s3_->PutFile(key, cache_->Object(sha256));
}

absl::StatusOr<Artifact> S3Store::Publish(const ArtifactDraft& draft) {
  LocalFolder held;  // until it is uploaded
  Artifact artifact;
  for (int attempt = 1;; ++attempt) {
    ALMOST_ASSIGN_OR_RETURN(artifact, cache_->Publish(draft));
    absl::StatusOr<LocalFolder> folder = cache_->Path(artifact.digest);
    if (folder.ok()) {
      held = *std::move(folder);
      break;
    }
    if (!IsToBeFetched(folder.status()) || attempt == kMaxTries) return folder.status();
  }
  for (const ArtifactFile& file : artifact.files) ALMOST_RETURN_IF_ERROR(Upload(file.sha256));
  const std::string provenance = absl::StrCat("artifacts/", artifact.digest, "/", kProvenanceFile);
  if (absl::IsNotFound(s3_->Head(Key(provenance)).status())) {
    ALMOST_RETURN_IF_ERROR(s3_->Put(Key(provenance), draft.provenance.dump(2) + "\n"));
  }
  ALMOST_RETURN_IF_ERROR(Upload(artifact.digest));
  ALMOST_RETURN_IF_ERROR(cache_->Trim(options_.cache_bytes));
  return artifact;
}

absl::StatusOr<Artifact> S3Store::Get(absl::string_view digest) {
  absl::StatusOr<Artifact> cached = cache_->Get(digest);
  if (!IsToBeFetched(cached.status())) return cached;
  absl::StatusOr<std::string> manifest = s3_->Get(Key(absl::StrCat("objects/", digest)));
  if (absl::IsNotFound(manifest.status())) {
    return absl::NotFoundError(absl::StrCat("no artifacts/", digest, " in the store"));
  }
  ALMOST_RETURN_IF_ERROR(manifest.status());
  ALMOST_ASSIGN_OR_RETURN(Artifact artifact, ParseManifest(digest, *std::move(manifest)));
  ALMOST_RETURN_IF_ERROR(cache_->StoreBytes(digest, artifact.manifest_json));
  return artifact;
}

absl::Status S3Store::Fetch(const ArtifactFile& file) {
  const fs::path fresh = cache_->root() / "tmp" / UniqueName();
  const auto fetch = [&]() -> absl::Status {
    ALMOST_RETURN_IF_ERROR(s3_->GetFile(Key(absl::StrCat("objects/", file.sha256)), file.size_bytes, fresh));
    ALMOST_ASSIGN_OR_RETURN(const std::string found, Sha256File(fresh));
    if (found != file.sha256) {
      return absl::DataLossError(absl::StrCat("objects/", file.sha256, " (", file.path,
                                              ") is damaged in S3: its SHA-256 is ", found));
    }
    return cache_->StoreFile(file.sha256, fresh);
  };
  absl::Status status = fetch();
  std::error_code ignored;
  fs::remove(fresh, ignored);
  if (absl::IsNotFound(status)) {
    status =
        absl::DataLossError(absl::StrCat("objects/", file.sha256, " (", file.path, ") is missing in S3"));
  }
  return status;
}

absl::StatusOr<LocalFolder> S3Store::Path(absl::string_view digest) {
  for (int attempt = 1;; ++attempt) {
    ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, Get(digest));
    absl::StatusOr<LocalFolder> folder = cache_->Path(digest);
    if (folder.ok()) {
      cache_->Used(digest);
      ALMOST_RETURN_IF_ERROR(cache_->Trim(options_.cache_bytes));
      return folder;
    }
    if (!IsToBeFetched(folder.status()) || attempt == kMaxTries) return folder.status();
    for (const ArtifactFile& file : artifact.files) {
      if (!cache_->CheckObject(file.sha256).ok()) ALMOST_RETURN_IF_ERROR(Fetch(file));
    }
  }
}

absl::StatusOr<std::string> S3Store::ReadFile(absl::string_view digest, absl::string_view path) {
  for (int attempt = 1;; ++attempt) {
    ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, Get(digest));
    absl::StatusOr<std::string> contents = cache_->ReadFile(digest, path);
    const ArtifactFile* const file = artifact.Find(path);
    if (contents.ok()) {
      cache_->Used(file->sha256);
      return contents;
    }
    if (file == nullptr || !IsToBeFetched(contents.status()) || attempt == kMaxTries)
      return contents.status();
    ALMOST_RETURN_IF_ERROR(Fetch(*file));
    ALMOST_RETURN_IF_ERROR(cache_->Trim(options_.cache_bytes));
  }
}

absl::StatusOr<std::vector<std::string>> S3Store::List() {
  const std::string prefix = Key("artifacts/");
  ALMOST_ASSIGN_OR_RETURN(const std::vector<S3Object> objects, s3_->List(prefix));
  std::vector<std::string> digests;
  for (const S3Object& object : objects) {
    absl::string_view rest = object.key;
    if (!absl::ConsumePrefix(&rest, prefix)) continue;
    const std::string digest(rest.substr(0, rest.find('/')));
    if (CheckDigest(digest).ok() && (digests.empty() || digests.back() != digest)) digests.push_back(digest);
  }
  return digests;
}

absl::Status S3Store::Link(absl::string_view run, absl::string_view stage, absl::string_view name,
                           absl::string_view digest) {
  ALMOST_RETURN_IF_ERROR(ValidateId("run", run));
  ALMOST_RETURN_IF_ERROR(ValidateId("stage", stage));
  ALMOST_RETURN_IF_ERROR(ValidateId("name", name));
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, Get(digest));
  return s3_->Put(Key(absl::StrCat("runs/", run, "/", stage, "/", name, "/", kManifestFile)),
                  artifact.manifest_json);
}

absl::Status S3Store::WriteRunFile(absl::string_view run, absl::string_view path,
                                   absl::string_view contents) {
  ALMOST_RETURN_IF_ERROR(ValidateId("run", run));
  ALMOST_RETURN_IF_ERROR(CheckPlainPath(path));
  return s3_->Put(Key(absl::StrCat("runs/", run, "/", path)), contents);
}

absl::StatusOr<std::string> S3Store::ReadRunFile(absl::string_view run, absl::string_view path) {
  ALMOST_RETURN_IF_ERROR(ValidateId("run", run));
  ALMOST_RETURN_IF_ERROR(CheckPlainPath(path));
  return s3_->Get(Key(absl::StrCat("runs/", run, "/", path)));
}

absl::Status S3Store::RemoveRun(absl::string_view run) {
  ALMOST_RETURN_IF_ERROR(ValidateId("run", run));
  ALMOST_ASSIGN_OR_RETURN(const std::vector<S3Object> objects,
                          s3_->List(Key(absl::StrCat("runs/", run, "/"))));
  for (const S3Object& object : objects) ALMOST_RETURN_IF_ERROR(s3_->Remove(object.key));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<S3Store::Stored>> S3Store::ListObjects() {
  const std::string prefix = Key("objects/");
  ALMOST_ASSIGN_OR_RETURN(const std::vector<S3Object> objects, s3_->List(prefix));
  std::vector<Stored> stored;
  for (const S3Object& object : objects) {
    const std::string name = object.key.substr(prefix.size());
    if (CheckDigest(name).ok()) stored.push_back({name, object.size_bytes, object.modified});
  }
  return stored;
}

absl::StatusOr<absl::Time> S3Store::PublishedAt(absl::string_view sha256) {
  ALMOST_ASSIGN_OR_RETURN(const S3Object object, s3_->Head(Key(absl::StrCat("objects/", sha256))));
  return object.modified;
}

bool S3Store::IsHeld(absl::string_view) { return false; }  // who holds it has a copy

absl::Status S3Store::RemoveArtifact(absl::string_view digest) {
  ALMOST_RETURN_IF_ERROR(RemoveObject(digest));
  return s3_->Remove(Key(absl::StrCat("artifacts/", digest, "/", kProvenanceFile)));
}

absl::Status S3Store::RemoveObject(absl::string_view sha256) {
  return s3_->Remove(Key(absl::StrCat("objects/", sha256)));
}

}  // namespace almost
