#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/comparisons.h"

// The plain files of the official code (naver-ai/ALMoST), in which its stages hand on their results.
namespace almost {

// A folder of responses: prompts.txt, a prompt a line, and for each configuration of the rubric
// CONFIGURATION.json, a JSON list of as many strings, "BAD" where the response was dropped.
struct ResponseFolder {
  std::vector<std::string> prompts;
  std::vector<std::vector<std::optional<SynthesisResponse>>>
      responses;  // as SynthesizeComparisons takes them

  // kNotFound, kInvalidArgument: a file that is absent or not as said; the message names it, and its line or
  // index.
  static absl::StatusOr<ResponseFolder> Read(const std::filesystem::path& folder, const Rubric& rubric);
};

// The rubric of a file; errors as Rubric::Parse, with the path, and kNotFound.
absl::StatusOr<Rubric> ReadRubric(const std::filesystem::path& path);

// The official comparison.json, byte by byte as Python's json.dump writes it: a list of objects with the
// fields prompt, chosen, rejected and meta, other characters than ASCII escaped.
std::string ComparisonsAsJson(const std::vector<std::string>& prompts,
                              const std::vector<Comparison>& comparisons);

// The same objects, one a line, in UTF-8.
std::string ComparisonsAsJsonLines(const std::vector<std::string>& prompts,
                                   const std::vector<Comparison>& comparisons);

}  // namespace almost
