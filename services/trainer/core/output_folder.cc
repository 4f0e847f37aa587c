#include "services/trainer/core/output_folder.h"

#include <algorithm>
#include <system_error>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "common/base/status_macros.h"
#include "common/storage/env.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;

// Without links, as far as it is there, and without a slash at its end.
fs::path Resolved(const fs::path& path) {
  const fs::path resolved = fs::weakly_canonical(fs::absolute(path));
  return resolved.has_filename() ? resolved : resolved.parent_path();
}

// Whether nothing but a model is lost with what is at `path`, or nothing is there.
bool MayBeReplaced(const fs::path& path) {
  const fs::file_status status = fs::symlink_status(path);
  if (!fs::exists(status)) return true;
  if (!fs::is_directory(status)) return false;
  bool is_empty = true, is_model = false;
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
    if (entry.is_directory()) return false;
    is_empty = false;
    is_model = is_model || entry.path().filename() == "config.json";
  }
  return is_empty || is_model;
}

}  // namespace

absl::StatusOr<fs::path> OutputFolder(const fs::path& model_root, const std::string& output) {
  const auto refused = [&](absl::string_view rule) {
    return absl::InvalidArgumentError(
        absl::StrCat("output: must be ", rule, ", is \"", absl::CHexEscape(output), "\""));
  };
  bool is_plain = output.find('\0') == std::string::npos && fs::path(output).is_relative();
  for (const absl::string_view part : absl::StrSplit(output, '/')) is_plain = is_plain && part != "..";
  if (!is_plain) return refused("a folder beneath the model root");
  try {
    const fs::path root = Resolved(model_root), folder = Resolved(root / output);
    const auto [end, below] = std::mismatch(root.begin(), root.end(), folder.begin(), folder.end());
    if (end != root.end() || below == folder.end()) return refused("a folder beneath the model root");
    fs::path parent = folder.parent_path();
    while (!fs::exists(fs::symlink_status(parent))) parent = parent.parent_path();
    if (!fs::is_directory(parent) || !MayBeReplaced(folder)) {
      return refused("a new folder or a model's, with a config.json and no folder within");
    }
    return folder;
  } catch (const fs::filesystem_error& error) {
    return absl::ErrnoToStatus(error.code().value(), absl::StrCat("output: ", error.what()));
  }
}

absl::Status PlaceModel(const fs::path& model, const fs::path& model_root, const std::string& output) {
  ALMOST_ASSIGN_OR_RETURN(const fs::path folder, OutputFolder(model_root, output));
  const fs::path fresh = folder.parent_path() / absl::StrCat(".", folder.filename().string(), ".new");
  Env& env = *Env::Posix();
  const auto place = [&]() -> absl::Status {
    ALMOST_RETURN_IF_ERROR(env.Remove(fresh));
    ALMOST_RETURN_IF_ERROR(env.CreateFolders(folder.parent_path()));
    std::error_code error;
    fs::copy(model, fresh, fs::copy_options::recursive, error);
    if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("writing ", fresh.string()));
    ALMOST_RETURN_IF_ERROR(env.Remove(folder));
    return env.Rename(fresh, folder);
  };
  const absl::Status placed = place();
  if (placed.ok()) return placed;
  env.Remove(fresh).IgnoreError();
  return Annotate(placed, "output");
}

}  // namespace almost::trainer
