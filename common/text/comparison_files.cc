#include "common/text/comparison_files.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"

namespace almost {
namespace {

using nlohmann::json;

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream contents;
  contents << in.rdbuf();
  if (!in) return absl::NotFoundError(absl::StrCat(path.string(), ": cannot be read"));
  return std::move(contents).str();
}

absl::StatusOr<std::vector<std::string>> ReadPrompts(const std::filesystem::path& path) {
  ALMOST_ASSIGN_OR_RETURN(std::string text, ReadFile(path));
  text = absl::StrReplaceAll(text, {{"\r\n", "\n"}});
  std::vector<std::string> prompts = absl::StrSplit(text, '\n');
  if (prompts.back().empty()) prompts.pop_back();
  if (prompts.empty()) return absl::InvalidArgumentError(absl::StrCat(path.string(), ": holds no prompt"));
  return prompts;
}

absl::StatusOr<std::vector<std::optional<SynthesisResponse>>> ReadResponses(const std::filesystem::path& path,
                                                                            size_t num_prompts) {
  ALMOST_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  json list;
  try {
    list = json::parse(text);
  } catch (const json::parse_error& error) {
    const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(error.byte, text.size()));
    return absl::InvalidArgumentError(
        absl::StrCat(path.string(), ": line ", 1 + std::count(text.begin(), end, '\n'), ": ", error.what()));
  }
  if (!list.is_array()) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": must be a JSON list of strings"));
  }
  if (list.size() != num_prompts) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": must hold a response for each of the ",
                                                   num_prompts, " lines of prompts.txt, holds ",
                                                   list.size()));
  }
  std::vector<std::optional<SynthesisResponse>> responses;
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path.string(), ": [", i, "]: must be a string, is ", list[i].type_name()));
    }
    auto response = list[i].get<std::string>();
    if (response == "BAD") {
      responses.emplace_back(std::nullopt);
    } else {
      responses.push_back(SynthesisResponse{std::move(response)});
    }
  }
  return responses;
}

// Python's separators are ", " and ": ".
std::string AsObject(const std::string& prompt, const Comparison& comparison, bool ascii) {
  const auto quoted = [&](const std::string& text) {
    return json(text).dump(-1, ' ', ascii, json::error_handler_t::replace);
  };
  return absl::StrCat("{\"prompt\": ", quoted(prompt), ", \"chosen\": ", quoted(comparison.chosen),
                      ", \"rejected\": ", quoted(comparison.rejected),
                      ", \"meta\": ", quoted(comparison.meta), "}");
}

}  // namespace

absl::StatusOr<ResponseFolder> ResponseFolder::Read(const std::filesystem::path& folder,
                                                    const Rubric& rubric) {
  ResponseFolder files;
  ALMOST_ASSIGN_OR_RETURN(files.prompts, ReadPrompts(folder / "prompts.txt"));
  for (const std::string& configuration : rubric.Configurations()) {
    ALMOST_ASSIGN_OR_RETURN(
        auto responses, ReadResponses(folder / absl::StrCat(configuration, ".json"), files.prompts.size()));
    files.responses.push_back(std::move(responses));
  }
  return files;
}

absl::StatusOr<Rubric> ReadRubric(const std::filesystem::path& path) {
  ALMOST_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  absl::StatusOr<Rubric> rubric = Rubric::Parse(text);
  if (!rubric.ok()) return Annotate(rubric.status(), path.string());
  return rubric;
}

std::string ComparisonsAsJson(const std::vector<std::string>& prompts,
                              const std::vector<Comparison>& comparisons) {
  std::string out = "[";
  for (const Comparison& comparison : comparisons) {
    absl::StrAppend(&out, out.size() == 1 ? "" : ", ",
                    AsObject(prompts[comparison.prompt_index], comparison, true));
  }
  return out + "]";
}

std::string ComparisonsAsJsonLines(const std::vector<std::string>& prompts,
                                   const std::vector<Comparison>& comparisons) {
  std::string out;
  for (const Comparison& comparison : comparisons) {
    absl::StrAppend(&out, AsObject(prompts[comparison.prompt_index], comparison, false), "\n");
  }
  return out;
}

}  // namespace almost
