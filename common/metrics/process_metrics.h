#pragma once

#include <vector>

#include "prometheus/collectable.h"

namespace almost {

// process_*, as the client libraries of Prometheus name it: CPU time, memory, open files and start of this
// process, read from /proc at each scrape. What cannot be read is left out. Thread-safe.
class ProcessMetrics final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override;
};

}  // namespace almost
