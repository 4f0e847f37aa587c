// almost up: all services of one machine.

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "clients/cli/endpoints.h"
#include "clients/cli/ports.h"
#include "clients/cli/supervisor.h"
#include "clients/cli/table.h"
#include "clients/cli/up_file.h"
#include "clients/cli/verbs.h"
#include "common/base/status_macros.h"

namespace almost::cli {
namespace {

namespace fs = std::filesystem;

struct UpFlags {
  std::string model_root = ".";
  std::string device = "cpu";
  int64_t kv_cache_bytes = 0;  // 0: generation's default
  std::string ports = "default";
  std::string artifacts;    // empty: in the store's folder
  std::string world_judge;  // empty: none
  double stop_seconds = 30;
};

// Default ports, or free ones, checked and distinct.
absl::StatusOr<std::map<std::string, std::pair<int, int>>> ChoosePorts(const UpFlags& flags) {
  std::map<std::string, std::pair<int, int>> chosen;
  std::set<int> taken;
  const auto free_port = [&]() -> absl::StatusOr<int> {
    while (true) {
      ALMOST_ASSIGN_OR_RETURN(const int port, FreePort());
      if (taken.insert(port).second) return port;
    }
  };
  for (const ServicePorts& ports : kDefaultPorts) {
    auto& [grpc_port, metrics_port] = chosen[ports.service];
    if (flags.ports == "auto") {
      ALMOST_ASSIGN_OR_RETURN(grpc_port, free_port());
      ALMOST_ASSIGN_OR_RETURN(metrics_port, free_port());
      continue;
    }
    grpc_port = ports.grpc_port;
    metrics_port = ports.metrics_port;
    for (const int port : {grpc_port, metrics_port}) {
      ALMOST_RETURN_IF_ERROR(Annotate(CheckPortFree(port), absl::StrCat("cannot start ", ports.service)));
    }
  }
  if (!flags.world_judge.empty()) {
    ALMOST_ASSIGN_OR_RETURN(chosen["judge"].first, free_port());
    ALMOST_ASSIGN_OR_RETURN(chosen["judge"].second, free_port());
  }
  return chosen;
}

absl::Status Up(const Cli& cli, const UpFlags& flags) {
  std::error_code error;
  fs::create_directories(cli.store, error);
  if (error) return absl::FailedPreconditionError(absl::StrCat("--store ", cli.store, ": ", error.message()));
  const fs::path store = fs::absolute(cli.store).lexically_normal();
  const fs::path model_root = fs::absolute(flags.model_root).lexically_normal();
  if (!fs::is_directory(model_root)) {
    return absl::InvalidArgumentError(absl::StrCat("--model_root ", flags.model_root, ": not a folder"));
  }
  // Held as long as this process lives, and gone with it.
  const int lock = open((store / "up.lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
  if (lock < 0) return absl::ErrnoToStatus(errno, absl::StrCat("--store ", cli.store));
  if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("another `almost up` already runs on the store ", store.string()));
  }

  ALMOST_ASSIGN_OR_RETURN(const auto ports, ChoosePorts(flags));
  const auto address = [&](const std::string& service) {
    return absl::StrCat("127.0.0.1:", ports.at(service).first);
  };
  const auto metrics = [&](const std::string& service) {
    return absl::StrCat("127.0.0.1:", ports.at(service).second);
  };
  const fs::path binaries = fs::read_symlink("/proc/self/exe").parent_path();
  std::vector<ServiceSpec> services;
  // Who calls others ends before them.
  enum Tier { kModels, kCallers, kOrchestrator };
  const auto add = [&](const std::string& service, Tier tier, std::vector<std::string> more) {
    std::vector<std::string> argv;
    if (service == "judge") {
      argv = {(binaries / "almost").string(), "world", "judge"};
    } else {
      argv = {(binaries / absl::StrCat("almost-", service)).string()};
    }
    argv.insert(argv.end(), {absl::StrCat("--listen=", address(service)),
                             absl::StrCat("--metrics_listen=", metrics(service))});
    argv.insert(argv.end(), more.begin(), more.end());
    if (!cli.token_file.empty())
      argv.push_back(absl::StrCat("--token_file=", fs::absolute(cli.token_file).string()));
    services.push_back({service, std::move(argv), tier, ports.at(service).second});
  };
  std::vector<std::string> store_flags = {absl::StrCat("--store=", store.string())};
  if (!flags.artifacts.empty()) {
    store_flags = {absl::StrCat("--store=", flags.artifacts),
                   absl::StrCat("--store_cache=", (store / "cache").string())};
  }
  const std::string root_flag = absl::StrCat("--model_root=", model_root.string());
  const std::string device_flag = absl::StrCat("--device=", flags.device);
  const std::string generation_flag = absl::StrCat("--generation=", address("generation"));
  const std::string reward_flag = absl::StrCat("--reward=", address("reward"));
  const auto with_store = [&](std::vector<std::string> more) {
    more.insert(more.end(), store_flags.begin(), store_flags.end());
    return more;
  };
  add("generation", kModels,
      with_store({root_flag, device_flag, absl::StrCat("--kv_cache_bytes=", flags.kv_cache_bytes)}));
  add("reward", kModels, with_store({root_flag, device_flag}));
  if (!flags.world_judge.empty()) {
    add("judge", kModels, {absl::StrCat("--world=", flags.world_judge)});
  }
  add("simulator", kCallers, {generation_flag, reward_flag});
  add("trainer", kCallers,
      with_store({root_flag, device_flag, absl::StrCat("--jobs=", (store / "jobs").string())}));
  add("orchestrator", kOrchestrator,
      with_store({absl::StrCat("--journal=", (store / "journal.db").string()), generation_flag, reward_flag,
                  absl::StrCat("--simulator=", address("simulator")),
                  absl::StrCat("--trainer=", address("trainer"))}));

  bool announced = false;
  const auto observer = [&](const std::map<std::string, pid_t>& pids, bool all_ready) -> absl::Status {
    UpFile up;
    up.pid = getpid();
    for (const ServiceSpec& spec : services) {
      const auto pid = pids.find(spec.name);
      up.services[spec.name] = {address(spec.name), metrics(spec.name), pid == pids.end() ? 0 : pid->second};
    }
    // Other verbs may rely on a file that is there: it appears once everything is ready.
    if (all_ready || announced) ALMOST_RETURN_IF_ERROR(WriteUpFile(store, up));
    if (!all_ready || announced) return absl::OkStatus();
    announced = true;
    std::vector<std::vector<std::string>> rows = {{"SERVICE", "GRPC", "METRICS", "PID"}};
    for (const ServiceSpec& spec : services) {
      const UpFile::Service& service = up.services[spec.name];
      rows.push_back({spec.name, service.address, service.metrics, absl::StrCat(service.pid)});
    }
    PrintTable(stdout, rows);
    absl::PrintF("Up, with the store %s and models beneath %s. Ctrl-C stops all.\n", store.string(),
                 model_root.string());
    fflush(stdout);
    return absl::OkStatus();
  };
  const absl::Cleanup remove = [&] {
    RemoveUpFile(store);
    close(lock);
  };
  Supervisor::Options options;
  options.stop_deadline = absl::Seconds(flags.stop_seconds);
  return Supervisor(services, options, observer).Run();
}

}  // namespace

void AddUp(CLI::App& app, Cli& cli) {
  CLI::App* up = app.add_subcommand("up", "Starts all services on this machine and keeps them alive");
  auto flags = std::make_shared<UpFlags>();
  up->add_option("--model_root", flags->model_root, "Folder beneath which models may be loaded")
      ->capture_default_str();
  up->add_option("--device", flags->device, "Where models are served and trained: cpu or cuda:N")
      ->capture_default_str();
  up->add_option("--kv_cache_bytes", flags->kv_cache_bytes,
                 "Key-value cache of each model of generation; 0: 512 MiB, or one context where that is more")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  up->add_option("--ports", flags->ports, "default: 50051 to 50055 and 9451 to 9455; auto: free ones")
      ->check(CLI::IsMember({"default", "auto"}))
      ->capture_default_str();
  up->add_option(
      "--artifacts", flags->artifacts,
      "s3://bucket/prefix for the artifacts; by default they are in the store's folder, as all else is");
  up->add_flag("--world_judge{tiny}", flags->world_judge,
               "Also the tiny world's ground truth as a judge; =large: the large one's")
      ->check(CLI::IsMember({"tiny", "large"}));
  up->add_option("--stop_seconds", flags->stop_seconds, "After a stop, time until what still runs is killed")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  up->callback([&cli, flags] { cli.action = [&cli, flags] { return Up(cli, *flags); }; });
}

}  // namespace almost::cli
