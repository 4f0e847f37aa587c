#include "services/generation/metrics.h"

#include <map>
#include <string>

#include "common/metrics/metrics_server.h"

namespace almost::generation {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

// vLLM's edges, so that dashboards can be compared.
const Buckets kFirstToken = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                             0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10};
const Buckets kInterToken = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01,
                             0.025,  0.05,    0.1,    0.25,  0.5,    1};
const Buckets kTokens = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000};  // 1 to 10,000 tokens

prometheus::Histogram& AddHistogram(prometheus::Registry& registry, const char* name, const char* help,
                                    const Buckets& buckets) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, buckets);
}
prometheus::Family<prometheus::Counter>& AddCounter(prometheus::Registry& registry, const char* name,
                                                    const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}
prometheus::Family<prometheus::Gauge>& AddGauge(prometheus::Registry& registry, const char* name,
                                                const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}

// A counter that follows a total kept elsewhere; it stands still while a model loaded again catches up.
void Follow(prometheus::Counter& counter, int64_t total) {
  const double behind = static_cast<double>(total) - counter.Value();
  if (behind > 0) counter.Increment(behind);
}

const char* ReasonName(engine::FinishReason reason) {
  return reason == engine::FinishReason::kStop ? "stop" : "length";
}

}  // namespace

Metrics::Metrics(prometheus::Registry& registry)
    : time_to_first_token_(AddHistogram(registry, "almost_generation_time_to_first_token_seconds",
                                        "From a request's arrival to its first token.", kFirstToken)),
      inter_token_(AddHistogram(registry, "almost_generation_inter_token_latency_seconds",
                                "Between consecutive tokens of a completion.", kInterToken)),
      e2e_(AddHistogram(registry, "almost_generation_e2e_latency_seconds",
                        "From a request's arrival to its end.", LatencyBuckets())),
      prompt_length_(
          AddHistogram(registry, "almost_generation_request_prompt_tokens", "Tokens of prompts.", kTokens)),
      output_length_(AddHistogram(registry, "almost_generation_request_output_tokens",
                                  "Tokens of completions.", kTokens)),
      finished_(AddCounter(registry, "almost_generation_finished_total", "Completions, by why they ended.")),
      queue_depth_(QueueDepth(registry)),
      running_(AddGauge(registry, "almost_generation_requests_running", "Sequences in the batch.")),
      waiting_(AddGauge(registry, "almost_generation_requests_waiting", "Sequences waiting for a place.")),
      cache_usage_(
          AddGauge(registry, "almost_generation_kv_cache_usage_ratio", "Share of KV-cache blocks in use.")),
      prompt_tokens_(
          AddCounter(registry, "almost_generation_prompt_tokens_total", "Prompt tokens taken in.")),
      output_tokens_(AddCounter(registry, "almost_generation_output_tokens_total", "Tokens drawn.")),
      preemptions_(AddCounter(registry, "almost_generation_preemptions_total",
                              "Sequences set back for lack of blocks.")),
      cache_hits_(AddCounter(registry, "almost_generation_prefix_cache_hits_total",
                             "Prompt tokens whose keys and values were there already.")) {}

void Metrics::Finished(int num_prompt_tokens, const engine::Candidate& candidate,
                       absl::Duration since_arrival) {
  e2e_.Observe(absl::ToDoubleSeconds(since_arrival));
  prompt_length_.Observe(num_prompt_tokens);
  output_length_.Observe(static_cast<double>(candidate.token_ids.size()));
  finished_.Add({{"finish_reason", ReasonName(candidate.finish_reason)}}).Increment();
}

void Metrics::Observe(const ModelRegistry& models) {
  int waiting = 0;
  const absl::MutexLock lock(&mutex_);
  const std::map<std::string, engine::EngineStats> stats_by_model = models.Stats();
  for (const auto& [name, stats] : stats_by_model) {
    observed_.insert(name);
    waiting += stats.waiting_sequences;
    const prometheus::Labels labels = {{"model", name}};
    running_.Add(labels).Set(stats.running_sequences);
    waiting_.Add(labels).Set(stats.waiting_sequences);
    cache_usage_.Add(labels).Set(stats.kv_cache_usage);
    Follow(prompt_tokens_.Add(labels), stats.prompt_tokens);
    Follow(output_tokens_.Add(labels), stats.output_tokens);
    Follow(preemptions_.Add(labels), stats.preemptions);
    Follow(cache_hits_.Add(labels), stats.prefix_hit_tokens);
  }
  queue_depth_.Set(waiting);
  for (auto name = observed_.begin(); name != observed_.end();) {
    if (stats_by_model.contains(*name)) {
      ++name;
      continue;
    }
    for (prometheus::Family<prometheus::Gauge>* family : {&running_, &waiting_, &cache_usage_}) {
      family->Remove(&family->Add({{"model", *name}}));
    }
    name = observed_.erase(name);
  }
}

}  // namespace almost::generation
