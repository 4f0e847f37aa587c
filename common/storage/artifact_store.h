#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/storage/env.h"
#include "nlohmann/json.hpp"

// Artifacts (datasets, models, reports) named by their content. On disk, beneath one root:
//   objects/<sha256>               every file's bytes, and every manifest's; read-only
//   artifacts/<digest>/            an artifact's files by their names (hard links), manifest.json, and
//                                  provenance.json: time and code version, outside every hash
//   runs/<run>/<stage>/<name>/     the same again, for people; a model folder loads from there
//   tmp/                           what is on its way
// A digest is the SHA-256 of the canonical manifest (JSON, keys sorted, no blanks), schema 1:
//   {"files":[{"path","sha256","size_bytes"}…],"inputs":{name:digest},"kind","numerics_id","recipe",
//    "schema_version":1,"stage_version"}
namespace almost {

struct ArtifactFile {
  std::string path;  // relative, '/'-separated
  std::string sha256;
  int64_t size_bytes = 0;
};

struct Artifact {
  std::string digest;
  std::string kind;                           // prompts, comparisons, reward_model, …
  std::vector<ArtifactFile> files;            // by path
  std::map<std::string, std::string> inputs;  // what it was made from: name -> digest of artifact or model
  nlohmann::json recipe;                      // the part of the recipe that its content depends on
  int64_t stage_version = 0;                  // of the code that made it
  std::string numerics_id;                    // empty where no model took part
  std::string manifest_json;                  // as stored

  // The file of that path, or null.
  const ArtifactFile* Find(absl::string_view path) const;
};

// What is to be published.
struct ArtifactDraft {
  std::string kind;
  std::map<std::string, std::string> files;  // path -> contents
  // Takes every file in it as well, nested folders too; they are linked, so they must not change afterwards.
  std::filesystem::path folder;
  std::map<std::string, std::string> inputs;
  nlohmann::json recipe = nlohmann::json::object();
  int64_t stage_version = 1;
  std::string numerics_id;
  nlohmann::json provenance = nlohmann::json::object();  // not hashed
};

// Thread-safe, and several processes may share a root: everything appears by rename, whole or not at all.
// Errors everywhere: kResourceExhausted names the path for which there was no space; kDataLoss names a file
// whose bytes no longer have the hash they are known by.
class ArtifactStore {
 public:
  // Makes the folders if missing. `env` outlives the store.
  static absl::StatusOr<std::shared_ptr<ArtifactStore>> Open(const std::filesystem::path& root,
                                                             Env* env = Env::Posix());

  // The same content again gives the same digest and changes nothing. kInvalidArgument: no kind, no file, a
  // path that is not plain or twice the same.
  absl::StatusOr<Artifact> Publish(const ArtifactDraft& draft);

  // kNotFound: no such artifact; kInvalidArgument: not a digest.
  absl::StatusOr<Artifact> Get(absl::string_view digest);
  // A folder with the artifact's files by their names. Every byte is verified the first time in this process.
  absl::StatusOr<std::filesystem::path> Path(absl::string_view digest);
  // A file's contents, verified. kNotFound: the artifact has no such file.
  absl::StatusOr<std::string> ReadFile(absl::string_view digest, absl::string_view path);
  // Digests of all artifacts, sorted.
  absl::StatusOr<std::vector<std::string>> List();

  // Makes runs/<run>/<stage>/<name>/ show the artifact, in place of what it showed before.
  absl::Status Link(absl::string_view run, absl::string_view stage, absl::string_view name,
                    absl::string_view digest);
  // Replaces runs/<run>/<path> (plain, relative): a file for people, not an artifact.
  absl::Status WriteRunFile(absl::string_view run, absl::string_view path, absl::string_view contents);

  const std::filesystem::path& root() const { return root_; }

 private:
  ArtifactStore(std::filesystem::path root, Env* env) : root_(std::move(root)), env_(env) {}
  absl::Status Clean();
  std::filesystem::path Object(absl::string_view sha256) const;
  absl::Status CheckObject(absl::string_view sha256) const;
  absl::Status StoreBytes(absl::string_view sha256, absl::string_view bytes);
  absl::Status StoreFile(absl::string_view sha256, const std::filesystem::path& file);
  // Hard links of the artifact's files and its manifest in the new folder `to`.
  absl::Status Materialise(const Artifact& artifact, const std::filesystem::path& to);
  // Puts the folder `fresh` in the place of `to`.
  absl::Status Replace(const std::filesystem::path& fresh, const std::filesystem::path& to);

  const std::filesystem::path root_;
  Env* const env_;
  absl::Mutex mutex_;
  std::set<std::string, std::less<>> verified_ ABSL_GUARDED_BY(mutex_);
};

// Where a model named by a request lies: `artifacts/{digest}` of the store, or a folder beneath `model_root`,
// relative or absolute. `store` may be null: then artifacts are kFailedPrecondition.
// kInvalidArgument: empty, "..", NUL, or a path that leads out of model_root (symbolic links followed);
// kNotFound: no such folder.
absl::StatusOr<std::filesystem::path> ResolveModelSource(ArtifactStore* store,
                                                         const std::filesystem::path& model_root,
                                                         absl::string_view source);

}  // namespace almost
