#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace almost {

// One HTML page that needs no network and no other file. It draws itself with `script`, which finds `data` as
// a global of that name and the functions of elements.js: elements, tables, plots, a browser of rows. `rows`,
// objects, are what a page may have a hundred thousand of: they stand in pieces at its end, which loadRows()
// reads one by one.
//
// Any text in `data` and `rows` is safe: it cannot end the script element that holds it, and elements.js
// makes text of it, never markup. Text that is not UTF-8 is shown with replacement characters.
std::string RenderPage(absl::string_view script, const nlohmann::ordered_json& data,
                       const std::vector<nlohmann::ordered_json>& rows = {});

}  // namespace almost
