#pragma once

#include <string>

#include "nlohmann/json.hpp"

namespace almost::orchestrator {

// The run's report: one HTML page that needs no network and no other file. The page (report.js, compiled
// in) draws itself from `data`, which it carries as JSON; every section whose data is missing says so.
//
// Keys of `data`, all optional:
//   run, display_name, baseline: text; recipe: the recipe as text
//   configurations: [{id, model, demonstrations, shots}]
//   stages: [{id, seconds, items_done, items_failed, cached_from, cost: {name: number},
//            figures: {name: number}}]
//   artifacts: [{name: "stage/name", digest, kind, size_bytes, inputs: {name: digest}}]
//   evaluation: evaluation.json (services/orchestrator/core/evaluation.h)
//   curves: {stage: [{step, metric: number, …}]}
//   samples: lines of answers.jsonl, without their candidates
//
// Any text in `data` is safe: it cannot end the script element that holds it, and the page shows it as text.
// Text that is not UTF-8 is shown with replacement characters.
std::string RenderReport(const nlohmann::ordered_json& data);

}  // namespace almost::orchestrator
