#include "services/orchestrator/core/preference_pairs.h"

namespace almost::orchestrator {

using nlohmann::ordered_json;

std::optional<ordered_json> PreferencePair(const ordered_json& dialogue, double min_margin) {
  if (dialogue.at("turns").empty()) return std::nullopt;
  const auto score = [](const ordered_json& candidate) { return candidate.at("score").get<double>(); };
  const ordered_json *best = nullptr, *worst = nullptr;
  for (const ordered_json& each : dialogue.at("turns").front().at("candidates")) {
    if (each.at("bad_reason") != "") continue;
    if (best == nullptr || score(each) > score(*best)) best = &each;
    if (worst == nullptr || score(each) < score(*worst)) worst = &each;
  }
  if (best == nullptr || !(score(*best) - score(*worst) > min_margin)) return std::nullopt;
  return ordered_json{{"prompt", dialogue.at("messages").front().at("content")},
                      {"chosen", best->at("text")},
                      {"rejected", worst->at("text")},
                      {"prompt_id", dialogue.at("prompt_id")},
                      {"chosen_score", best->at("score")},
                      {"rejected_score", worst->at("score")}};
}

}  // namespace almost::orchestrator
