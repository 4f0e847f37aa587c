#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "nlohmann/json.hpp"

namespace almost::cli {

// What an evaluation has found out so far, in a folder that the same command goes on with:
//   items.jsonl   first what was asked ({"about": …}), then an object an item with its number, "id"; each
//   batch is on
//                 disk before the next is counted
//   result.json, report.html   at the end
// Add is thread-safe.
class EvaluationFolder {
 public:
  // Makes the folder, or reads what is in it; a last line that a crash cut off is dropped. `about` names
  // everything that the items depend on: files and models by digest, settings. kFailedPrecondition: the
  // folder is about something else, and the message says what differs; kDataLoss: a line that is no item.
  static absl::StatusOr<std::unique_ptr<EvaluationFolder>> Open(const std::filesystem::path& folder,
                                                                const nlohmann::ordered_json& about);

  bool Has(int64_t id) const { return items_.contains(id); }
  size_t size() const;
  absl::Status Add(const std::vector<nlohmann::ordered_json>& items);
  // Those below `num_items`, in order of their ids: an evaluation of more may have been asked for before.
  std::vector<nlohmann::ordered_json> Items(int64_t num_items) const;
  absl::Status Write(const std::string& name, const std::string& contents) const;
  const std::filesystem::path& path() const { return folder_; }

 private:
  explicit EvaluationFolder(std::filesystem::path folder) : folder_(std::move(folder)) {}

  const std::filesystem::path folder_;
  mutable absl::Mutex mutex_;
  std::map<int64_t, nlohmann::ordered_json> items_;
};

// What is to be done for the items of these numbers; returns one object each, with its "id".
using EvaluateBatch =
    std::function<absl::StatusOr<std::vector<nlohmann::ordered_json>>(std::span<const int64_t> ids)>;

// Evaluates the items 0 to num_items - 1 that `folder` does not hold yet, `batch` at a time and several
// batches at once, and shows a bar on stderr unless `quiet`. Stops at the first error; what was done before
// it is kept.
absl::Status EvaluateMissing(EvaluationFolder& folder, int64_t num_items, int batch, const std::string& label,
                             bool quiet, const EvaluateBatch& evaluate);

}  // namespace almost::cli
