#include "clients/cli/yaml_file.h"

#include "absl/strings/str_cat.h"
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
  return absl::StrCat(file.stem().string(), "-",
                      absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::UTCTimeZone()));
}

}  // namespace almost::cli
