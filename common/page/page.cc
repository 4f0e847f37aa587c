#include "common/page/page.h"

#include <map>

#include "absl/strings/str_cat.h"

namespace almost {

extern const char kShellHtml[];       // shell.html
extern const char kElementsScript[];  // elements.js

namespace {

using nlohmann::ordered_json;

constexpr size_t kRowsOfPiece = 2000;

std::string Dump(const ordered_json& value) {
  return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

// JSON inside a script element: "</" would end the element, "<!--" would open a comment in it, and U+2028 and
// U+2029 end lines in older scripts.
std::string Embeddable(const std::string& json) {
  std::string out;
  out.reserve(json.size());
  for (size_t i = 0; i < json.size(); ++i) {
    const absl::string_view rest = absl::string_view(json).substr(i);
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

// Script elements of {columns, rows: [[value, …]]}, columns in the order in which they first come.
std::string Pieces(const std::vector<ordered_json>& rows) {
  std::string out;
  for (size_t first = 0; first < rows.size(); first += kRowsOfPiece) {
    const size_t end = std::min(rows.size(), first + kRowsOfPiece);
    std::map<std::string, size_t> places;
    ordered_json columns = ordered_json::array(), values = ordered_json::array();
    for (size_t i = first; i < end; ++i) {
      ordered_json row = ordered_json::array();
      for (const auto& [name, value] : rows[i].items()) {
        const auto [place, is_new] = places.emplace(name, columns.size());
        if (is_new) columns.push_back(name);
        while (row.size() <= place->second) row.push_back(nullptr);
        row[place->second] = value;
      }
      values.push_back(std::move(row));
    }
    for (ordered_json& row : values) {
      while (row.size() < columns.size()) row.push_back(nullptr);
    }
    absl::StrAppend(&out, R"(<script type="application/json" class="rows">)",
                    Embeddable(Dump({{"columns", columns}, {"rows", values}})), "</script>\n");
  }
  return out;
}

}  // namespace

std::string RenderPage(absl::string_view script, const ordered_json& data,
                       const std::vector<ordered_json>& rows) {
  std::string page;
  absl::string_view shell = kShellHtml;
  // The places in their order; what is filled in is not searched.
  const auto copy_to = [&](absl::string_view place) {
    const size_t at = shell.find(place);
    absl::StrAppend(&page, shell.substr(0, at));
    shell.remove_prefix(at + place.size());
  };
  copy_to("__DATA__");
  absl::StrAppend(&page, Embeddable(Dump(data)));
  copy_to("__ELEMENTS__");
  absl::StrAppend(&page, kElementsScript);
  copy_to("__SCRIPT__");
  absl::StrAppend(&page, script);
  copy_to("__ROWS__");
  absl::StrAppend(&page, Pieces(rows), shell);
  return page;
}

}  // namespace almost
