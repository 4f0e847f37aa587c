#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

// A dataset's lines as rows to look at. Pure.
namespace almost::cli {

// A line of a dataset with what a reader wants beside it:
//   of a comparison: better and worse configuration, lengths and their difference, in code points
//   of a dialogue: its length, turns, and with candidates how far apart their scores are
//   of a response or a prompt: its length
// and for each: dataset, line (from 0), outcome ("kept", or why it was dropped or is BAD). Fields that it
// does not know come along as they are.
nlohmann::ordered_json RowOf(const std::string& dataset, int64_t line, const nlohmann::ordered_json& value);

// Marks the prompts that are like an earlier one: `near_duplicate_of`, the first whose ROUGE-L F1 is at least
// `threshold`; equal prompts are marked alike. The text compared is `prompt`, or a dialogue's first turn.
// `progress(done, total)` is called now and then.
void MarkNearDuplicates(std::vector<nlohmann::ordered_json>& rows, double threshold,
                        const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace almost::cli
