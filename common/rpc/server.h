#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/metrics/metrics_server.h"
#include "grpcpp/grpcpp.h"

namespace almost {

// What every service lets its operator choose. Bound to flags by AddServerFlags.
struct ServerOptions {
  // Behaviour.
  std::string listen;          // host:port; port 0 takes a free one
  std::string metrics_listen;  // host:port of /metrics, /healthz, /readyz; empty: none
  std::string log_level = "info";
  bool reflection = true;
  // Security. Without a certificate the port speaks plain text: for loopback and for meshes that bring their
  // own TLS.
  std::string tls_cert, tls_key;  // PEM files
  std::string tls_client_ca;      // PEM file: clients must present a certificate it signed
  std::string token_file;         // clients must show the token in it (BearerToken); empty: no such check
  // Limits.
  int max_message_bytes = 64 << 20;
  int max_threads = 256;  // calls handled at once; gRPC itself refuses more, RESOURCE_EXHAUSTED
  double drain_seconds = 25;
  double max_connection_age_seconds = 60;  // then clients reconnect, and so find new replicas
};

// `listen` and `metrics_listen` are the service's defaults.
void AddServerFlags(CLI::App& app, ServerOptions& options, const std::string& listen,
                    const std::string& metrics_listen);

// SIGTERM and SIGINT wait for WaitForStop instead of ending the process. Call first thing in main, before any
// thread.
void BlockStopSignals();

// A running gRPC server with health (per service name), reflection, metrics and traces of every call, a
// token and limits. The order of a main: BlockStopSignals → parse → validate → Start → recover, load →
// SetReady → WaitForStop.
class Server {
 public:
  // A service and the full name under which its health is asked for, e.g.
  // v1::RewardService::service_full_name().
  struct Named {
    std::string name;
    grpc::Service* service;
  };

  // Listens, with health NOT_SERVING. /metrics shows `exported`, or `registry` where it is null. These,
  // `services` and what `before_scrape` (run before each fetch) refers to must outlive the server.
  // kUnavailable: an address is in use, named; kInvalidArgument: an option; kNotFound: a PEM file or the
  // token's.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const std::vector<Named>& services,
                                                       prometheus::Registry& registry,
                                                       std::function<void()> before_scrape = nullptr,
                                                       const prometheus::Collectable* exported = nullptr);
  ~Server();

  void SetReady();
  // Waits for SIGTERM or SIGINT, then drains: NOT_SERVING, half a second later no new calls, and calls under
  // way until drain_seconds. Clients that watch health lose no call.
  void WaitForStop();
  // The same without a signal.
  void Drain();

  int port() const;
  int metrics_port() const;  // 0 without metrics_listen

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace almost
