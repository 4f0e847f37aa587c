#include "common/metrics/metrics_server.h"

#include <CivetServer.h>
#include <prometheus/text_serializer.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/metrics/process_metrics.h"

namespace almost {
namespace {

class Page : public CivetHandler {
 public:
  using Answer = std::function<std::pair<int, std::string>()>;
  explicit Page(Answer answer) : answer_(std::move(answer)) {}

  bool handleGet(CivetServer*, mg_connection* connection) override {
    const auto [code, body] = answer_();
    mg_printf(
        connection,
        "HTTP/1.1 %d %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: %zu\r\n"
        "Connection: close\r\n\r\n",
        code, code == 200 ? "OK" : "Service Unavailable", body.size());
    mg_write(connection, body.data(), body.size());
    return true;
  }

 private:
  const Answer answer_;
};

}  // namespace

const prometheus::Histogram::BucketBoundaries& LatencyBuckets() {
  static const auto* buckets = new prometheus::Histogram::BucketBoundaries{
      0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120};
  return *buckets;
}

prometheus::Counter& RejectedRequests(prometheus::Registry& registry, const std::string& reason) {
  return prometheus::BuildCounter()
      .Name("almost_requests_rejected_total")
      .Help("Requests refused, by reason.")
      .Register(registry)
      .Add({{"reason", reason}});
}

prometheus::Gauge& QueueDepth(prometheus::Registry& registry) {
  return prometheus::BuildGauge()
      .Name("almost_queue_depth")
      .Help("Pieces of work taken in and not begun.")
      .Register(registry)
      .Add({});
}

struct MetricsServer::Impl {
  Impl(const prometheus::Collectable& exported, std::function<bool()> ready,
       std::function<void()> before_scrape)
      : metrics([&exported, before_scrape = std::move(before_scrape)] {
          if (before_scrape) before_scrape();
          std::vector<prometheus::MetricFamily> families = exported.Collect();
          for (prometheus::MetricFamily& family : ProcessMetrics().Collect()) {
            families.push_back(std::move(family));
          }
          return std::pair(200, prometheus::TextSerializer().Serialize(families));
        }),
        healthz([] { return std::pair(200, std::string("ok\n")); }),
        readyz([ready = std::move(ready)] {
          return ready() ? std::pair(200, std::string("ready\n"))
                         : std::pair(503, std::string("not ready\n"));
        }) {}

  Page metrics;
  Page healthz;
  Page readyz;
  std::unique_ptr<CivetServer> server;
};

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MetricsServer::~MetricsServer() = default;

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& listen,
                                                                    const prometheus::Collectable& exported,
                                                                    std::function<bool()> ready,
                                                                    std::function<void()> before_scrape) {
  auto impl = std::make_unique<Impl>(exported, std::move(ready), std::move(before_scrape));
  try {
    impl->server = std::make_unique<CivetServer>(std::vector<std::string>{
        "listening_ports", listen, "num_threads", "2", "request_timeout_ms", "5000"});
  } catch (const CivetException&) {
    return absl::UnavailableError(
        absl::StrCat("metrics_listen: cannot listen on ", listen, "; is the address in use?"));
  }
  impl->server->addHandler("/metrics", impl->metrics);
  impl->server->addHandler("/healthz", impl->healthz);
  impl->server->addHandler("/readyz", impl->readyz);
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl)));
}

int MetricsServer::port() const { return impl_->server->getListeningPorts().at(0); }

}  // namespace almost
