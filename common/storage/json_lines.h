#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

// Datasets are JSON Lines: one object a line, keys in the order they were set, floats written shortest such
// that they read back to the same bits.
namespace almost {

// Adds one line to `lines`. kInvalidArgument: text that is not UTF-8, or a number that is not finite (JSON
// has neither); nothing was added.
absl::Status AppendJsonLine(const nlohmann::ordered_json& value, std::string* lines);

// Calls `use` for every line with its number from 0; stops at its first error. Blank lines are an error.
// kDataLoss: line N is not a JSON object; `name` says of which file, and `num_before` how many lines of it
// come before these.
absl::Status ForEachJsonLine(absl::string_view name, absl::string_view lines,
                             const std::function<absl::Status(int64_t, const nlohmann::ordered_json&)>& use,
                             int64_t num_before = 0);

}  // namespace almost
