#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/engine/engine.h"
#include "common/metrics/series.h"
#include "common/serving/model_registry.h"
#include "common/serving/queue_metrics.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

// almost_generation_*: what the generation service counts. Labels: model (a configured name), finish_reason.
namespace almost::generation {

struct Families;

// What is counted of one model; its series go with this object. Its engine tells it a part, the handlers the
// rest. Thread-safe.
class ModelMetrics : public engine::EngineObserver {
 public:
  ModelMetrics(Families& families, const std::string& model);

  void StepScheduled(int num_tokens) override { batch_tokens_->Observe(num_tokens); }
  void SequenceStarted(absl::Duration waited) override { queue_->Observe(absl::ToDoubleSeconds(waited)); }
  void CandidateFinished(absl::Duration prefill, absl::Duration decode) override {
    prefill_->Observe(absl::ToDoubleSeconds(prefill));
    decode_->Observe(absl::ToDoubleSeconds(decode));
  }

  void FirstToken(absl::Duration since_arrival) {
    time_to_first_token_->Observe(absl::ToDoubleSeconds(since_arrival));
  }
  void NextToken(absl::Duration since_last) { inter_token_->Observe(absl::ToDoubleSeconds(since_last)); }
  void Finished(int num_prompt_tokens, const engine::Candidate& candidate, absl::Duration since_arrival);

 private:
  friend class Metrics;

  // A counter of what an engine counts. An engine that takes the place of another begins at 0.
  struct Followed {
    Followed(prometheus::Family<prometheus::Counter>& family, const prometheus::Labels& labels)
        : counter(family, labels) {}
    void Follow(int64_t total);

    Series<prometheus::Counter> counter;
    int64_t seen = 0;
  };
  struct Gauges {
    Gauges(Families& families, const prometheus::Labels& labels);
    Series<prometheus::Gauge> running, waiting, cache_usage;
  };
  void Loaded(const engine::EngineStats& stats);
  void Unloaded();

  Families& families_;
  const prometheus::Labels labels_;
  Series<prometheus::Histogram> batch_tokens_, queue_, prefill_, decode_, time_to_first_token_, inter_token_,
      e2e_, prompt_length_, output_length_;
  Series<prometheus::Counter> finished_by_stop_, finished_by_length_;
  // Used while Metrics is locked.
  Followed prompt_tokens_, output_tokens_, preemptions_, cache_queries_, cache_hits_;
  std::optional<Gauges> gauges_;  // while it is loaded
};

// All of them. Thread-safe; outlives the models.
class Metrics {
 public:
  using Clock = std::chrono::steady_clock;
  // How long an unloaded model's counters and histograms stay: many scrapes.
  static constexpr Clock::duration kKeptAfterUnload = std::chrono::minutes(10);

  explicit Metrics(prometheus::Registry& registry);
  ~Metrics();

  std::shared_ptr<ModelMetrics> Of(const std::string& model);
  // An item of a call was refused since it is longer than the model or its cache allows.
  void TooLarge() { too_large_.Increment(); }
  // Takes over the engines' own counts; called before each scrape. Gauges of unloaded models go at once, the
  // rest of them after kKeptAfterUnload.
  void Observe(const ModelRegistry& models, Clock::time_point now = Clock::now());

 private:
  struct Model {
    std::shared_ptr<ModelMetrics> metrics;
    std::optional<Clock::time_point> unloaded;
  };
  const std::unique_ptr<Families> families_;
  QueueMetrics queue_;
  prometheus::Counter& too_large_;
  absl::Mutex mutex_;
  std::map<std::string, Model> models_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace almost::generation
