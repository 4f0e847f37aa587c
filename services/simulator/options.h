#pragma once

#include <string>

#include "CLI/CLI.hpp"
#include "common/rpc/replica_pool.h"
#include "common/rpc/server.h"

namespace almost::simulator {

// What the simulator service lets its operator choose.
struct Options {
  // Behaviour.
  std::string generation = "127.0.0.1:50051";  // targets as ReplicaPool takes them
  std::string reward = "127.0.0.1:50052";
  ReplicaPoolOptions replicas;
  // Performance.
  int calls_in_flight = 4;  // of one request, to the services together
  // Limits.
  double call_timeout_seconds = 120;  // of one call to a service, all its tries together
  ServerOptions server;
};

inline void AddFlags(CLI::App& app, Options& options) {
  app.add_option("--generation", options.generation, "Generation service: host:port,… or dns:///name:port")
      ->capture_default_str();
  app.add_option("--reward", options.reward, "Reward service: host:port,… or dns:///name:port")
      ->capture_default_str();
  AddPeerTlsFlags(app, options.replicas.tls, "peer_");
  app.add_option("--calls_in_flight", options.calls_in_flight, "Calls of one request at once")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  app.add_option("--call_timeout_seconds", options.call_timeout_seconds, "Of one call to a service")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  AddServerFlags(app, options.server, "127.0.0.1:50053", "127.0.0.1:9453");
}

}  // namespace almost::simulator
