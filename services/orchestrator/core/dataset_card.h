#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "common/storage/artifact_store.h"

namespace almost::orchestrator {

// Whether `draft` is a dataset: its folder has a file of JSON Lines named for its kind, plain or gzip.
bool IsDataset(const ArtifactDraft& draft);

// The dataset's README.md in the form that dataset hubs expect: YAML front matter (licence, size category,
// files), then what a reader asks of it: rows and fields, what was kept and dropped and why, what it was made
// from by hash, the recipe that made it, and the file's own hash. A function of the dataset alone: no time,
// no host.
//
// `stage` made it; of `figures`, its counts, those named kept and dropped_… are shown. `license` is an SPDX
// id, or empty where nobody said. kDataLoss: a line that is not a JSON object.
absl::StatusOr<std::string> DatasetCard(const ArtifactDraft& draft, const std::string& stage,
                                        const std::map<std::string, double>& figures,
                                        const std::string& license);

}  // namespace almost::orchestrator
