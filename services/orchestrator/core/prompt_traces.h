#pragma once

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "services/orchestrator/core/stage.h"

namespace almost::orchestrator {

// What came of at most `num_traces` prompts, evenly spread over those that were both answered and played as
// dialogues (or either, where none was both), for the report to show:
//   [{id, prompt, responses: [{config, response, num_tokens, bad_reason}],
//     pairs: [{meta, drop_reason}], candidates: [{text, score, bad_reason, chosen}] of the first turn,
//     dialogue: null or {drop_reason, score}}]
absl::StatusOr<nlohmann::ordered_json> PromptTraces(const StageContext& context, size_t num_traces);

}  // namespace almost::orchestrator
