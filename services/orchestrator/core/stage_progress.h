#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "almost/orchestrator/v1/orchestrator.pb.h"
#include "common/storage/journal.h"

namespace almost::orchestrator {

// Where a stage of a run stands: what the journal keeps of it besides its items.
struct StageProgress {
  v1::Stage shown;                                             // as GetRun shows it
  std::vector<std::pair<std::string, std::string>> artifacts;  // name, digest
  struct ModelBits {
    std::string digest;
    std::string numerics_id;
  };
  std::map<std::string, ModelBits> models;  // by role: what its answers came from

  StageRecord ToRecord() const;
  // kDataLoss names the stage.
  static absl::StatusOr<StageProgress> FromRecord(const StageRecord& record);
};

}  // namespace almost::orchestrator
