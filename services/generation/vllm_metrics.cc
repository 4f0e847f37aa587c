#include "services/generation/vllm_metrics.h"

#include <map>
#include <string>

namespace almost::generation {
namespace {

const std::map<std::string, std::string>& VllmNames() {
  static const auto& names = *new std::map<std::string, std::string>{
      {"almost_generation_requests_running", "vllm:num_requests_running"},
      {"almost_generation_requests_waiting", "vllm:num_requests_waiting"},
      {"almost_generation_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"},  // from 0 to 1 there too
      {"almost_generation_batch_tokens", "vllm:iteration_tokens_total"},       // a histogram there too
      {"almost_generation_queue_seconds", "vllm:request_queue_time_seconds"},
      {"almost_generation_prefill_seconds", "vllm:request_prefill_time_seconds"},
      {"almost_generation_decode_seconds", "vllm:request_decode_time_seconds"},
      {"almost_generation_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"},
      {"almost_generation_inter_token_latency_seconds", "vllm:inter_token_latency_seconds"},
      {"almost_generation_e2e_latency_seconds", "vllm:e2e_request_latency_seconds"},
      {"almost_generation_request_prompt_tokens", "vllm:request_prompt_tokens"},
      {"almost_generation_request_output_tokens", "vllm:request_generation_tokens"},
      {"almost_generation_prompt_tokens_total", "vllm:prompt_tokens_total"},
      {"almost_generation_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"},
      {"almost_generation_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"},
      {"almost_generation_output_tokens_total", "vllm:generation_tokens_total"},
      {"almost_generation_preemptions_total", "vllm:num_preemptions_total"},
      {"almost_generation_finished_total", "vllm:request_success_total"},
  };
  return names;
}

}  // namespace

std::vector<prometheus::MetricFamily> VllmMetrics::Collect() const {
  std::vector<prometheus::MetricFamily> families = registry_.Collect(), aliases;
  for (const prometheus::MetricFamily& family : families) {
    const auto name = VllmNames().find(family.name);
    if (name == VllmNames().end()) continue;
    prometheus::MetricFamily& alias = aliases.emplace_back(family);
    alias.name = name->second;
    for (prometheus::ClientMetric& metric : alias.metric) {
      for (prometheus::ClientMetric::Label& label : metric.label) {
        if (label.name == "model") label.name = "model_name";
        if (label.name == "finish_reason") label.name = "finished_reason";
      }
    }
  }
  families.insert(families.end(), aliases.begin(), aliases.end());
  return families;
}

}  // namespace almost::generation
