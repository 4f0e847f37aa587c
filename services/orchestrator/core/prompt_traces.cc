#include "services/orchestrator/core/prompt_traces.h"

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "common/base/status_macros.h"
#include "services/orchestrator/core/datasets.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

// Hands every line of a dataset to `use`, one at a time; none if the run has no such dataset.
absl::Status ForEachLine(const StageContext& context, absl::string_view stage, const std::string& name,
                         const std::function<void(const ordered_json&)>& use) {
  if (absl::IsNotFound(context.Input(stage, name).status())) return absl::OkStatus();
  return ForEachInDataset(context, stage, name, [&use](const ordered_json& line) {
    use(line);
    return absl::OkStatus();
  });
}

ordered_json Picked(const ordered_json& line, std::initializer_list<const char*> keys) {
  ordered_json picked = ordered_json::object();
  for (const char* const key : keys) picked[key] = line.at(key);
  return picked;
}

}  // namespace

absl::StatusOr<ordered_json> PromptTraces(const StageContext& context, size_t num_traces) {
  std::vector<bool> answered;  // by prompt
  std::vector<bool> played;
  const auto mark = [](const ordered_json& line, std::vector<bool>& prompts) {
    const size_t id = line.at("prompt_id");
    if (prompts.size() <= id) prompts.resize(id + 1);
    prompts[id] = true;
  };
  ALMOST_RETURN_IF_ERROR(ForEachLine(context, "responses", "responses",
                                     [&](const ordered_json& line) { mark(line, answered); }));
  ALMOST_RETURN_IF_ERROR(ForEachLine(context, "demonstrations", "candidates",
                                     [&](const ordered_json& line) { mark(line, played); }));
  const size_t num_prompts = std::max(answered.size(), played.size());
  answered.resize(num_prompts);
  played.resize(num_prompts);
  // Those that went all the way, or else any.
  std::vector<int64_t> known;
  for (const bool both : {true, false}) {
    if (!known.empty()) break;
    for (size_t id = 0; id < num_prompts; ++id) {
      if (both ? answered[id] && played[id] : answered[id] || played[id]) {
        known.push_back(static_cast<int64_t>(id));
      }
    }
  }
  std::map<int64_t, ordered_json> traces;
  const size_t shown = std::min(num_traces, known.size());
  for (size_t i = 0; i < shown; ++i) {
    const int64_t id = known[i * known.size() / shown];
    traces[id] = {{"id", id},
                  {"prompt", ""},
                  {"responses", ordered_json::array()},
                  {"pairs", ordered_json::array()},
                  {"candidates", ordered_json::array()},
                  {"dialogue", nullptr}};
  }
  const auto trace_of = [&traces](const ordered_json& line, const char* key) -> ordered_json* {
    const auto found = traces.find(line.at(key).get<int64_t>());
    return found == traces.end() ? nullptr : &found->second;
  };

  ALMOST_RETURN_IF_ERROR(ForEachLine(context, "prompts", "prompts", [&](const ordered_json& line) {
    if (ordered_json* const trace = trace_of(line, "id")) (*trace)["prompt"] = line.at("prompt");
  }));
  ALMOST_RETURN_IF_ERROR(ForEachLine(context, "responses", "responses", [&](const ordered_json& line) {
    if (ordered_json* const trace = trace_of(line, "prompt_id")) {
      (*trace)["responses"].push_back(Picked(line, {"config", "response", "num_tokens", "bad_reason"}));
    }
  }));
  for (const char* const name : {"comparisons", "dropped"}) {
    ALMOST_RETURN_IF_ERROR(ForEachLine(context, "comparisons", name, [&](const ordered_json& line) {
      if (ordered_json* const trace = trace_of(line, "prompt_id")) {
        (*trace)["pairs"].push_back(
            {{"meta", line.at("meta")}, {"drop_reason", line.value("drop_reason", "")}});
      }
    }));
  }
  ALMOST_RETURN_IF_ERROR(ForEachLine(context, "demonstrations", "candidates", [&](const ordered_json& line) {
    ordered_json* const trace = trace_of(line, "prompt_id");
    if (trace == nullptr) return;
    (*trace)["dialogue"] = Picked(line, {"drop_reason", "score"});
    if (line.at("turns").empty()) return;
    const ordered_json& turn = line.at("turns").front();
    for (size_t c = 0; c < turn.at("candidates").size(); ++c) {
      ordered_json candidate = Picked(turn.at("candidates")[c], {"text", "score", "bad_reason"});
      candidate["chosen"] = turn.at("chosen") == c;
      (*trace)["candidates"].push_back(std::move(candidate));
    }
  }));
  ordered_json all = ordered_json::array();
  for (auto& [id, trace] : traces) all.push_back(std::move(trace));
  return all;
}

}  // namespace almost::orchestrator
