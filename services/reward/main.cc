#include <iostream>

#include "common/base/status_macros.h"
#include "common/logging/logging.h"
#include "common/metrics/build_info.h"
#include "common/serving/options.h"
#include "services/reward/metrics.h"
#include "services/reward/rpc/reward_service.h"

namespace almost::reward {
namespace {

absl::Status Run(const ServingOptions& options) {
  ALMOST_RETURN_IF_ERROR(log::Start("reward", options.server.log_level));
  std::shared_ptr<ArtifactStore> store;
  if (!options.store.root.empty()) {
    ALMOST_ASSIGN_OR_RETURN(store, OpenStore(options.store));
  }
  prometheus::Registry registry;
  ExportBuildInfo(registry, "none", options.engine.device);
  Metrics metrics(registry);
  ModelRegistry models(ModelRegistry::Head::kReward, store, options.model_root, options.engine, registry,
                       [&](const std::string&) { return metrics.observer(); },
                       LoadGate::MostCalls(options.server.max_threads));
  RewardService service(models, metrics);
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                          Server::Start(options.server, {{v1::RewardService::service_full_name(), &service}},
                                        registry, [&] { metrics.Observe(models); }));
  ALMOST_RETURN_IF_ERROR(models.LoadAll(options.load));
  server->SetReady();
  server->WaitForStop();
  return absl::OkStatus();
}

}  // namespace
}  // namespace almost::reward

int main(int argc, char** argv) {
  almost::BlockStopSignals();
  CLI::App app("Scores responses with reward models.", "almost-reward");
  almost::ServingOptions options;
  almost::AddServingFlags(app, options, "127.0.0.1:50052", "127.0.0.1:9452");
  CLI11_PARSE(app, argc, argv);
  if (const absl::Status status = almost::reward::Run(options); !status.ok()) {
    std::cerr << "almost-reward: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
