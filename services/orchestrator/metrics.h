#pragma once

#include <map>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics/metrics_server.h"
#include "common/metrics/series.h"
#include "nlohmann/json.hpp"
#include "services/orchestrator/core/run_execution.h"

namespace almost::orchestrator {

// almost_orchestrator_*: what the orchestrator counts. Labels: states and codes from enums, stages of the
// method, filter reasons from fixed lists, figures by their names in summary.json; ids of runs while they are
// at work. Thread-safe.
class Metrics : public RunObserver {
 public:
  explicit Metrics(prometheus::Registry& registry)
      : runs_(Gauge(registry, "almost_orchestrator_runs", "Runs by state, of this process.")),
        items_(Gauge(registry, "almost_orchestrator_items", "Work items of the stage at work, by state.")),
        progress_(Gauge(registry, "almost_orchestrator_stage_progress_ratio",
                        "Share of a stage's items that are done.")),
        run_progress_(
            Gauge(registry, "almost_orchestrator_run_progress_ratio",
                  "Share of the items of the stage at work that are done, of the runs now at work.")),
        figures_(Gauge(registry, "almost_orchestrator_summary", "Headline figures of the latest run.")),
        tokens_(Counter(registry, "almost_orchestrator_tokens_total",
                        "Tokens that runs had services read, draw or learn from.")),
        scored_items_(Counter(registry, "almost_orchestrator_scored_items_total",
                              "Responses that runs had reward models score.")),
        judged_items_(Counter(registry, "almost_orchestrator_judged_items_total",
                              "Comparisons that runs had judges decide.")),
        device_seconds_(Counter(registry, "almost_orchestrator_device_seconds_total",
                                "Time in which services had work of runs, times their replicas.")),
        items_total_(
            Counter(registry, "almost_orchestrator_items_total", "Work items that ended, by outcome.")),
        retries_(Counter(registry, "almost_orchestrator_retries_total", "Calls tried again, by why.")),
        comparisons_(Counter(registry, "almost_orchestrator_comparisons_total",
                             "Pairs and responses, by what the filters said.")),
        stage_seconds_(prometheus::BuildHistogram()
                           .Name("almost_orchestrator_stage_seconds")
                           .Help("Time of a stage from its start to its artifacts.")
                           .Register(registry)) {}

  void StateChanged(const std::string& run, v1::RunState from, v1::RunState to) override {
    if (from != v1::RUN_STATE_UNSPECIFIED) runs_.Add({{"state", Name(v1::RunState_Name(from))}}).Decrement();
    if (to != v1::RUN_STATE_UNSPECIFIED) runs_.Add({{"state", Name(v1::RunState_Name(to))}}).Increment();
    if (to == v1::RUN_STATE_RUNNING || to == v1::RUN_STATE_PAUSED) return;
    const absl::MutexLock lock(&mutex_);
    at_work_.erase(run);
  }
  void StageChanged(const std::string& run, const v1::Stage& stage) override {
    const double total = static_cast<double>(stage.items_total());
    const double done = static_cast<double>(stage.items_done());
    const double failed = static_cast<double>(stage.items_failed());
    items_.Add({{"stage", stage.id()}, {"state", "done"}}).Set(done);
    items_.Add({{"stage", stage.id()}, {"state", "set_aside"}}).Set(failed);
    items_.Add({{"stage", stage.id()}, {"state", "waiting"}}).Set(total - done - failed);
    const double share = total > 0 ? (done + failed) / total : 0;
    if (total > 0) progress_.Add({{"stage", stage.id()}}).Set(share);
    const absl::MutexLock lock(&mutex_);
    if (stage.state() != v1::STAGE_STATE_RUNNING) {
      at_work_[run].erase(stage.id());
      return;
    }
    const auto [at_work, added] = at_work_[run].try_emplace(
        stage.id(), run_progress_, prometheus::Labels{{"run", run}, {"stage", stage.id()}});
    at_work->second->Set(share);
  }
  void Used(absl::string_view stage, const v1::Cost& cost) override {
    const std::string id(stage);
    const auto add = [&](prometheus::Family<prometheus::Counter>& family, prometheus::Labels labels,
                         double value) {
      if (value <= 0) return;
      labels["stage"] = id;
      family.Add(labels).Increment(value);
    };
    add(tokens_, {{"kind", "prompt"}}, static_cast<double>(cost.prompt_tokens()));
    add(tokens_, {{"kind", "generated"}}, static_cast<double>(cost.generated_tokens()));
    add(tokens_, {{"kind", "trained"}}, static_cast<double>(cost.trained_tokens()));
    add(scored_items_, {}, static_cast<double>(cost.scored_items()));
    add(judged_items_, {}, static_cast<double>(cost.judged_items()));
    add(device_seconds_, {}, cost.device_seconds());
  }
  void ItemEnded(absl::string_view stage, const absl::Status& status) override {
    items_total_.Add({{"stage", std::string(stage)}, {"outcome", status.ok() ? "done" : "error"}})
        .Increment();
  }
  void Retried(absl::string_view stage, const absl::Status& status) override {
    retries_.Add({{"stage", std::string(stage)}, {"code", absl::StatusCodeToString(status.code())}})
        .Increment();
  }
  void StagePublished(absl::string_view stage, double seconds,
                      const std::map<std::string, double>& figures) override {
    stage_seconds_
        .Add(
            {{"stage", std::string(stage)}},
            prometheus::Histogram::BucketBoundaries{1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000})
        .Observe(seconds);
    progress_.Add({{"stage", std::string(stage)}}).Set(1);
    if (stage != "comparisons") return;
    for (const auto& [name, count] : figures) {
      const bool dropped = absl::StartsWith(name, "dropped_");
      if (!dropped && name != "kept") continue;
      comparisons_
          .Add({{"filter", dropped ? name.substr(8) : "none"}, {"verdict", dropped ? "dropped" : "kept"}})
          .Increment(count);
    }
  }
  void Summarised(const std::string& summary_json) override {
    const nlohmann::json summary = nlohmann::json::parse(summary_json, nullptr, false);
    if (!summary.is_object()) return;
    for (const auto& [name, figure] : summary.items()) {
      if (figure.is_object() && figure.contains("value") && figure.at("value").is_number()) {
        figures_.Add({{"figure", name}}).Set(figure.at("value").get<double>());
      }
    }
  }

 private:
  static prometheus::Family<prometheus::Gauge>& Gauge(prometheus::Registry& registry, const char* name,
                                                      const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
  }
  static prometheus::Family<prometheus::Counter>& Counter(prometheus::Registry& registry, const char* name,
                                                          const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
  }
  // RUN_STATE_PAUSED -> paused.
  static std::string Name(std::string state) {
    state = state.substr(sizeof("RUN_STATE_") - 1);
    for (char& c : state) c = absl::ascii_tolower(c);
    return state;
  }

  prometheus::Family<prometheus::Gauge>&runs_, &items_, &progress_, &run_progress_, &figures_;
  prometheus::Family<prometheus::Counter>&tokens_, &scored_items_, &judged_items_, &device_seconds_;
  prometheus::Family<prometheus::Counter>&items_total_, &retries_, &comparisons_;
  prometheus::Family<prometheus::Histogram>& stage_seconds_;
  absl::Mutex mutex_;
  // By run, then by stage at work.
  std::map<std::string, std::map<std::string, Series<prometheus::Gauge>>> at_work_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace almost::orchestrator
