#include "common/base/ids.h"

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace almost {

absl::Status ValidateId(absl::string_view field, absl::string_view id) {
  bool valid = !id.empty() && id.size() <= 128 && id.front() != '.';
  for (const char c : id) valid = valid && (absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-');
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": must be 1 to 128 of A-Z a-z 0-9 . _ - and not begin with '.', got \"",
                   absl::CHexEscape(id.substr(0, 160)), "\""));
}

}  // namespace almost
