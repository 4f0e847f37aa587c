#include "services/orchestrator/report/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;
using ::testing::HasSubstr;
using ::testing::Not;

// What the page's script will parse.
std::string EmbeddedJson(const std::string& page) {
  const std::string open = R"(<script type="application/json" id="data">)";
  const size_t begin = page.find(open) + open.size();
  return page.substr(begin, page.find("</script", begin) - begin);
}

TEST(ReportTest, NeedsNothingFromElsewhere) {
  const std::string page = RenderReport(ordered_json::object());
  for (const char* reference : {"http:", "https:", "src=", "@import", "url(", "<link", "fetch(", "import("}) {
    EXPECT_THAT(page, Not(HasSubstr(reference)));
  }
  EXPECT_EQ(EmbeddedJson(page), "{}");
}

}  // namespace
}  // namespace almost::orchestrator
