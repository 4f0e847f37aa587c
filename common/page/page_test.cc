#include "common/page/page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace almost {
namespace {

using nlohmann::ordered_json;
using ::testing::HasSubstr;
using ::testing::Not;

// The contents of the page's script elements that begin with `open`, as the browser will cut them.
std::vector<std::string> Elements(const std::string& page, const std::string& open) {
  std::vector<std::string> found;
  for (size_t at = page.find(open); at != std::string::npos; at = page.find(open, at + 1)) {
    const size_t begin = at + open.size();
    found.push_back(page.substr(begin, page.find("</script", begin) - begin));
  }
  return found;
}

constexpr char kData[] = R"(<script type="application/json" id="data">)";
constexpr char kRows[] = R"(<script type="application/json" class="rows">)";

TEST(RenderPageTest, NeedsNothingFromElsewhere) {
  const std::string page = RenderPage("keepDrawn('x', () => []);", ordered_json::object());
  for (const char* reference : {"http:", "https:", "src=", "@import", "url(", "<link", "fetch(", "import("}) {
    EXPECT_THAT(page, Not(HasSubstr(reference)));
  }
  for (const char* place : {"__DATA__", "__ELEMENTS__", "__SCRIPT__", "__ROWS__"}) {
    EXPECT_THAT(page, Not(HasSubstr(place)));
  }
  EXPECT_THAT(page, HasSubstr("keepDrawn('x'"));
}

TEST(RenderPageTest, HostileTextComesThroughUnchanged) {
  const ordered_json hostile = {
      {"a", "</script><script>alert(1)</script><!-- <script>"},
      {"b", "line\xE2\x80\xA8paragraph\xE2\x80\xA9 \"quoted\" \\ 'single' `tick` ${x}"},
      {"c", "</SCRIPT >\n__ROWS__ __SCRIPT__\t\x01 <img onerror=x>"},
  };
  const std::string page = RenderPage("", hostile, {hostile});
  EXPECT_EQ(ordered_json::parse(Elements(page, kData).at(0)), hostile);
  const ordered_json piece = ordered_json::parse(Elements(page, kRows).at(0));
  EXPECT_EQ(piece["columns"], (ordered_json{"a", "b", "c"}));
  EXPECT_EQ(piece["rows"][0], (ordered_json{hostile["a"], hostile["b"], hostile["c"]}));
}

TEST(RenderPageTest, RowsComeInPiecesWithTheColumnsTheyHave) {
  std::vector<ordered_json> rows(4500, {{"x", 1}});
  rows[1] = {{"y", "only"}, {"x", 2.5}};
  const std::vector<std::string> pieces = Elements(RenderPage("", {}, rows), kRows);
  ASSERT_EQ(pieces.size(), 3u);
  const ordered_json first = ordered_json::parse(pieces[0]);
  EXPECT_EQ(first["columns"], (ordered_json{"x", "y"}));
  EXPECT_EQ(first["rows"][0], (ordered_json{1, nullptr}));
  EXPECT_EQ(first["rows"][1], (ordered_json{2.5, "only"}));
  EXPECT_EQ(ordered_json::parse(pieces[2])["rows"].size(), 500u);
}

TEST(RenderPageTest, TextThatIsNotUtf8IsReplaced) {
  EXPECT_EQ(ordered_json::parse(Elements(RenderPage("", {{"a", "a\xFFz"}}), kData).at(0)).at("a"),
            "a\xEF\xBF\xBDz");
}

}  // namespace
}  // namespace almost
