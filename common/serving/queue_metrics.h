#pragma once

#include <map>
#include <string>

#include "common/engine/engine.h"
#include "common/metrics/metrics_server.h"

namespace almost {

// What waits for a service's models, all together. Set before each scrape; thread-safe.
class QueueMetrics {
 public:
  explicit QueueMetrics(prometheus::Registry& registry)
      : depth_(QueueDepth(registry)),
        tokens_(Gauge(registry, "almost_queue_tokens",
                      "Tokens of what is queued or running, prompts and max_new_tokens together.")),
        max_tokens_(Gauge(registry, "almost_queue_tokens_limit",
                          "Tokens that may be queued or running: --max_queued_tokens for each model.")) {}

  // `stats` of each loaded model.
  void Observe(const std::map<std::string, engine::EngineStats>& stats) {
    double depth = 0, tokens = 0, max_tokens = 0;
    for (const auto& [name, of] : stats) {
      depth += of.waiting_sequences;
      tokens += static_cast<double>(of.queued_tokens);
      max_tokens += static_cast<double>(of.max_queued_tokens);
    }
    depth_.Set(depth);
    tokens_.Set(tokens);
    max_tokens_.Set(max_tokens);
  }

 private:
  static prometheus::Gauge& Gauge(prometheus::Registry& registry, const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
  }

  prometheus::Gauge &depth_, &tokens_, &max_tokens_;
};

}  // namespace almost
