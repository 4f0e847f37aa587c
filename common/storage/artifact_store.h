#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/storage/env.h"
#include "nlohmann/json.hpp"

// Artifacts (datasets, models, reports) named by their content, in a folder (folder_store.h) or in S3
// (s3_store.h). Beneath the store's root:
//   objects/<sha256>               every file's bytes, and every manifest's; never changed
//   artifacts/<digest>/            says that the artifact is there; provenance.json: time and code version,
//                                  outside every hash. In a folder also its files by their names (hard links)
//   runs/<run>/<stage>/<name>/     the same again, for people: all files in a folder, the manifest in S3
//   runs/<run>/<path>              files for people: report.html, summary.json, curves
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

// A folder on this machine. What is in it stays there, whatever else goes, for as long as a copy of `hold`
// lives.
struct LocalFolder {
  std::filesystem::path path;
  std::shared_ptr<const void> hold;
};

// Something that Sweep removes or would remove.
struct Garbage {
  std::string digest;  // of the artifact; empty: objects of no artifact, as a crash leaves them
  std::string kind;
  int64_t size_bytes = 0;  // that nothing else needs
};

// Thread-safe, and several processes on several machines may share a store: everything appears whole or not
// at all. Errors everywhere: kResourceExhausted names the path for which there was no space; kDataLoss names
// a file whose bytes no longer have the hash they are known by; kUnavailable: S3 cannot be reached.
class ArtifactStore {
 public:
  virtual ~ArtifactStore() = default;

  // A store in a folder; makes it if missing. `env` outlives the store.
  static absl::StatusOr<std::shared_ptr<ArtifactStore>> Open(const std::filesystem::path& root,
                                                             Env* env = Env::Posix());

  // The same content again gives the same digest and changes nothing. kInvalidArgument: no kind, no file, a
  // path that is not plain or twice the same.
  virtual absl::StatusOr<Artifact> Publish(const ArtifactDraft& draft) = 0;

  // An empty folder on the disk of what this machine keeps of the store, where a draft's folder is written
  // without a copy being made of it. It goes with the last copy of `hold`, which the store's `env` outlives.
  virtual absl::StatusOr<LocalFolder> Scratch() = 0;
  // What it does to files goes through this.
  virtual Env* env() const = 0;

  // kNotFound: no such artifact; kInvalidArgument: not a digest.
  virtual absl::StatusOr<Artifact> Get(absl::string_view digest) = 0;
  // A folder with the artifact's files by their names, fetched if need be. Every byte is verified the first
  // time in this process.
  virtual absl::StatusOr<LocalFolder> Path(absl::string_view digest) = 0;
  // A file's contents, verified. kNotFound: the artifact has no such file.
  virtual absl::StatusOr<std::string> ReadFile(absl::string_view digest, absl::string_view path) = 0;
  // Digests of all artifacts, sorted.
  virtual absl::StatusOr<std::vector<std::string>> List() = 0;

  // Makes runs/<run>/<stage>/<name>/ show the artifact, in place of what it showed before.
  virtual absl::Status Link(absl::string_view run, absl::string_view stage, absl::string_view name,
                            absl::string_view digest) = 0;
  // Replaces runs/<run>/<path> (plain, relative): a file for people, not an artifact.
  virtual absl::Status WriteRunFile(absl::string_view run, absl::string_view path,
                                    absl::string_view contents) = 0;
  // kNotFound: there is none.
  virtual absl::StatusOr<std::string> ReadRunFile(absl::string_view run, absl::string_view path) = 0;
  // Everything beneath runs/<run>/; its artifacts are Sweep's to remove. Harmless when missing.
  virtual absl::Status RemoveRun(absl::string_view run) = 0;

  // Removes (unless `dry_run`) every artifact that neither is in `keep`, nor younger than `min_age`, nor held
  // by a LocalFolder on this machine, nor an input, direct or not, of one that is; and every object that no
  // artifact needs any more. An input whose name is in `weak` keeps nothing. Returns what it was, artifacts
  // first. Publishing at the same time is safe as long as it takes less than `min_age`.
  absl::StatusOr<std::vector<Garbage>> Sweep(const std::set<std::string>& keep, absl::Duration min_age,
                                             bool dry_run, const std::set<std::string>& weak = {});

  // The rest is what Sweep is made of.

  // A name in objects/ or artifacts/.
  struct Stored {
    std::string name;
    int64_t size_bytes = 0;
    absl::Time time;  // when it was last published
  };
  virtual absl::StatusOr<std::vector<Stored>> ListObjects() = 0;
  // When an object was last published, as it is now. kNotFound: it is not there.
  virtual absl::StatusOr<absl::Time> PublishedAt(absl::string_view sha256) = 0;
  // Whether somebody on this machine holds the artifact's folder.
  virtual bool IsHeld(absl::string_view digest) = 0;
  // Its manifest's object first: from then on it is not there. Other objects stay.
  virtual absl::Status RemoveArtifact(absl::string_view digest) = 0;
  virtual absl::Status RemoveObject(absl::string_view sha256) = 0;
};

// Where a model named by a request lies: `artifacts/{digest}` of the store, or a folder beneath `model_root`,
// relative or absolute. `store` may be null: then artifacts are kFailedPrecondition.
// kInvalidArgument: empty, "..", NUL, or a path that leads out of model_root (symbolic links followed);
// kNotFound: no such folder.
absl::StatusOr<LocalFolder> ResolveModelSource(ArtifactStore* store, const std::filesystem::path& model_root,
                                               absl::string_view source);

}  // namespace almost
