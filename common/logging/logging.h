#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

// One JSON object a line on stderr: time, level, service, event, trace_id where the thread works for a trace,
// and the event's own fields. Prompts, completions and secrets are not fields. Thread-safe.
namespace almost::log {

// Once, before the first line. `level`: debug, info, warning or error; kInvalidArgument otherwise.
absl::Status Start(absl::string_view service, absl::string_view level);

void Debug(absl::string_view event, const nlohmann::ordered_json& fields = {});
void Info(absl::string_view event, const nlohmann::ordered_json& fields = {});
void Warning(absl::string_view event, const nlohmann::ordered_json& fields = {});
void Error(absl::string_view event, const nlohmann::ordered_json& fields = {});

}  // namespace almost::log
