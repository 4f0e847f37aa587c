#pragma once

#include <vector>

#include "prometheus/collectable.h"
#include "prometheus/metric_family.h"

namespace almost::generation {

// What `registry` holds, and once more under the names and labels of vLLM 0.10 and later (vllm:*, model_name)
// those of the generation service's series that vLLM has too, so that its dashboards and the load balancers
// that read them work (--metrics_compat=vllm). Thread-safe; `registry` must outlive it.
class VllmMetrics : public prometheus::Collectable {
 public:
  explicit VllmMetrics(const prometheus::Collectable& registry) : registry_(registry) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const prometheus::Collectable& registry_;
};

}  // namespace almost::generation
