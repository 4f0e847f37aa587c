#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

// What a service counts, and where Prometheus fetches it. Conventions: prefix almost_, base units, _total on
// counters only, labels from enums and configured names, never from requests. The catalogue is
// common/docs/metrics.md.
namespace almost {

// Upper edges for latencies of calls, in seconds: 1 ms to 2 min, a factor of about 2.
const prometheus::Histogram::BucketBoundaries& LatencyBuckets();

// Series of which several places know a part. `reason`: queue_full or unauthenticated.
prometheus::Counter& RejectedRequests(prometheus::Registry& registry, const std::string& reason);
// Set before each scrape by services that have a queue.
prometheus::Gauge& QueueDepth(prometheus::Registry& registry);

// Serves /metrics (text exposition format; `exported` and ProcessMetrics), /healthz (200 while the process
// lives) and /readyz (200 while `ready` says so, else 503). Stops when destroyed.
class MetricsServer {
 public:
  // `listen` is host:port; port 0 takes a free one. kUnavailable: the address is in use. `exported` and what
  // `ready` refers to must outlive the server.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& listen,
                                                              const prometheus::Collectable& exported,
                                                              std::function<bool()> ready,
                                                              std::function<void()> before_scrape = nullptr);
  ~MetricsServer();
  int port() const;

 private:
  struct Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace almost
