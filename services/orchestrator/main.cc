#include <filesystem>
#include <iostream>

#include "common/base/status_macros.h"
#include "common/logging/logging.h"
#include "common/metrics/build_info.h"
#include "services/orchestrator/core/recipe_check.h"
#include "services/orchestrator/core/stages.h"
#include "services/orchestrator/metrics.h"
#include "services/orchestrator/options.h"
#include "services/orchestrator/rpc/orchestrator_service.h"

namespace almost::orchestrator {
namespace {

namespace fs = std::filesystem;

absl::Status Run(const Options& options) {
  ALMOST_RETURN_IF_ERROR(log::Start("orchestrator", options.server.log_level));
  prometheus::Registry registry;
  ExportBuildInfo(registry, "none", "none");
  Metrics metrics(registry);
  if (options.journal.empty() && IsS3(options.store)) {
    return absl::InvalidArgumentError("journal: with a store in S3, it needs a file on a disk that lasts");
  }
  ALMOST_ASSIGN_OR_RETURN(const std::shared_ptr<ArtifactStore> store, OpenStore(options.store));
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<Journal> journal,
                          Journal::Open(options.journal.empty() ? fs::path(options.store.root) / "journal.db"
                                                                : fs::path(options.journal)));
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<RemoteServices> services,
                          RemoteServices::Create(options.targets, options.replicas, &registry));
  ModelPlacement placement(services.get());

  RunEnvironment environment;
  environment.journal = journal.get();
  environment.store = store.get();
  environment.services = services.get();
  environment.placement = &placement;
  environment.observer = &metrics;
  const StageSettings settings = {options.trainer_reward.empty() ? options.targets.reward
                                                                 : options.trainer_reward};
  environment.make_stages = [settings](const v1::Recipe& recipe) { return MakeStages(recipe, settings); };
  environment.retry.pause_after = absl::Seconds(options.pause_after_seconds);
  environment.retry.call_timeout = absl::Seconds(options.call_timeout_seconds);
  environment.retry.load_timeout = absl::Seconds(options.load_timeout_seconds);
  environment.concurrent_items = options.concurrent_items;
  environment.total_items = options.total_items;
  environment.max_set_aside_share = options.max_set_aside_share;
  environment.provenance = {{"version", BuildInfo::OfThisBinary().version},
                            {"git_sha", BuildInfo::OfThisBinary().git_sha}};
  Orchestrator orchestrator(environment, [&](const v1::Recipe& recipe) -> absl::Status {
    ALMOST_RETURN_IF_ERROR(CheckRecipe(recipe));
    const HostMemory memory = {static_cast<int64_t>(options.generation_memory_gigabytes * 1e9),
                               static_cast<int64_t>(options.reward_memory_gigabytes * 1e9)};
    return CheckModels(
        recipe, *services,
        [&](const std::string& model) { return placement.IsHeld({ModelHost::kGeneration, model}); }, memory);
  });

  OrchestratorService service(&orchestrator, store.get());
  ALMOST_ASSIGN_OR_RETURN(
      const std::unique_ptr<Server> server,
      Server::Start(options.server, {{v1::OrchestratorService::service_full_name(), &service}}, registry));
  ALMOST_RETURN_IF_ERROR(orchestrator.Recover());
  server->SetReady();
  server->WaitForStop();
  return absl::OkStatus();
}

}  // namespace
}  // namespace almost::orchestrator

int main(int argc, char** argv) {
  almost::BlockStopSignals();
  CLI::App app("Runs the method: stages of journaled work items over the other services.",
               "almost-orchestrator");
  almost::orchestrator::Options options;
  almost::orchestrator::AddFlags(app, options);
  CLI11_PARSE(app, argc, argv);
  options.replicas.token_file = options.server.token_file;
  if (const absl::Status status = almost::orchestrator::Run(options); !status.ok()) {
    std::cerr << "almost-orchestrator: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
