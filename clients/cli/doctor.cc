// almost doctor: whether this machine has what the suite needs.

#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "almost/generation/v1/generation.grpc.pb.h"
#include "almost/reward/v1/reward.grpc.pb.h"
#include "clients/cli/endpoints.h"
#include "clients/cli/ports.h"
#include "clients/cli/table.h"
#include "clients/cli/verbs.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace almost::cli {
namespace {

namespace fs = std::filesystem;

// kNote: worth knowing, nothing is wrong.
enum class Verdict { kOk, kNote, kFail };

struct Finding {
  std::string check;
  Verdict verdict;
  std::string detail;
};

// First value of `key` in a file of "key : value" lines.
std::string Field(const char* path, absl::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 1));
    if (absl::StripAsciiWhitespace(parts.first) == key)
      return std::string(absl::StripAsciiWhitespace(parts.second));
  }
  return "";
}

Finding Cpu() {
  const std::vector<std::string> list = absl::StrSplit(Field("/proc/cpuinfo", "flags"), ' ');
  const std::set<std::string> flags(list.begin(), list.end());
  std::vector<std::string> has;
  for (const char* flag : {"avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16"}) {
    if (flags.count(flag) > 0) has.push_back(flag);
  }
  const bool fast = flags.count("avx2") > 0 && flags.count("fma") > 0;
  return {"cpu", fast ? Verdict::kOk : Verdict::kFail,
          absl::StrCat(Field("/proc/cpuinfo", "model name"), ", ", std::thread::hardware_concurrency(),
                       " cores, ",
                       fast ? absl::StrJoin(has, " ") : "without AVX2 and FMA, which the kernels need")};
}

Finding Memory() {
  double total = 0, available = 0;
  const bool known =
      absl::SimpleAtod(absl::StripSuffix(Field("/proc/meminfo", "MemTotal"), " kB"), &total) &&
      absl::SimpleAtod(absl::StripSuffix(Field("/proc/meminfo", "MemAvailable"), " kB"), &available);
  return {"memory", known && available > 2e6 ? Verdict::kOk : Verdict::kNote,
          absl::StrFormat("%.1f GB, %.1f GB available", total / 1e6, available / 1e6)};
}

Finding Device() {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& gpu : fs::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    names.push_back(Field((gpu.path() / "information").c_str(), "Model"));
  }
  if (names.empty()) return {"device", Verdict::kOk, "cpu (no NVIDIA GPU on this machine)"};
  return {"device", Verdict::kOk, absl::StrJoin(names, ", ")};
}

// What `program --help` begins with, or why it does not run: a library that is missing shows here.
Finding Program(const fs::path& program) {
  Finding finding{program.filename().string(), Verdict::kFail, ""};
  if (access(program.c_str(), X_OK) != 0) {
    finding.detail =
        absl::StrCat("not in ", program.parent_path().string(), "; build it, or install the whole suite");
    return finding;
  }
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(
      popen(absl::StrCat("timeout 20 '", program.string(), "' --help 2>&1").c_str(), "r"), pclose);
  std::array<char, 256> line{};
  if (pipe && fgets(line.data(), line.size(), pipe.get()) != nullptr) {
    finding.detail = std::string(absl::StripAsciiWhitespace(line.data()));
  }
  finding.verdict =
      absl::StrContains(finding.detail, "error") || finding.detail.empty() ? Verdict::kFail : Verdict::kOk;
  return finding;
}

Finding Store(const std::string& store) {
  // The nearest folder that is there stands for one that `almost up` will make.
  fs::path folder = fs::absolute(store).lexically_normal();
  while (!fs::exists(folder) && folder.has_parent_path()) folder = folder.parent_path();
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (access(folder.c_str(), W_OK) != 0) {
    return {"store", Verdict::kFail,
            absl::StrCat(folder.string(), " cannot be written to; --store names another folder")};
  }
  const double gigabytes = static_cast<double>(space.available) / 1e9;
  return {"store", gigabytes < 1 ? Verdict::kFail : Verdict::kOk,
          absl::StrFormat("%s, %.1f GB free", fs::absolute(store).lexically_normal().string(), gigabytes)};
}

// Number of models in memory, or why it cannot be known.
template <typename Service>
std::string Models(const Endpoint& endpoint) {
  const auto models = Call<Service>(endpoint, &Service::Stub::ListModels,
                                    almost::types::v1::ListModelsRequest(), absl::Seconds(2));
  return models.ok() ? absl::StrCat(", ", models->models_size(), " models in memory") : "";
}

Finding Service(const Cli& cli, const ServicePorts& ports) {
  const absl::StatusOr<Endpoint> endpoint = FindEndpoint(cli, ports.service);
  if (!endpoint.ok()) return {ports.service, Verdict::kFail, std::string(endpoint.status().message())};
  if (endpoint->channel->WaitForConnected(absl::ToChronoTime(absl::Now() + absl::Seconds(1)))) {
    const std::string service = ports.service;
    return {ports.service, Verdict::kOk,
            absl::StrCat("answers at ", endpoint->address,
                         service == "generation" ? Models<generation::v1::GenerationService>(*endpoint)
                         : service == "reward"   ? Models<reward::v1::RewardService>(*endpoint)
                                                 : "")};
  }
  std::string detail = absl::StrCat("not running at ", endpoint->address);
  Verdict verdict = Verdict::kNote;
  for (const int port : {ports.grpc_port, ports.metrics_port}) {
    if (const absl::Status free = CheckPortFree(port); !free.ok()) {
      absl::StrAppend(&detail, "; ", free.message(), " (`almost up --ports auto` takes others)");
    } else {
      absl::StrAppend(&detail, "; port ", port, " is free");
    }
  }
  return {ports.service, verdict, detail};
}

absl::Status Doctor(const Cli& cli) {
  utsname system{};
  uname(&system);
  std::vector<Finding> findings = {
      {"almost", Verdict::kOk, absl::StrCat(ALMOST_VERSION, ", gRPC ", grpc::Version())},
      {"system", Verdict::kOk, absl::StrCat(system.sysname, " ", system.release, " ", system.machine)},
      Cpu(),
      Memory(),
      Device(),
      Store(cli.store)};
  const fs::path binaries = fs::read_symlink("/proc/self/exe").parent_path();
  for (const ServicePorts& ports : kDefaultPorts) {
    findings.push_back(Program(binaries / absl::StrCat("almost-", ports.service)));
  }
  for (const ServicePorts& ports : kDefaultPorts) findings.push_back(Service(cli, ports));

  static constexpr const char* kVerdicts[] = {"ok", "note", "FAIL"};
  std::vector<std::string> failed;
  std::vector<std::vector<std::string>> rows = {{"CHECK", "RESULT", "DETAIL"}};
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const Finding& finding : findings) {
    const char* verdict = kVerdicts[static_cast<int>(finding.verdict)];
    rows.push_back({finding.check, verdict, finding.detail});
    json.push_back({{"check", finding.check}, {"result", verdict}, {"detail", finding.detail}});
    if (finding.verdict == Verdict::kFail) failed.push_back(finding.check);
  }
  if (cli.json) {
    absl::PrintF("%s\n", json.dump(2));
  } else {
    PrintTable(stdout, rows);
  }
  if (!failed.empty())
    return absl::FailedPreconditionError(absl::StrCat("not in order: ", absl::StrJoin(failed, ", ")));
  return absl::OkStatus();
}

}  // namespace

void AddDoctor(CLI::App& app, Cli& cli) {
  CLI::App* doctor =
      app.add_subcommand("doctor", "Checks what is installed, the device, the ports and the services");
  doctor->callback([&cli] { cli.action = [&cli] { return Doctor(cli); }; });
}

}  // namespace almost::cli
