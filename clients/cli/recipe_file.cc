#include "clients/cli/recipe_file.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "clients/cli/endpoints.h"
#include "clients/cli/yaml_file.h"
#include "common/base/status_macros.h"
#include "common/base/unicode.h"
#include "common/storage/env.h"

namespace almost::cli {
namespace {

namespace fs = std::filesystem;
namespace pb = almost::orchestrator::v1;

// Contents of files that a recipe names, relative to its own folder.
class Files {
 public:
  explicit Files(fs::path folder) : folder_(std::move(folder)) {}

  // Without a byte order mark. kInvalidArgument: it is not UTF-8; names the line.
  absl::StatusOr<std::string> Read(absl::string_view field, const std::string& path) const {
    absl::StatusOr<std::string> contents = Env::Posix()->Read(folder_ / path);
    if (!contents.ok()) return Annotate(contents.status(), field);
    const absl::StatusOr<absl::string_view> text = Utf8Text(path, *contents);
    if (!text.ok()) return Annotate(text.status(), field);
    return std::string(*text);
  }

  // Its lines that are not blank.
  absl::Status ReadLines(absl::string_view field, const std::string& path,
                         google::protobuf::RepeatedPtrField<std::string>* lines) const {
    ALMOST_ASSIGN_OR_RETURN(const std::string text, Read(field, path));
    for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipWhitespace())) {
      *lines->Add() = std::string(absl::StripSuffix(line, "\r"));
    }
    if (lines->empty()) return absl::InvalidArgumentError(absl::StrCat(field, ": no line in ", path));
    return absl::OkStatus();
  }

 private:
  const fs::path folder_;
};

}  // namespace

absl::StatusOr<pb::Recipe> ReadRecipe(const fs::path& file, const std::string& judge,
                                      const std::vector<fs::path>& changes) {
  pb::Recipe recipe;
  ALMOST_RETURN_IF_ERROR(ReadYamlFile(file, &recipe));
  for (const fs::path& change : changes) ALMOST_RETURN_IF_ERROR(ReadYamlFile(change, &recipe));
  const Files files(file.parent_path());
  for (int i = 0; i < recipe.demonstrations_size(); ++i) {
    pb::DemonstrationSet& set = *recipe.mutable_demonstrations(i);
    for (const std::string& path : set.paths()) {
      ALMOST_ASSIGN_OR_RETURN(std::string text,
                              files.Read(absl::StrCat("demonstrations[", i, "].paths"), path));
      set.add_texts(std::move(text));
    }
    set.clear_paths();
  }
  if (recipe.has_prompts()) {
    pb::PromptStage& prompts = *recipe.mutable_prompts();
    if (!prompts.prompts_path().empty()) {
      ALMOST_RETURN_IF_ERROR(
          files.ReadLines("prompts.prompts_path", prompts.prompts_path(), prompts.mutable_given_prompts()));
      prompts.clear_prompts_path();
    }
    if (!prompts.seed_path().empty()) {
      ALMOST_ASSIGN_OR_RETURN(*prompts.mutable_seed_text(),
                              files.Read("prompts.seed_path", prompts.seed_path()));
      prompts.clear_seed_path();
    }
  }
  if (recipe.has_evaluation()) {
    pb::EvaluationStage& evaluation = *recipe.mutable_evaluation();
    if (!evaluation.prompts_path().empty()) {
      ALMOST_RETURN_IF_ERROR(files.ReadLines("evaluation.prompts_path", evaluation.prompts_path(),
                                             evaluation.mutable_prompts()));
      evaluation.clear_prompts_path();
    }
    if (evaluation.judge_target() == kJudgeOfUp) {
      if (judge.empty()) {
        return absl::FailedPreconditionError(
            "evaluation.judge_target: up:judge needs `almost up --world_judge`, or --judge host:port here");
      }
      evaluation.set_judge_target(judge);
    }
  }
  return recipe;
}

}  // namespace almost::cli
