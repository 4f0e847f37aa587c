#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/storage/artifact_store.h"

namespace almost {

// Artifacts in a folder of one file system, laid out as artifact_store.h says, and tmp/ for what is on its
// way. A file's names are hard links to one object. Who has a LocalFolder holds a shared lock (flock) on it,
// on any process of the machine.
//
// It is also what S3Store keeps its copies in; those parts are at the end.
class FolderStore : public ArtifactStore {
 public:
  // As ArtifactStore::Open.
  static absl::StatusOr<std::shared_ptr<FolderStore>> Open(const std::filesystem::path& root, Env* env);

  absl::StatusOr<Artifact> Publish(const ArtifactDraft& draft) override;
  absl::StatusOr<LocalFolder> Scratch() override;
  Env* env() const override { return env_; }
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

  const std::filesystem::path& root() const { return root_; }

  // Where an object's bytes are, or would be.
  std::filesystem::path Object(absl::string_view sha256) const;
  // kNotFound, kDataLoss: it is not there, or damaged. Reads all of it.
  absl::Status CheckObject(absl::string_view sha256) const;
  // Takes bytes of that hash, which the caller has verified; a file is linked and made read-only.
  absl::Status StoreFile(absl::string_view sha256, const std::filesystem::path& file);
  absl::Status StoreBytes(absl::string_view sha256, absl::string_view bytes);
  // Counts as used now.
  void Used(absl::string_view digest) const;
  // Removes what has not been used for longest until its objects take at most `max_bytes`, or nothing is left
  // but what somebody holds.
  absl::Status Trim(int64_t max_bytes);

 private:
  FolderStore(std::filesystem::path root, Env* env) : root_(std::move(root)), env_(env) {}
  absl::Status Clean();
  // Whether the object is there, undamaged; from now on it is young.
  bool HasFresh(absl::string_view sha256) const;
  // Hard links of the artifact's files and its manifest in the new folder `to`.
  absl::Status Materialise(const Artifact& artifact, const std::filesystem::path& to);
  // Puts the folder `fresh` in the place of `to`.
  absl::Status Replace(const std::filesystem::path& fresh, const std::filesystem::path& to);

  const std::filesystem::path root_;
  Env* const env_;
  absl::Mutex mutex_;
  std::set<std::string, std::less<>> verified_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace almost
