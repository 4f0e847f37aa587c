#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/metrics/metrics_server.h"
#include "common/serving/model_registry.h"
#include "common/serving/queue_metrics.h"

namespace almost::reward {

// almost_reward_*: what the reward service counts. Thread-safe.
class Metrics {
 public:
  explicit Metrics(prometheus::Registry& registry)
      : seconds_(prometheus::BuildHistogram()
                     .Name("almost_reward_score_seconds")
                     .Help("Time of a Score call in the service, waiting included.")
                     .Register(registry)
                     .Add({}, LatencyBuckets())),
        waits_(std::make_shared<Waits>(prometheus::BuildHistogram()
                                           .Name("almost_reward_queue_seconds")
                                           .Help("From a response's arrival to the first step it is in.")
                                           .Register(registry)
                                           .Add({}, LatencyBuckets()))),
        batch_tokens_(
            prometheus::BuildHistogram()
                .Name("almost_reward_batch_tokens")
                .Help("Tokens of a Score call.")
                .Register(registry)
                .Add({}, prometheus::Histogram::BucketBoundaries{16, 64, 256, 1024, 4096, 16384, 65536})),
        value_(
            prometheus::BuildHistogram()
                .Name("almost_reward_value")
                .Help("Normalised scores.")
                .Register(registry)
                .Add({}, prometheus::Histogram::BucketBoundaries{-4, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4})),
        items_(prometheus::BuildCounter()
                   .Name("almost_reward_items_total")
                   .Help("Responses asked about, by outcome.")
                   .Register(registry)),
        scored_(items_.Add({{"outcome", "scored"}})),
        failed_(items_.Add({{"outcome", "error"}})),
        nonfinite_(prometheus::BuildCounter()
                       .Name("almost_reward_nonfinite_total")
                       .Help("Outputs that were not a finite number.")
                       .Register(registry)
                       .Add({})),
        too_large_(RejectedRequests(registry, "too_large")),
        queue_(registry) {}

  // Of each model's engine.
  std::shared_ptr<engine::EngineObserver> observer() const { return waits_; }

  void Scored(double value) {
    scored_.Increment();
    value_.Observe(value);
  }
  void Failed(const absl::Status& status) {
    failed_.Increment();
    if (absl::IsOutOfRange(status)) too_large_.Increment();
  }
  void NonFinite() { nonfinite_.Increment(); }
  void Call(const std::vector<std::vector<int32_t>>& sequences, absl::Duration time) {
    size_t tokens = 0;
    for (const std::vector<int32_t>& sequence : sequences) tokens += sequence.size();
    batch_tokens_.Observe(static_cast<double>(tokens));
    seconds_.Observe(absl::ToDoubleSeconds(time));
  }
  // Called before each scrape.
  void Observe(const ModelRegistry& models) { queue_.Observe(models.Stats()); }

 private:
  struct Waits : engine::EngineObserver {
    explicit Waits(prometheus::Histogram& histogram) : seconds(histogram) {}
    void SequenceStarted(absl::Duration waited) override { seconds.Observe(absl::ToDoubleSeconds(waited)); }
    prometheus::Histogram& seconds;
  };
  prometheus::Histogram& seconds_;
  const std::shared_ptr<Waits> waits_;
  prometheus::Histogram &batch_tokens_, &value_;
  prometheus::Family<prometheus::Counter>& items_;
  prometheus::Counter &scored_, &failed_, &nonfinite_, &too_large_;
  QueueMetrics queue_;
};

}  // namespace almost::reward
