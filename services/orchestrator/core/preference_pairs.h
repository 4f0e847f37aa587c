#pragma once

#include <optional>

#include "nlohmann/json.hpp"

namespace almost::orchestrator {

// A pair for preference training (DPO), {prompt, chosen, rejected, prompt_id, chosen_score, rejected_score},
// out of a line of the candidates (stage.h): to the dialogue's opening prompt, the candidate with the highest
// score against the one with the lowest; of equals the first. Only candidates without a bad_reason count.
// None: the two scores are no more than `min_margin` apart, as those of a single candidate.
std::optional<nlohmann::ordered_json> PreferencePair(const nlohmann::ordered_json& dialogue,
                                                     double min_margin);

}  // namespace almost::orchestrator
