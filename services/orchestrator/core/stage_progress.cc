#include "services/orchestrator/core/stage_progress.h"

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/json_util.h"
#include "nlohmann/json.hpp"
#include "services/orchestrator/core/datasets.h"

namespace almost::orchestrator {

using nlohmann::json;

StageRecord StageProgress::ToRecord() const {
  json detail = {{"items_done", shown.items_done()},
                 {"items_total", shown.items_total()},
                 {"items_failed", shown.items_failed()},
                 {"seconds", shown.seconds()},
                 {"own_seconds", shown.own_seconds()},
                 {"figures", json::object()},
                 {"cached_from", shown.cached_from()},
                 {"cost", ToJson(shown.cost())},
                 {"artifacts", artifacts},
                 {"models", json::object()}};
  for (const auto& [name, value] : shown.figures()) detail["figures"][name] = value;
  for (const auto& [role, bits] : models) detail["models"][role] = {bits.digest, bits.numerics_id};
  return {shown.id(), shown.state(), detail.dump()};
}

absl::StatusOr<StageProgress> StageProgress::FromRecord(const StageRecord& record) {
  StageProgress progress;
  progress.shown.set_id(record.stage);
  progress.shown.set_state(static_cast<v1::StageState>(record.state));
  try {
    const json detail = json::parse(record.detail);
    progress.shown.set_items_done(detail.at("items_done"));
    progress.shown.set_items_total(detail.at("items_total"));
    progress.shown.set_items_failed(detail.at("items_failed"));
    progress.shown.set_seconds(detail.at("seconds"));
    progress.shown.set_own_seconds(detail.value("own_seconds", 0.0));
    progress.shown.set_cached_from(detail.value("cached_from", ""));
    // Not there in what version 1 of the journal's schema holds.
    if (detail.contains("cost") &&
        !google::protobuf::util::JsonStringToMessage(detail["cost"].dump(), progress.shown.mutable_cost())
             .ok()) {
      return absl::DataLossError(absl::StrCat("the journal's record of stage ", record.stage, ": its cost"));
    }
    for (const auto& [name, value] : detail.at("figures").items()) {
      // JSON has no NaN: a figure that was not finite is left out.
      if (value.is_number()) (*progress.shown.mutable_figures())[name] = value;
    }
    detail.at("artifacts").get_to(progress.artifacts);
    for (const auto& [role, bits] : detail.at("models").items()) {
      progress.models[role] = {bits.at(0), bits.at(1)};
    }
  } catch (const json::exception& error) {
    return absl::DataLossError(
        absl::StrCat("the journal's record of stage ", record.stage, ": ", error.what()));
  }
  return progress;
}

}  // namespace almost::orchestrator
