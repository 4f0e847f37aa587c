#include "common/storage/json_lines.h"

#include <cmath>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace almost {
namespace {

using nlohmann::ordered_json;

bool AllFinite(const ordered_json& value) {
  if (value.is_number_float()) return std::isfinite(value.get<double>());
  if (!value.is_structured()) return true;
  for (const ordered_json& part : value) {
    if (!AllFinite(part)) return false;
  }
  return true;
}

}  // namespace

absl::Status AppendJsonLine(const ordered_json& value, std::string* lines) {
  if (!AllFinite(value)) return absl::InvalidArgumentError("a number in a dataset line is not finite");
  try {
    absl::StrAppend(lines, value.dump(), "\n");
  } catch (const ordered_json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("a text in a dataset line is not UTF-8: ", error.what()));
  }
  return absl::OkStatus();
}

absl::Status ForEachJsonLine(absl::string_view name, absl::string_view lines,
                             const std::function<absl::Status(int64_t, const ordered_json&)>& use,
                             int64_t num_before) {
  for (int64_t number = 0; !lines.empty(); ++number) {
    const size_t end = lines.find('\n');
    const absl::string_view line = lines.substr(0, end);
    lines.remove_prefix(end == absl::string_view::npos ? lines.size() : end + 1);
    const ordered_json value =
        ordered_json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
    if (!value.is_object()) {
      return absl::DataLossError(
          absl::StrCat(name, ": line ", num_before + number + 1, " is not a JSON object"));
    }
    ALMOST_RETURN_IF_ERROR(use(number, value));
  }
  return absl::OkStatus();
}

}  // namespace almost
