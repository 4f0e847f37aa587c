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
  EXPECT_EQ(page.find("__DATA__"), std::string::npos);
  EXPECT_EQ(EmbeddedJson(page), "{}");
}

TEST(ReportTest, HostileTextComesThroughUnchanged) {
  const ordered_json data = {
      {"run", "</script><script>alert(1)</script><!-- <script>"},
      {"display_name",
       "line\xE2\x80\xA8paragraph\xE2\x80\xA9"
       "end \"quoted\" \\ 'single' `tick` ${x}"},
      {"recipe", "</SCRIPT >\n__DATA__\t\x01 <img onerror=x>"},
  };
  const std::string page = RenderReport(data);
  const std::string json = EmbeddedJson(page);
  EXPECT_THAT(json, Not(HasSubstr("</")));
  EXPECT_THAT(json, Not(HasSubstr("<!--")));
  EXPECT_THAT(json, Not(HasSubstr("\xE2\x80\xA8")));
  EXPECT_EQ(ordered_json::parse(json), data);
  // The page's own two script elements and no other.
  size_t elements = 0;
  for (size_t at = page.find("</script"); at != std::string::npos; at = page.find("</script", at + 1))
    ++elements;
  EXPECT_EQ(elements, 2);
}

TEST(ReportTest, TextThatIsNotUtf8IsReplaced) {
  const std::string page = RenderReport({{"run", "a\xFFz"}});
  EXPECT_EQ(ordered_json::parse(EmbeddedJson(page)).at("run"), "a\xEF\xBF\xBDz");
}

}  // namespace
}  // namespace almost::orchestrator
