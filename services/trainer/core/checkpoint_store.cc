#include "services/trainer/core/checkpoint_store.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/storage/env.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kPrefix[] = "step-";
constexpr char kTensors[] = "tensors.safetensors";
constexpr char kState[] = "state.json";
constexpr size_t kKept = 2;

// Names of finished checkpoints, oldest first.
absl::StatusOr<std::vector<std::string>> Names(const fs::path& folder) {
  absl::StatusOr<std::vector<std::string>> names = Env::Posix()->List(folder);
  if (absl::IsNotFound(names.status())) return std::vector<std::string>{};
  ALMOST_RETURN_IF_ERROR(names.status());
  std::erase_if(*names, [](const std::string& name) {
    return !absl::StartsWith(name, kPrefix) || absl::EndsWith(name, ".new");
  });
  return names;
}

absl::StatusOr<Checkpoint> Read(const fs::path& folder) {
  ALMOST_ASSIGN_OR_RETURN(const std::string text, Env::Posix()->Read(folder / kState));
  const json state = json::parse(text, nullptr, /*allow_exceptions=*/false);
  try {
    const json& body = state.at("checkpoint");
    if (state.at("sha256") != Sha256(body.dump())) {
      return absl::DataLossError(absl::StrCat((folder / kState).string(), ": not what was written"));
    }
    ALMOST_ASSIGN_OR_RETURN(const std::string tensors_sha256, Sha256File(folder / kTensors));
    if (body.at("tensors_sha256") != tensors_sha256) {
      return absl::DataLossError(absl::StrCat((folder / kTensors).string(), ": not what was written"));
    }
    Checkpoint checkpoint;
    checkpoint.step = body.at("step");
    checkpoint.numerics_id = body.at("numerics_id");
    checkpoint.values = body.at("values");
    ALMOST_ASSIGN_OR_RETURN(checkpoint.tensors, SafetensorsFile::Open(folder / kTensors));
    return checkpoint;
  } catch (const json::exception& e) {
    return absl::DataLossError(absl::StrCat((folder / kState).string(), ": ", e.what()));
  }
}

}  // namespace

absl::Status CheckpointStore::Write(int64_t step, const std::string& numerics_id, const json& values,
                                    const std::vector<TensorToWrite>& tensors) {
  Env& env = *Env::Posix();
  const fs::path final = folder_ / absl::StrFormat("%s%012d", kPrefix, step);
  const fs::path fresh = final.string() + ".new";
  ALMOST_RETURN_IF_ERROR(env.Remove(fresh));
  ALMOST_RETURN_IF_ERROR(env.CreateFolders(fresh));
  const auto write = [&]() -> absl::Status {
    ALMOST_RETURN_IF_ERROR(WriteSafetensors(fresh / kTensors, tensors));
    ALMOST_ASSIGN_OR_RETURN(const std::string tensors_sha256, Sha256File(fresh / kTensors));
    const json body = {{"schema", 1},
                       {"step", step},
                       {"tensors_sha256", tensors_sha256},
                       {"numerics_id", numerics_id},
                       {"values", values}};
    const json state = {{"sha256", Sha256(body.dump())}, {"checkpoint", body}};
    ALMOST_RETURN_IF_ERROR(env.Write(fresh / kState, state.dump()));
    ALMOST_RETURN_IF_ERROR(env.Remove(final));  // a damaged one of this step
    return env.Rename(fresh, final);
  };
  const absl::Status written = write();
  if (!written.ok()) {
    env.Remove(fresh).IgnoreError();
    return Annotate(written, absl::StrCat("checkpoint of step ", step));
  }
  ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> names, Names(folder_));
  for (size_t i = 0; i + kKept < names.size(); ++i) ALMOST_RETURN_IF_ERROR(env.Remove(folder_ / names[i]));
  return absl::OkStatus();
}

absl::StatusOr<std::optional<Checkpoint>> CheckpointStore::Latest(std::vector<std::string>* damaged) const {
  ALMOST_ASSIGN_OR_RETURN(std::vector<std::string> names, Names(folder_));
  std::reverse(names.begin(), names.end());
  for (const std::string& name : names) {
    absl::StatusOr<Checkpoint> checkpoint = Read(folder_ / name);
    if (checkpoint.ok()) return std::optional<Checkpoint>(std::move(*checkpoint));
    damaged->push_back(std::string(checkpoint.status().message()));
  }
  return std::optional<Checkpoint>();
}

}  // namespace almost::trainer
