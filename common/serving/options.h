#pragma once

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "common/engine/engine.h"
#include "common/rpc/server.h"
#include "common/storage/store_options.h"

namespace almost {

// What the generation and the reward service let their operator choose.
struct ServingOptions {
  // Behaviour.
  StoreOptions store;             // without a root: only folders beneath model_root
  std::string model_root = ".";   // Hugging Face folders are addressed beneath it
  std::vector<std::string> load;  // id=source, loaded before the service is ready
  // Performance and limits, of each model's engine; num_threads is of all models together, 0: as many as the
  // process has processors.
  engine::EngineOptions engine = {.num_threads = 0, .max_queued_tokens = int64_t{1} << 22};
  ServerOptions server;
};

// `listen` and `metrics_listen` are the service's defaults.
inline void AddServingFlags(CLI::App& app, ServingOptions& options, const std::string& listen,
                            const std::string& metrics_listen) {
  AddStoreFlags(app, options.store);
  app.add_option("--model_root", options.model_root, "Folder beneath which models are addressed")
      ->capture_default_str();
  app.add_option("--load", options.load, "Models to load at the start, id=source");
  app.add_option("--device", options.engine.device,
                 "Where models are computed that do not say it: cpu or cuda:N")
      ->capture_default_str()
      ->group("Engine");
  app.add_flag("--cublas", options.engine.cublas,
               "On a GPU, products by cuBLAS: faster, but results' last bits depend on the batch")
      ->group("Engine");
  app.add_option("--kv_cache_bytes", options.engine.kv_cache_bytes,
                 "Key-value cache of each model; 0: 512 MiB, or one context where that is more")
      ->capture_default_str()
      ->group("Engine");
  app.add_option("--max_batch_sequences", options.engine.max_batch_sequences, "Sequences computed together")
      ->capture_default_str()
      ->group("Engine");
  app.add_option("--max_batch_tokens", options.engine.max_batch_tokens, "Tokens of one step")
      ->capture_default_str()
      ->group("Engine");
  app.add_option("--threads", options.engine.num_threads,
                 "Threads that all models share; 0: as many as the process may use processors")
      ->capture_default_str()
      ->group("Engine");
  app.add_option("--max_queued_requests", options.engine.max_queued_requests,
                 "Items queued or running per model")
      ->capture_default_str()
      ->group("Engine");
  app.add_option("--max_queued_tokens", options.engine.max_queued_tokens,
                 "Tokens of their prompts and max_new_tokens; more than the largest call's")
      ->capture_default_str()
      ->group("Engine");
  AddServerFlags(app, options.server, listen, metrics_listen);
}

}  // namespace almost
