#pragma once

#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "google/protobuf/message.h"

namespace almost::cli {

// Fills `message` from a YAML file, its JSON form written as YAML.
// kNotFound: no such file. kInvalidArgument: unknown field, wrong type or broken YAML; names file and line.
absl::Status ReadYamlFile(const std::filesystem::path& file, google::protobuf::Message* message);

// An id for what is started from `file`: its name, the time, and four digits drawn for those started in the
// same second, for instance "world-20250131-142500-07af". What no id may hold is replaced by '-'.
std::string IdFromFile(const std::filesystem::path& file);

}  // namespace almost::cli
