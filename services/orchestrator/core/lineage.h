#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "almost/orchestrator/v1/orchestrator.pb.h"
#include "common/storage/artifact_store.h"

namespace almost::orchestrator {

// Where the artifact or line `name` (as in GetLineageRequest) came from, or with `descendants` what came of
// it: nearest nodes first, each once, `limit` of them from number `start` on; a next_page_token (the number
// of the first one after) where there are more. A line leads to lines: a comparison to its two responses and
// their prompt, a demonstration to its candidates and its prompt, and from there to whole artifacts and
// models. Sources outside the store (a vanilla model's weights, a demonstration file) are nodes without
// inputs. kInvalidArgument: not such a name; kNotFound: no such artifact or line.
absl::StatusOr<v1::GetLineageResponse> Lineage(ArtifactStore& store, absl::string_view name, bool descendants,
                                               int64_t start = 0, int64_t limit = 1000);

}  // namespace almost::orchestrator
