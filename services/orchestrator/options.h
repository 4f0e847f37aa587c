#pragma once

#include <string>

#include "CLI/CLI.hpp"
#include "common/rpc/replica_pool.h"
#include "common/rpc/server.h"
#include "common/storage/store_options.h"
#include "services/orchestrator/rpc/remote_services.h"

namespace almost::orchestrator {

// What the orchestrator lets its operator choose.
struct Options {
  // Behaviour.
  StoreOptions store;   // shared with the other services
  std::string journal;  // empty: <store>/journal.db
  Targets targets;
  std::string trainer_reward;  // where the trainer finds the reward service; empty: as here
  ReplicaPoolOptions replicas;
  double pause_after_seconds = 15;  // without an answer, a run counts as paused
  // Performance.
  int concurrent_items = 8;  // of one stage of a run
  int total_items = 32;      // of all runs
  // Limits.
  double max_set_aside_share = 0.01;  // of a stage's items; more fail it
  double call_timeout_seconds = 120;  // of one call's tries at a time
  double load_timeout_seconds = 600;
  double generation_memory_gigabytes = 0;  // of weights, in a replica; 0: not checked
  double reward_memory_gigabytes = 0;
  ServerOptions server;
};

inline void AddFlags(CLI::App& app, Options& options) {
  options.store.root = "almost-store";
  AddStoreFlags(app, options.store);
  app.add_option("--journal", options.journal, "File of the journal; by default journal.db in the store");
  app.add_option("--generation", options.targets.generation,
                 "Generation service: host:port,… or dns:///name:port")
      ->capture_default_str();
  app.add_option("--reward", options.targets.reward, "Reward service")->capture_default_str();
  app.add_option("--simulator", options.targets.simulator, "Simulator service")->capture_default_str();
  app.add_option("--trainer", options.targets.trainer, "Trainer service")->capture_default_str();
  app.add_option("--trainer_reward", options.trainer_reward,
                 "Where the trainer finds the reward service; by default as --reward");
  AddPeerTlsFlags(app, options.replicas.tls, "peer_");
  app.add_option("--pause_after_seconds", options.pause_after_seconds,
                 "Without an answer for so long, a run counts as paused")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--concurrent_items", options.concurrent_items, "Work items of one stage of a run at once")
      ->capture_default_str()
      ->check(CLI::Range(1, 256));
  app.add_option("--total_items", options.total_items, "Work items of all runs at once")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  app.add_option("--max_set_aside_share", options.max_set_aside_share,
                 "Share of a stage's items that may fail by their own content")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--call_timeout_seconds", options.call_timeout_seconds, "Of one call to a service")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--load_timeout_seconds", options.load_timeout_seconds, "Of loading a model")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--generation_memory_gigabytes", options.generation_memory_gigabytes,
                 "Weights that a replica of generation can hold beside its caches: a recipe with a stage "
                 "that needs more is refused. 0: not checked")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--reward_memory_gigabytes", options.reward_memory_gigabytes, "The same of reward")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  // What still runs is a stream that its client takes up again where it was.
  options.server.drain_seconds = 5;
  options.replicas.max_tries = 2;  // a run has its own patience
  AddServerFlags(app, options.server, "127.0.0.1:50055", "127.0.0.1:9455");
}

}  // namespace almost::orchestrator
