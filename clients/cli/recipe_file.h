#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "almost/orchestrator/v1/recipe.pb.h"

namespace almost::cli {

// The recipe that `file` (YAML) describes, ready for CreateRun: the files it names, relative to its own
// folder, are replaced by their contents, and the judge "up:judge" by the address `judge` when there is one.
// kNotFound: a file that is not there, with the field that names it; kInvalidArgument: what the YAML or the
// recipe has wrong, and text that is not UTF-8. `changes` are files of the same form that say only what is
// different, read one after the other; what they name lies beside `file`, too.
absl::StatusOr<almost::orchestrator::v1::Recipe> ReadRecipe(
    const std::filesystem::path& file, const std::string& judge,
    const std::vector<std::filesystem::path>& changes = {});

}  // namespace almost::cli
