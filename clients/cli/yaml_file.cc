#include "clients/cli/yaml_file.h"

#include <random>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/config/yaml_message.h"
#include "common/storage/env.h"

namespace almost::cli {

absl::Status ReadYamlFile(const std::filesystem::path& file, google::protobuf::Message* message) {
  ALMOST_ASSIGN_OR_RETURN(const std::string text, Env::Posix()->Read(file));
  return ReadYaml(file.string(), text, message);
}

std::string IdFromFile(const std::filesystem::path& file) {
  constexpr size_t kLongest = 100;
  std::string id = file.stem().string().substr(0, kLongest);
  for (char& c : id) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '.') c = '-';
  }
  if (id.starts_with('.')) id[0] = '_';
  std::random_device random;
  return absl::StrFormat("%s-%s-%04x", id,
                         absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::UTCTimeZone()),
                         random() & 0xffffu);
}

}  // namespace almost::cli
