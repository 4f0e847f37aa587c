#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "almost/orchestrator/v1/orchestrator.pb.h"
#include "common/storage/artifact_store.h"

namespace almost::orchestrator {

// Where the artifact or line `name` (as in GetLineageRequest) came from, or with `descendants` what came of
// it: nearest nodes first, each once. A line leads to lines: a comparison to its two responses and their
// prompt, a demonstration to its candidates and its prompt, and from there to whole artifacts and models.
// Sources outside the store (a vanilla model's weights, a demonstration file) are nodes without inputs.
// kInvalidArgument: not such a name; kNotFound: no such artifact or line.
absl::StatusOr<std::vector<v1::LineageNode>> Lineage(ArtifactStore& store, absl::string_view name,
                                                     bool descendants);

}  // namespace almost::orchestrator
