#pragma once

#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/engine/engine.h"
#include "common/serving/model_registry.h"
#include "prometheus/registry.h"

namespace almost::generation {

// almost_generation_*: what the generation service counts. Labels: model (a configured name), finish_reason.
// Thread-safe.
class Metrics {
 public:
  explicit Metrics(prometheus::Registry& registry);

  void FirstToken(absl::Duration since_arrival) {
    time_to_first_token_.Observe(absl::ToDoubleSeconds(since_arrival));
  }
  void NextToken(absl::Duration since_last) { inter_token_.Observe(absl::ToDoubleSeconds(since_last)); }
  void Finished(int num_prompt_tokens, const engine::Candidate& candidate, absl::Duration since_arrival);
  // Takes over the engines' own counts; called before each scrape. Gauges of unloaded models go.
  void Observe(const ModelRegistry& models);

 private:
  prometheus::Histogram &time_to_first_token_, &inter_token_, &e2e_, &prompt_length_, &output_length_;
  prometheus::Family<prometheus::Counter>& finished_;
  prometheus::Gauge& queue_depth_;
  prometheus::Family<prometheus::Gauge>&running_, &waiting_, &cache_usage_;
  prometheus::Family<prometheus::Counter>&prompt_tokens_, &output_tokens_, &preemptions_, &cache_hits_;
  absl::Mutex mutex_;
  std::set<std::string> observed_ ABSL_GUARDED_BY(mutex_);  // models with gauges
};

}  // namespace almost::generation
