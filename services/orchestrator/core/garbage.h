#pragma once

#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "almost/orchestrator/v1/orchestrator.pb.h"
#include "common/storage/artifact_store.h"
#include "common/storage/journal.h"
#include "services/orchestrator/core/services.h"

namespace almost::orchestrator {

// As OrchestratorService.CollectGarbage; `keep` is what runs refer to (Orchestrator::KeptArtifacts). What
// else refers to an artifact: a job of the trainer that read or made it, and every artifact that stays and
// was made from it. A finished job that a run had made counts for as long as that run is in the journal.
absl::StatusOr<v1::CollectGarbageResponse> CollectGarbage(Journal& journal, Services& services,
                                                          ArtifactStore& store, std::set<std::string> keep,
                                                          const v1::CollectGarbageRequest& request);

}  // namespace almost::orchestrator
