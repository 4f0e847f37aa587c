#include "services/orchestrator/report/report.h"

#include <string_view>

namespace almost::orchestrator {

extern const char kReportHtml[];  // report.html

namespace {

constexpr std::string_view kPlace = "__DATA__";

// JSON inside a script element: "</" would end the element, "<!--" would open a comment in it, and U+2028 and
// U+2029 end lines in older scripts.
std::string Embeddable(const std::string& json) {
  std::string out;
  out.reserve(json.size());
  for (size_t i = 0; i < json.size(); ++i) {
    const std::string_view rest = std::string_view(json).substr(i);
    if (rest.substr(0, 2) == "</") {
      out += "<\\/";
      ++i;
    } else if (rest.substr(0, 2) == "<!") {
      out += "\\u003c!";
      ++i;
    } else if (rest.substr(0, 3) == "\xE2\x80\xA8" || rest.substr(0, 3) == "\xE2\x80\xA9") {
      out += rest[2] == '\xA8' ? "\\u2028" : "\\u2029";
      i += 2;
    } else {
      out += json[i];
    }
  }
  return out;
}

}  // namespace

std::string RenderReport(const nlohmann::ordered_json& data) {
  std::string page = kReportHtml;
  page.replace(page.find(kPlace), kPlace.size(),
               Embeddable(data.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace)));
  return page;
}

}  // namespace almost::orchestrator
