#include "clients/cli/up_file.h"

#include <signal.h>

#include <cerrno>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/storage/env.h"
#include "nlohmann/json.hpp"

namespace almost::cli {
namespace {

std::filesystem::path PathIn(const std::filesystem::path& store) { return store / "up.json"; }

}  // namespace

absl::StatusOr<UpFile> ReadUpFile(const std::filesystem::path& store) {
  std::ifstream file(PathIn(store));
  if (!file) return UpFile{};
  UpFile up;
  try {
    const nlohmann::json json = nlohmann::json::parse(file);
    up.pid = json.at("pid");
    for (const auto& [name, service] : json.at("services").items()) {
      up.services[name] = {service.at("address"), service.at("metrics"), service.at("pid")};
    }
  } catch (const nlohmann::json::exception& error) {
    return absl::DataLossError(absl::StrCat(PathIn(store).string(), ": ", error.what()));
  }
  if (kill(up.pid, 0) != 0 && errno == ESRCH) return UpFile{};
  return up;
}

absl::Status WriteUpFile(const std::filesystem::path& store, const UpFile& up) {
  nlohmann::ordered_json services = nlohmann::ordered_json::object();
  for (const auto& [name, service] : up.services) {
    services[name] = {{"address", service.address}, {"metrics", service.metrics}, {"pid", service.pid}};
  }
  const nlohmann::ordered_json json = {{"pid", up.pid}, {"services", services}};
  return Env::Posix()->WriteAtomically(PathIn(store), json.dump(2) + "\n");
}

void RemoveUpFile(const std::filesystem::path& store) {
  std::error_code ignored;
  std::filesystem::remove(PathIn(store), ignored);
}

}  // namespace almost::cli
