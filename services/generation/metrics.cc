#include "services/generation/metrics.h"

#include "common/metrics/metrics_server.h"

namespace almost::generation {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;
using prometheus::Labels;

// vLLM's edges, so that dashboards can be compared.
const Buckets kFirstToken = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                             0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10};
const Buckets kInterToken = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01,
                             0.025,  0.05,    0.1,    0.25,  0.5,    1};
const Buckets kTokens = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000};   // 1 to 10,000 tokens
const Buckets kBatchTokens = {1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};  // 1 to 8,192 tokens

prometheus::Family<prometheus::Histogram>& AddHistogram(prometheus::Registry& registry, const char* name,
                                                        const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}
prometheus::Family<prometheus::Counter>& AddCounter(prometheus::Registry& registry, const char* name,
                                                    const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}
prometheus::Family<prometheus::Gauge>& AddGauge(prometheus::Registry& registry, const char* name,
                                                const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}

Labels With(Labels labels, const char* finish_reason) {
  labels["finish_reason"] = finish_reason;
  return labels;
}

}  // namespace

struct Families {
  explicit Families(prometheus::Registry& r)
      : batch_tokens(AddHistogram(r, "almost_generation_batch_tokens", "Tokens of a step of the engine.")),
        queue(AddHistogram(r, "almost_generation_queue_seconds",
                           "From a sequence's arrival to the first step it is in.")),
        prefill(AddHistogram(r, "almost_generation_prefill_seconds",
                             "From a completion's first step to its first token.")),
        decode(AddHistogram(r, "almost_generation_decode_seconds",
                            "From a completion's first token to its last.")),
        time_to_first_token(AddHistogram(r, "almost_generation_time_to_first_token_seconds",
                                         "From a request's arrival to its first token.")),
        inter_token(AddHistogram(r, "almost_generation_inter_token_latency_seconds",
                                 "Between consecutive tokens of a completion.")),
        e2e(AddHistogram(r, "almost_generation_e2e_latency_seconds", "From a request's arrival to its end.")),
        prompt_length(AddHistogram(r, "almost_generation_request_prompt_tokens", "Tokens of prompts.")),
        output_length(AddHistogram(r, "almost_generation_request_output_tokens", "Tokens of completions.")),
        finished(AddCounter(r, "almost_generation_finished_total", "Completions, by why they ended.")),
        prompt_tokens(AddCounter(r, "almost_generation_prompt_tokens_total", "Prompt tokens taken in.")),
        output_tokens(AddCounter(r, "almost_generation_output_tokens_total", "Tokens drawn.")),
        preemptions(
            AddCounter(r, "almost_generation_preemptions_total", "Sequences set back for lack of blocks.")),
        cache_queries(AddCounter(r, "almost_generation_prefix_cache_queries_total",
                                 "Prompt tokens looked for in the cache.")),
        cache_hits(AddCounter(r, "almost_generation_prefix_cache_hits_total",
                              "Prompt tokens whose keys and values were there already.")),
        running(AddGauge(r, "almost_generation_requests_running", "Sequences in the batch.")),
        waiting(AddGauge(r, "almost_generation_requests_waiting", "Sequences waiting for a place.")),
        cache_usage(
            AddGauge(r, "almost_generation_kv_cache_usage_ratio", "Share of KV-cache blocks in use.")) {}

  prometheus::Family<prometheus::Histogram>&batch_tokens, &queue, &prefill, &decode, &time_to_first_token,
      &inter_token, &e2e, &prompt_length, &output_length;
  prometheus::Family<prometheus::Counter>&finished, &prompt_tokens, &output_tokens, &preemptions,
      &cache_queries, &cache_hits;
  prometheus::Family<prometheus::Gauge>&running, &waiting, &cache_usage;
};

ModelMetrics::ModelMetrics(Families& families, const std::string& model)
    : families_(families),
      labels_({{"model", model}}),
      batch_tokens_(families.batch_tokens, labels_, kBatchTokens),
      queue_(families.queue, labels_, LatencyBuckets()),
      prefill_(families.prefill, labels_, LatencyBuckets()),
      decode_(families.decode, labels_, LatencyBuckets()),
      time_to_first_token_(families.time_to_first_token, labels_, kFirstToken),
      inter_token_(families.inter_token, labels_, kInterToken),
      e2e_(families.e2e, labels_, LatencyBuckets()),
      prompt_length_(families.prompt_length, labels_, kTokens),
      output_length_(families.output_length, labels_, kTokens),
      finished_by_stop_(families.finished, With(labels_, "stop")),
      finished_by_length_(families.finished, With(labels_, "length")),
      prompt_tokens_(families.prompt_tokens, labels_),
      output_tokens_(families.output_tokens, labels_),
      preemptions_(families.preemptions, labels_),
      cache_queries_(families.cache_queries, labels_),
      cache_hits_(families.cache_hits, labels_) {}

void ModelMetrics::Finished(int num_prompt_tokens, const engine::Candidate& candidate,
                            absl::Duration since_arrival) {
  e2e_->Observe(absl::ToDoubleSeconds(since_arrival));
  prompt_length_->Observe(num_prompt_tokens);
  output_length_->Observe(static_cast<double>(candidate.token_ids.size()));
  const bool stopped = candidate.finish_reason == engine::FinishReason::kStop;
  (stopped ? finished_by_stop_ : finished_by_length_)->Increment();
}

ModelMetrics::Gauges::Gauges(Families& families, const Labels& labels)
    : running(families.running, labels),
      waiting(families.waiting, labels),
      cache_usage(families.cache_usage, labels) {}

void ModelMetrics::Followed::Follow(int64_t total) {
  if (total < seen) seen = 0;
  counter->Increment(static_cast<double>(total - seen));
  seen = total;
}

void ModelMetrics::Loaded(const engine::EngineStats& stats) {
  if (!gauges_) gauges_.emplace(families_, labels_);
  gauges_->running->Set(stats.running_sequences);
  gauges_->waiting->Set(stats.waiting_sequences);
  gauges_->cache_usage->Set(stats.kv_cache_usage);
  prompt_tokens_.Follow(stats.prompt_tokens);
  output_tokens_.Follow(stats.output_tokens);
  preemptions_.Follow(stats.preemptions);
  cache_queries_.Follow(stats.prefix_query_tokens);
  cache_hits_.Follow(stats.prefix_hit_tokens);
}

void ModelMetrics::Unloaded() {
  gauges_.reset();
  for (Followed* counter : {&prompt_tokens_, &output_tokens_, &preemptions_, &cache_queries_, &cache_hits_}) {
    counter->seen = 0;
  }
}

Metrics::Metrics(prometheus::Registry& registry)
    : families_(std::make_unique<Families>(registry)),
      queue_(registry),
      too_large_(RejectedRequests(registry, "too_large")) {}

Metrics::~Metrics() = default;

std::shared_ptr<ModelMetrics> Metrics::Of(const std::string& model) {
  const absl::MutexLock lock(&mutex_);
  std::shared_ptr<ModelMetrics>& metrics = models_[model].metrics;
  if (metrics == nullptr) metrics = std::make_shared<ModelMetrics>(*families_, model);
  return metrics;
}

void Metrics::Observe(const ModelRegistry& models, Clock::time_point now) {
  const std::map<std::string, engine::EngineStats> loaded = models.Stats();
  queue_.Observe(loaded);
  const absl::MutexLock lock(&mutex_);
  for (auto it = models_.begin(); it != models_.end();) {
    auto& [name, model] = *it;
    if (const auto stats = loaded.find(name); stats != loaded.end()) {
      model.unloaded.reset();
      model.metrics->Loaded(stats->second);
    } else if (!model.unloaded) {
      model.unloaded = now;
      model.metrics->Unloaded();
    } else if (now - *model.unloaded >= kKeptAfterUnload && model.metrics.use_count() == 1) {
      it = models_.erase(it);
      continue;
    }
    ++it;
  }
}

}  // namespace almost::generation
