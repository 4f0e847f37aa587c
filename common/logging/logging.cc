#include "common/logging/logging.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/logging/trace.h"

namespace almost::log {
namespace {

// Replaced by Start; before it, lines carry no service.
struct Sink {
  std::string service;
  std::shared_ptr<spdlog::logger> logger;
};
Sink& TheSink() {
  static auto* sink = [] {
    auto* made = new Sink{
        "", std::make_shared<spdlog::logger>("almost", std::make_shared<spdlog::sinks::stderr_sink_mt>())};
    made->logger->set_pattern("%v");
    made->logger->flush_on(spdlog::level::info);
    return made;
  }();
  return *sink;
}

void Write(spdlog::level::level_enum level, const char* name, absl::string_view event,
           const nlohmann::ordered_json& fields) {
  Sink& sink = TheSink();
  if (!sink.logger->should_log(level)) return;
  nlohmann::ordered_json line = {
      {"time", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone())},
      {"level", name},
      {"service", sink.service},
      {"event", std::string(event)}};
  if (const Trace& trace = CurrentTrace(); !trace.trace_id.empty()) line["trace_id"] = trace.trace_id;
  if (fields.is_object()) line.update(fields);
  // Bytes that are not UTF-8 must not lose the line.
  sink.logger->log(level, line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

}  // namespace

absl::Status Start(absl::string_view service, absl::string_view level) {
  Sink& sink = TheSink();
  sink.service = std::string(service);
  for (const auto& [name, value] :
       {std::pair{"debug", spdlog::level::debug}, std::pair{"info", spdlog::level::info},
        std::pair{"warning", spdlog::level::warn}, std::pair{"error", spdlog::level::err}}) {
    if (level != name) continue;
    sink.logger->set_level(value);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("log_level: must be debug, info, warning or error, got ", level));
}

void Debug(absl::string_view event, const nlohmann::ordered_json& fields) {
  Write(spdlog::level::debug, "debug", event, fields);
}
void Info(absl::string_view event, const nlohmann::ordered_json& fields) {
  Write(spdlog::level::info, "info", event, fields);
}
void Warning(absl::string_view event, const nlohmann::ordered_json& fields) {
  Write(spdlog::level::warn, "warning", event, fields);
}
void Error(absl::string_view event, const nlohmann::ordered_json& fields) {
  Write(spdlog::level::err, "error", event, fields);
}

}  // namespace almost::log
