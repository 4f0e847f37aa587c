#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/storage/artifact_store.h"
#include "common/storage/folder_store.h"
#include "common/storage/s3_client.h"

namespace almost {

struct S3StoreOptions {
  S3Options s3;
  std::string prefix;                        // of every key; empty, or it ends with '/'
  std::filesystem::path cache;               // folder of what was fetched or published; several may share it
  int64_t cache_bytes = int64_t{100} << 30;  // what nobody uses goes beyond this, longest unused first
};

// Artifacts in S3, under the keys that artifact_store.h says, with the runs' manifests in place of links to
// their files. What is read or published is kept in a folder of this machine, too; what others have removed
// since (a sweep) can still be read there. An artifact's manifest is uploaded last: while it is not there,
// neither is the artifact. Thread-safe.
class S3Store : public ArtifactStore {
 public:
  // Reaches for the bucket, so that a wrong name or credential shows at the start. kFailedPrecondition: there
  // is no such bucket; kPermissionDenied; otherwise as S3Client::Create.
  static absl::StatusOr<std::shared_ptr<S3Store>> Open(const S3StoreOptions& options,
                                                       Env* env = Env::Posix());

  absl::StatusOr<Artifact> Publish(const ArtifactDraft& draft) override;
  absl::StatusOr<LocalFolder> Scratch() override { return cache_->Scratch(); }
  Env* env() const override { return cache_->env(); }
  absl::StatusOr<Artifact> Get(absl::string_view digest) override;
  absl::StatusOr<LocalFolder> Path(absl::string_view digest) override;
  absl::StatusOr<std::string> ReadFile(absl::string_view digest, absl::string_view path) override;
  absl::StatusOr<std::vector<std::string>> List() override;
  absl::Status Link(absl::string_view run, absl::string_view stage, absl::string_view name,
                    absl::string_view digest) override;
  absl::Status WriteRunFile(absl::string_view run, absl::string_view path,
                            absl::string_view contents) override;
  absl::StatusOr<std::string> ReadRunFile(absl::string_view run, absl::string_view path) override;
  absl::Status RemoveRun(absl::string_view run) override;
  absl::StatusOr<std::vector<Stored>> ListObjects() override;
  absl::StatusOr<absl::Time> PublishedAt(absl::string_view sha256) override;
  bool IsHeld(absl::string_view digest) override;
  absl::Status RemoveArtifact(absl::string_view digest) override;
  absl::Status RemoveObject(absl::string_view sha256) override;

 private:
  S3Store(const S3StoreOptions& options, std::unique_ptr<S3Client> s3, std::shared_ptr<FolderStore> cache)
      : options_(options), s3_(std::move(s3)), cache_(std::move(cache)) {}
  std::string Key(absl::string_view path) const;
  // Uploads a cached object unless S3 has it, and not for so long that a sweep could take it for old.
  absl::Status Upload(absl::string_view sha256);
  // Brings a file's object into the cache, verified.
  absl::Status Fetch(const ArtifactFile& file);

  const S3StoreOptions options_;
  const std::unique_ptr<S3Client> s3_;
  const std::shared_ptr<FolderStore> cache_;
};

}  // namespace almost
