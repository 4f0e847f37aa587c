#include "common/model/bounded_json.h"

#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace almost {
namespace {

constexpr int kMaxDepth = 32;  // deeper than any config.json

}  // namespace

absl::StatusOr<nlohmann::json> ParseBoundedJson(absl::string_view text, absl::string_view name) {
  bool too_deep = false;
  nlohmann::json parsed = nlohmann::json::parse(
      text.begin(), text.end(),
      [&](int depth, nlohmann::json::parse_event_t, const nlohmann::json&) {
        too_deep |= depth > kMaxDepth;
        return depth <= kMaxDepth;
      },
      /*allow_exceptions=*/false);
  if (parsed.is_discarded()) return absl::DataLossError(absl::StrCat(name, ": not JSON"));
  if (too_deep) return absl::DataLossError(absl::StrCat(name, ": nested over ", kMaxDepth, " levels"));
  return parsed;
}

absl::StatusOr<nlohmann::json> ReadBoundedJson(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("no ", path.string()));
  std::ostringstream text;
  text << file.rdbuf();
  return ParseBoundedJson(text.str(), path.string());
}

}  // namespace almost
