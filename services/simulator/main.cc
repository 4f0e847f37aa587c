#include <iostream>

#include "common/base/status_macros.h"
#include "common/logging/logging.h"
#include "common/metrics/build_info.h"
#include "services/simulator/metrics.h"
#include "services/simulator/options.h"
#include "services/simulator/rpc/simulator_service.h"

namespace almost::simulator {
namespace {

absl::Status Run(const Options& options) {
  ALMOST_RETURN_IF_ERROR(log::Start("simulator", options.server.log_level));
  prometheus::Registry registry;
  ExportBuildInfo(registry, "none", "none");
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<ReplicaPool> generation,
                          ReplicaPool::Create(options.generation, options.replicas, &registry));
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<ReplicaPool> reward,
                          ReplicaPool::Create(options.reward, options.replicas, &registry));
  Metrics metrics(registry);
  SimulatorService service(*generation, *reward, options.calls_in_flight,
                           absl::Seconds(options.call_timeout_seconds), metrics);
  ALMOST_ASSIGN_OR_RETURN(
      const std::unique_ptr<Server> server,
      Server::Start(options.server, {{v1::SimulatorService::service_full_name(), &service}}, registry));
  server->SetReady();
  server->WaitForStop();
  return absl::OkStatus();
}

}  // namespace
}  // namespace almost::simulator

int main(int argc, char** argv) {
  almost::BlockStopSignals();
  CLI::App app("Makes synthetic prompts and demonstrations.", "almost-simulator");
  almost::simulator::Options options;
  almost::simulator::AddFlags(app, options);
  CLI11_PARSE(app, argc, argv);
  options.replicas.token_file = options.server.token_file;
  if (const absl::Status status = almost::simulator::Run(options); !status.ok()) {
    std::cerr << "almost-simulator: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
