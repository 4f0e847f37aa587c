#include "common/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/logging/logging.h"
#include "common/rpc/bearer_token.h"
#include "common/rpc/call_metrics.h"
#include "common/rpc/call_trace.h"

namespace almost {
namespace {

sigset_t StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

absl::StatusOr<std::string> ReadPem(absl::string_view option, const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(option, ": cannot read ", path));
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> Credentials(const ServerOptions& options) {
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return absl::InvalidArgumentError("tls_cert: needs tls_key, and tls_key needs tls_cert");
  }
  if (options.tls_cert.empty()) {
    if (!options.tls_client_ca.empty()) return absl::InvalidArgumentError("tls_client_ca: needs tls_cert");
    return PlainTextServerCredentials();
  }
  grpc::SslServerCredentialsOptions ssl(options.tls_client_ca.empty()
                                            ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                            : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  ALMOST_ASSIGN_OR_RETURN(pair.cert_chain, ReadPem("tls_cert", options.tls_cert));
  ALMOST_ASSIGN_OR_RETURN(pair.private_key, ReadPem("tls_key", options.tls_key));
  ssl.pem_key_cert_pairs.push_back(pair);
  if (!options.tls_client_ca.empty()) {
    ALMOST_ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadPem("tls_client_ca", options.tls_client_ca));
  }
  return grpc::SslServerCredentials(ssl);
}

// Time for clients that watch health to turn to other replicas.
constexpr absl::Duration kTurnAway = absl::Milliseconds(500);

// Of the server as a whole (the empty name) and of each service.
void SetHealth(grpc::Server& server, const std::vector<std::string>& names, bool serving) {
  grpc::HealthCheckServiceInterface* health = server.GetHealthCheckService();
  health->SetServingStatus("", serving);
  for (const std::string& name : names) health->SetServingStatus(name, serving);
}

}  // namespace

void AddServerFlags(CLI::App& app, ServerOptions& options, const std::string& listen,
                    const std::string& metrics_listen) {
  options.listen = listen;
  options.metrics_listen = metrics_listen;
  const std::string group = "Server";
  app.add_option("--listen", options.listen, "Address of the gRPC port")->capture_default_str()->group(group);
  app.add_option("--metrics_listen", options.metrics_listen,
                 "Address of /metrics, /healthz and /readyz; empty: none")
      ->capture_default_str()
      ->group(group);
  app.add_option("--log_level", options.log_level, "debug, info, warning or error")
      ->capture_default_str()
      ->group(group);
  app.add_flag("--reflection,!--no-reflection", options.reflection, "Offer gRPC reflection")->group(group);
  app.add_option("--tls_cert", options.tls_cert, "PEM file of the server's certificate chain")->group(group);
  app.add_option("--tls_key", options.tls_key, "PEM file of its key")->group(group);
  app.add_option("--tls_client_ca", options.tls_client_ca,
                 "PEM file: clients must show a certificate it signed")
      ->group(group);
  app.add_option("--token_file", options.token_file,
                 "File of a token that clients must show, and that calls to other services show")
      ->group(group);
  app.add_option("--max_message_bytes", options.max_message_bytes, "Largest message accepted")
      ->capture_default_str()
      ->group(group);
  app.add_option("--max_threads", options.max_threads, "Calls handled at once; more are refused")
      ->capture_default_str()
      ->group(group);
  app.add_option("--drain_seconds", options.drain_seconds, "How long calls under way may take after SIGTERM")
      ->capture_default_str()
      ->group(group);
  app.add_option("--max_connection_age_seconds", options.max_connection_age_seconds,
                 "Age at which connections are closed gently")
      ->capture_default_str()
      ->group(group);
}

void BlockStopSignals() {
  const sigset_t signals = StopSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

struct Server::Impl {
  ServerOptions options;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<MetricsServer> metrics;
  std::atomic<bool> ready = false;
  prometheus::Gauge* draining = nullptr;
  bool drained = false;
  std::vector<std::string> names;
  int port = 0;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() { Drain(); }
int Server::port() const { return impl_->port; }
int Server::metrics_port() const { return impl_->metrics == nullptr ? 0 : impl_->metrics->port(); }

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      const std::vector<Named>& services,
                                                      prometheus::Registry& registry,
                                                      std::function<void()> before_scrape,
                                                      const prometheus::Collectable* exported) {
  if (options.max_threads < 1) return absl::InvalidArgumentError("max_threads: must be at least 1");
  // Debian builds Abseil without NDEBUG, so that every Mutex, gRPC's too, keeps a graph of lock orders under
  // one lock of the process.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->draining = &prometheus::BuildGauge()
                        .Name("almost_draining")
                        .Help("1 from the signal to stop until the end.")
                        .Register(registry)
                        .Add({});
  ALMOST_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials, Credentials(options));
  if (!options.token_file.empty()) {
    ALMOST_ASSIGN_OR_RETURN(BearerToken token, BearerToken::Read(options.token_file));
    prometheus::Counter& refused = RejectedRequests(registry, "unauthenticated");
    RequireToken(*credentials, std::move(token), [&refused] { refused.Increment(); });
  }

  grpc::EnableDefaultHealthCheckService(true);
  if (options.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options.listen, credentials, &impl->port);
  // Two servers on one port would take turns: a port in use is an error.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                             static_cast<int>(options.max_connection_age_seconds * 1e3));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.SetMaxSendMessageSize(options.max_message_bytes);
  // Threads that have answered wait for the next call: by default all but two end, and most calls start one.
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, std::min(options.max_threads, 32));
  grpc::ResourceQuota quota("server");
  quota.SetMaxThreads(options.max_threads + 2);
  builder.SetResourceQuota(quota);
  for (const Named& named : services) {
    builder.RegisterService(named.service);
    impl->names.push_back(named.name);
  }
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(ServerCallTrace());
  interceptors.push_back(ServerCallMetrics(registry, impl->names));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr || impl->port == 0) {
    return absl::UnavailableError(
        absl::StrCat("listen: cannot listen on ", options.listen, "; is the address in use?"));
  }
  SetHealth(*impl->server, impl->names, false);
  if (!options.metrics_listen.empty()) {
    ALMOST_ASSIGN_OR_RETURN(impl->metrics,
                            MetricsServer::Start(
                                options.metrics_listen, exported != nullptr ? *exported : registry,
                                [ready = &impl->ready] { return ready->load(); }, std::move(before_scrape)));
  }
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

void Server::SetReady() {
  SetHealth(*impl_->server, impl_->names, true);
  impl_->ready = true;
  log::Info("ready", {{"port", impl_->port}, {"metrics_port", metrics_port()}});
}

void Server::WaitForStop() {
  const sigset_t signals = StopSignals();
  int signal = 0;
  sigwait(&signals, &signal);
  log::Info("draining", {{"signal", signal}});
  Drain();
  log::Info("stopped");
}

void Server::Drain() {
  if (impl_->server == nullptr || impl_->drained) return;
  impl_->drained = true;
  impl_->draining->Set(1);
  impl_->ready = false;
  SetHealth(*impl_->server, impl_->names, false);
  const absl::Time deadline = absl::Now() + absl::Seconds(impl_->options.drain_seconds);
  // What arrives after Shutdown ends CANCELLED, which no client may take for "not done".
  absl::SleepFor(std::min(kTurnAway, deadline - absl::Now()));
  impl_->server->Shutdown(absl::ToChronoTime(deadline));
  impl_->server->Wait();
}

}  // namespace almost
