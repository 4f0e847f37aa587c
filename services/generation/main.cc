#include <iostream>

#include "common/base/status_macros.h"
#include "common/logging/logging.h"
#include "common/metrics/build_info.h"
#include "common/serving/options.h"
#include "services/generation/metrics.h"
#include "services/generation/rpc/generation_service.h"
#include "services/generation/vllm_metrics.h"

namespace almost::generation {
namespace {

absl::Status Run(const ServingOptions& options, const std::string& metrics_compat) {
  ALMOST_RETURN_IF_ERROR(log::Start("generation", options.server.log_level));
  std::shared_ptr<ArtifactStore> store;
  if (!options.store.root.empty()) {
    ALMOST_ASSIGN_OR_RETURN(store, OpenStore(options.store));
  }
  prometheus::Registry registry;
  ExportBuildInfo(registry, "none", options.engine.device);
  const VllmMetrics vllm_metrics(registry);
  Metrics metrics(registry);
  ModelRegistry models(ModelRegistry::Head::kLanguageModel, store, options.model_root, options.engine,
                       registry, [&](const std::string& model) { return metrics.Of(model); },
                       LoadGate::MostCalls(options.server.max_threads));
  GenerationService service(models, metrics);
  ALMOST_ASSIGN_OR_RETURN(
      const std::unique_ptr<Server> server,
      Server::Start(
          options.server, {{v1::GenerationService::service_full_name(), &service}}, registry,
          [&] { metrics.Observe(models); }, metrics_compat == "vllm" ? &vllm_metrics : nullptr));
  ALMOST_RETURN_IF_ERROR(models.LoadAll(options.load));
  server->SetReady();
  server->WaitForStop();
  return absl::OkStatus();
}

}  // namespace
}  // namespace almost::generation

int main(int argc, char** argv) {
  almost::BlockStopSignals();
  CLI::App app("Continues text with language models.", "almost-generation");
  almost::ServingOptions options;
  almost::AddServingFlags(app, options, "127.0.0.1:50051", "127.0.0.1:9451");
  std::string metrics_compat;
  app.add_option("--metrics_compat", metrics_compat,
                 "Series to export a second time, under the names of: vllm")
      ->check(CLI::IsMember({"vllm"}));
  CLI11_PARSE(app, argc, argv);
  if (const absl::Status status = almost::generation::Run(options, metrics_compat); !status.ok()) {
    std::cerr << "almost-generation: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
