#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace almost {

// Fills `message` from YAML, which is the message's JSON form written as YAML: field names as in the proto
// (or in camelCase), enums by name, lists for repeated fields. Nothing is guessed: an unknown or repeated
// field, a value of another type or out of range, text that is not UTF-8, a second member of a oneof, a field
// without a value, and a second document are kInvalidArgument, as is broken YAML. The error reads "name:line:
// path.of.field: what is wrong (value)"; `name` is the file's. Fields that the YAML does not name stay as
// they are, messages are filled in place and lists are replaced, so that a second text can change what a
// first one said. After an error `message` is half filled. Map fields and extensions are not supported.
absl::Status ReadYaml(absl::string_view name, absl::string_view yaml, google::protobuf::Message* message);

}  // namespace almost
