#pragma once

// The scripts of the command line's pages, compiled in; RenderPage (common/page) makes a page of one.
namespace almost {

extern const char kEvalScript[];     // eval.js: result.json of an evaluation, its items as rows
extern const char kInspectScript[];  // inspect.js: a dataset's rows with counts and histograms

}  // namespace almost
