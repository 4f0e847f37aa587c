#include "common/storage/folder_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/ids.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/storage/manifest.h"

namespace almost {
namespace {

namespace fs = std::filesystem;

constexpr auto kTmpLifetime = std::chrono::hours(24);
// Content published again is as good as new for a sweep; its time is brought up to date when older than this.
constexpr absl::Duration kFresh = absl::Minutes(10);

absl::Time ModifiedAt(const struct stat& stat) { return absl::TimeFromTimespec(stat.st_mtim); }

void Touch(const fs::path& path) { ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0); }

// A lock on a folder: shared by those who use it, exclusive for who removes it. Where a file system has no
// locks there is none, and only age protects.
class FolderLock {
 public:
  // Null: there is no such folder. With `exclusive` it does not wait, and is null when somebody holds it.
  static std::shared_ptr<const FolderLock> Take(const fs::path& folder, bool exclusive) {
    while (true) {
      std::shared_ptr<FolderLock> lock(
          new FolderLock(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)));
      if (lock->fd_ < 0) return nullptr;
      int result = 0;
      do {
        result = ::flock(lock->fd_, exclusive ? LOCK_EX | LOCK_NB : LOCK_SH);
      } while (result != 0 && errno == EINTR);
      if (result != 0 && errno == EWOULDBLOCK) return nullptr;
      // Another folder may have come in its place meanwhile.
      struct stat locked{};
      struct stat named{};
      if (::fstat(lock->fd_, &locked) == 0 && ::stat(folder.c_str(), &named) == 0 &&
          locked.st_ino == named.st_ino) {
        return lock;
      }
    }
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  ~FolderLock() {
    if (fd_ >= 0) ::close(fd_);
  }

 private:
  explicit FolderLock(int fd) : fd_(fd) {}
  const int fd_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<ArtifactStore>> ArtifactStore::Open(const fs::path& root, Env* env) {
  return FolderStore::Open(root, env);
}

absl::StatusOr<std::shared_ptr<FolderStore>> FolderStore::Open(const fs::path& root, Env* env) {
  std::error_code error;
  const fs::path absolute = fs::absolute(root, error);
  if (error) return absl::InvalidArgumentError(absl::StrCat("not a path: ", root.string()));
  for (const char* folder : {"objects", "artifacts", "runs", "tmp"}) {
    ALMOST_RETURN_IF_ERROR(env->CreateFolders(absolute / folder));
  }
  std::shared_ptr<FolderStore> store(new FolderStore(absolute, env));
  ALMOST_RETURN_IF_ERROR(store->Clean());
  return store;
}

// Other processes may be at work in tmp/ now, none of them for a day.
absl::Status FolderStore::Clean() {
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

fs::path FolderStore::Object(absl::string_view sha256) const {
  return root_ / "objects" / std::string(sha256);
}

absl::Status FolderStore::CheckObject(absl::string_view sha256) const {
  ALMOST_ASSIGN_OR_RETURN(const std::string found, Sha256File(Object(sha256)));
  if (found == sha256) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("objects/", sha256, " is damaged: its SHA-256 is ", found));
}

bool FolderStore::HasFresh(absl::string_view sha256) const {
  if (!CheckObject(sha256).ok()) return false;
  struct stat stat{};
  const fs::path object = Object(sha256);
  if (::stat(object.c_str(), &stat) == 0 && absl::Now() - ModifiedAt(stat) > kFresh) Touch(object);
  return true;
}

absl::Status FolderStore::StoreBytes(absl::string_view sha256, absl::string_view bytes) {
  if (HasFresh(sha256)) return absl::OkStatus();
  const fs::path fresh = root_ / "tmp" / UniqueName();
  absl::Status status = env_->Write(fresh, bytes, Env::Mode::kReadOnly);
  if (status.ok()) status = env_->Rename(fresh, Object(sha256));
  if (!status.ok()) env_->Remove(fresh).IgnoreError();
  return status;
}

absl::Status FolderStore::StoreFile(absl::string_view sha256, const fs::path& file) {
  if (HasFresh(sha256)) return absl::OkStatus();
  const fs::path fresh = root_ / "tmp" / UniqueName();
  absl::Status status = env_->Seal(file);
  if (status.ok()) status = env_->Link(file, fresh);
  if (status.ok()) status = env_->Rename(fresh, Object(sha256));
  // Renaming one of two names of a file onto the other leaves both.
  if (!status.ok() || fs::exists(fresh)) env_->Remove(fresh).IgnoreError();
  return status;
}

absl::StatusOr<Artifact> FolderStore::Publish(const ArtifactDraft& draft) {
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
    if (file.path == kManifestFile || file.path == kProvenanceFile) {
      return absl::InvalidArgumentError(absl::StrCat("path: \"", file.path, "\" is the store's own"));
    }
  }
  ALMOST_RETURN_IF_ERROR(SealManifest(artifact));

  for (const ArtifactFile& file : artifact.files) {
    const auto contents = draft.files.find(file.path);
    ALMOST_RETURN_IF_ERROR(contents != draft.files.end() ? StoreBytes(file.sha256, contents->second)
                                                         : StoreFile(file.sha256, staged[file.path]));
  }
  // The manifest's object comes after all others: its presence says that the artifact is whole.
  const fs::path folder = root_ / "artifacts" / artifact.digest;
  ALMOST_RETURN_IF_ERROR(StoreBytes(artifact.digest, artifact.manifest_json));
  if (fs::exists(folder)) return artifact;
  const fs::path fresh = root_ / "tmp" / UniqueName();
  absl::Status status = Materialise(artifact, fresh);
  if (status.ok())
    status = env_->Write(fresh / kProvenanceFile, draft.provenance.dump(2) + "\n", Env::Mode::kReadOnly);
  if (status.ok()) status = Replace(fresh, folder);
  if (!status.ok()) {
    env_->Remove(fresh).IgnoreError();
    return status;
  }
  return artifact;
}

absl::StatusOr<LocalFolder> FolderStore::Scratch() {
  const fs::path folder = root_ / "tmp" / UniqueName();
  ALMOST_RETURN_IF_ERROR(env_->CreateFolders(folder));
  return LocalFolder{folder, std::shared_ptr<const void>(nullptr, [env = env_, folder](const void*) {
                       env->Remove(folder).IgnoreError();
                     })};
}

absl::StatusOr<Artifact> FolderStore::Get(absl::string_view digest) {
  ALMOST_RETURN_IF_ERROR(CheckDigest(digest));
  absl::StatusOr<std::string> manifest = env_->Read(Object(digest));
  if (absl::IsNotFound(manifest.status())) {
    return absl::NotFoundError(absl::StrCat("no artifacts/", digest, " in the store"));
  }
  ALMOST_RETURN_IF_ERROR(manifest.status());
  return ParseManifest(digest, *std::move(manifest));
}

absl::StatusOr<LocalFolder> FolderStore::Path(absl::string_view digest) {
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, Get(digest));
  const fs::path folder = root_ / "artifacts" / artifact.digest;
  LocalFolder held = {folder, FolderLock::Take(folder, /*exclusive=*/false)};
  {
    const absl::MutexLock lock(&mutex_);
    if (held.hold != nullptr && verified_.contains(digest)) return held;
  }
  bool whole = held.hold != nullptr;
  for (const ArtifactFile& file : artifact.files) {
    const absl::StatusOr<std::string> found = whole ? Sha256File(folder / file.path) : std::string();
    whole = whole && found.ok() && *found == file.sha256;
  }
  if (!whole) {
    for (const ArtifactFile& file : artifact.files) {
      ALMOST_RETURN_IF_ERROR(Annotate(CheckObject(file.sha256), file.path));
    }
    const fs::path fresh = root_ / "tmp" / UniqueName();
    absl::Status status = Materialise(artifact, fresh);
    if (status.ok()) {
      held.hold = FolderLock::Take(fresh, /*exclusive=*/false);
      status = Replace(fresh, folder);
    }
    if (!status.ok()) {
      env_->Remove(fresh).IgnoreError();
      return status;
    }
  }
  const absl::MutexLock lock(&mutex_);
  verified_.insert(artifact.digest);
  return held;
}

absl::StatusOr<std::string> FolderStore::ReadFile(absl::string_view digest, absl::string_view path) {
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

absl::StatusOr<std::vector<std::string>> FolderStore::List() {
  ALMOST_ASSIGN_OR_RETURN(std::vector<std::string> names, env_->List(root_ / "artifacts"));
  std::erase_if(names, [](const std::string& name) { return !CheckDigest(name).ok(); });
  return names;
}

absl::Status FolderStore::Materialise(const Artifact& artifact, const fs::path& to) {
  ALMOST_RETURN_IF_ERROR(env_->CreateFolders(to));
  for (const ArtifactFile& file : artifact.files) {
    const fs::path target = to / file.path;
    if (target.parent_path() != to) ALMOST_RETURN_IF_ERROR(env_->CreateFolders(target.parent_path()));
    ALMOST_RETURN_IF_ERROR(env_->Link(Object(file.sha256), target));
    if (target.parent_path() != to) ALMOST_RETURN_IF_ERROR(env_->SyncFolder(target.parent_path()));
  }
  ALMOST_RETURN_IF_ERROR(env_->Link(Object(artifact.digest), to / kManifestFile));
  return env_->SyncFolder(to);
}

absl::Status FolderStore::Replace(const fs::path& fresh, const fs::path& to) {
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

absl::Status FolderStore::Link(absl::string_view run, absl::string_view stage, absl::string_view name,
                               absl::string_view digest) {
  ALMOST_RETURN_IF_ERROR(ValidateId("run", run));
  ALMOST_RETURN_IF_ERROR(ValidateId("stage", stage));
  ALMOST_RETURN_IF_ERROR(ValidateId("name", name));
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, Get(digest));
  const fs::path folder = root_ / "runs" / std::string(run) / std::string(stage);
  ALMOST_RETURN_IF_ERROR(env_->CreateFolders(folder));
  const fs::path to = folder / std::string(name);
  if (Sha256File(to / kManifestFile).value_or("") == digest) return absl::OkStatus();
  const fs::path fresh = root_ / "tmp" / UniqueName();
  absl::Status status = Materialise(artifact, fresh);
  const fs::path provenance = root_ / "artifacts" / artifact.digest / kProvenanceFile;
  if (status.ok() && fs::exists(provenance)) status = env_->Link(provenance, fresh / kProvenanceFile);
  if (status.ok()) status = Replace(fresh, to);
  if (!status.ok()) env_->Remove(fresh).IgnoreError();
  return status;
}

absl::Status FolderStore::WriteRunFile(absl::string_view run, absl::string_view path,
                                       absl::string_view contents) {
  ALMOST_RETURN_IF_ERROR(ValidateId("run", run));
  ALMOST_RETURN_IF_ERROR(CheckPlainPath(path));
  const fs::path file = root_ / "runs" / std::string(run) / std::string(path);
  ALMOST_RETURN_IF_ERROR(env_->CreateFolders(file.parent_path()));
  return env_->WriteAtomically(file, contents);
}

absl::StatusOr<std::string> FolderStore::ReadRunFile(absl::string_view run, absl::string_view path) {
  ALMOST_RETURN_IF_ERROR(ValidateId("run", run));
  ALMOST_RETURN_IF_ERROR(CheckPlainPath(path));
  return env_->Read(root_ / "runs" / std::string(run) / std::string(path));
}

absl::Status FolderStore::RemoveRun(absl::string_view run) {
  ALMOST_RETURN_IF_ERROR(ValidateId("run", run));
  return env_->Remove(root_ / "runs" / std::string(run));
}

absl::StatusOr<std::vector<FolderStore::Stored>> FolderStore::ListObjects() {
  ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> names, env_->List(root_ / "objects"));
  std::vector<Stored> objects;
  for (const std::string& name : names) {
    struct stat stat{};
    if (!CheckDigest(name).ok() || ::stat(Object(name).c_str(), &stat) != 0) continue;
    objects.push_back({name, stat.st_size, ModifiedAt(stat)});
  }
  return objects;
}

absl::StatusOr<absl::Time> FolderStore::PublishedAt(absl::string_view sha256) {
  struct stat stat{};
  if (::stat(Object(sha256).c_str(), &stat) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("objects/", sha256));
  }
  return ModifiedAt(stat);
}

bool FolderStore::IsHeld(absl::string_view digest) {
  const fs::path folder = root_ / "artifacts" / std::string(digest);
  return fs::exists(folder) && FolderLock::Take(folder, /*exclusive=*/true) == nullptr;
}

absl::Status FolderStore::RemoveArtifact(absl::string_view digest) {
  ALMOST_RETURN_IF_ERROR(RemoveObject(digest));
  const fs::path folder = root_ / "artifacts" / std::string(digest);
  const auto lock = FolderLock::Take(folder, /*exclusive=*/true);
  if (lock == nullptr) return absl::OkStatus();  // gone, or taken up just now; the next sweep has it
  const fs::path old = root_ / "tmp" / UniqueName();
  ALMOST_RETURN_IF_ERROR(env_->Rename(folder, old));
  {
    const absl::MutexLock mutex_lock(&mutex_);
    verified_.erase(std::string(digest));
  }
  return env_->Remove(old);
}

absl::Status FolderStore::RemoveObject(absl::string_view sha256) { return env_->Remove(Object(sha256)); }

void FolderStore::Used(absl::string_view digest) const {
  Touch(root_ / "artifacts" / std::string(digest));
  Touch(Object(digest));
}

absl::Status FolderStore::Trim(int64_t max_bytes) {
  ALMOST_ASSIGN_OR_RETURN(const std::vector<Stored> objects, ListObjects());
  int64_t size_bytes = 0;
  for (const Stored& object : objects) size_bytes += object.size_bytes;
  if (size_bytes <= max_bytes) return absl::OkStatus();

  // By last use: artifacts with their folders, then what no folder shows.
  ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> digests, List());
  std::vector<std::pair<absl::Time, std::string>> by_use;
  for (const std::string& digest : digests) {
    struct stat stat{};
    if (::stat((root_ / "artifacts" / digest).c_str(), &stat) == 0)
      by_use.emplace_back(ModifiedAt(stat), digest);
  }
  std::sort(by_use.begin(), by_use.end());
  std::map<std::string, int> users;  // of an object, among the folders left
  std::map<std::string, Artifact> artifacts;
  for (const auto& [time, digest] : by_use) {
    absl::StatusOr<Artifact> artifact = Get(digest);
    if (!artifact.ok()) continue;
    ++users[digest];
    for (const ArtifactFile& file : artifact->files) ++users[file.sha256];
    artifacts.emplace(digest, *std::move(artifact));
  }
  const auto remove = [&](const std::string& object, int64_t bytes) -> absl::Status {
    if (--users[object] > 0) return absl::OkStatus();
    size_bytes -= bytes;
    return RemoveObject(object);
  };
  // Fetched and read once, as datasets are.
  std::vector<Stored> loose;
  for (const Stored& object : objects) {
    if (!users.contains(object.name)) loose.push_back(object);
  }
  std::sort(loose.begin(), loose.end(), [](const Stored& a, const Stored& b) { return a.time < b.time; });
  auto next_loose = loose.begin();
  auto next_artifact = by_use.begin();
  while (size_bytes > max_bytes && (next_loose != loose.end() || next_artifact != by_use.end())) {
    if (next_loose != loose.end() &&
        (next_artifact == by_use.end() || next_loose->time < next_artifact->first)) {
      users[next_loose->name] = 1;
      ALMOST_RETURN_IF_ERROR(remove(next_loose->name, next_loose->size_bytes));
      ++next_loose;
      continue;
    }
    const std::string& digest = (next_artifact++)->second;
    const auto artifact = artifacts.find(digest);
    if (artifact == artifacts.end() || IsHeld(digest)) continue;
    ALMOST_RETURN_IF_ERROR(RemoveArtifact(digest));
    for (const ArtifactFile& file : artifact->second.files) {
      ALMOST_RETURN_IF_ERROR(remove(file.sha256, file.size_bytes));
    }
  }
  return absl::OkStatus();
}

}  // namespace almost
