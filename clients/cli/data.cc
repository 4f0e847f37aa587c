// almost data: stages of the method that need no model, on plain files.

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "clients/cli/artifact_files.h"
#include "clients/cli/table.h"
#include "clients/cli/verbs.h"
#include "common/base/status_macros.h"
#include "common/base/unicode.h"
#include "common/storage/env.h"
#include "common/text/comparison_files.h"
#include "common/text/prompt_filter.h"
#include "common/text/response_filter.h"
#include "nlohmann/json.hpp"

namespace almost::cli {
namespace {

namespace fs = std::filesystem;

struct DataFlags {
  std::string preset = "paper";
  std::string input, seeds, responses, rubric, output;
  int64_t num_prompts = 0;
  int min_rank_gap = 0;
  double max_rouge_l = 0;
};

// What became of how many, as a table or as JSON.
absl::Status PrintCounts(const Cli& cli, const std::vector<std::pair<std::string, int64_t>>& counts) {
  nlohmann::ordered_json json;
  std::vector<std::vector<std::string>> rows = {{"OUTCOME", "NUMBER"}};
  for (const auto& [name, count] : counts) {
    json[name] = count;
    if (count > 0 || name == "kept") rows.push_back({name, absl::StrCat(count)});
  }
  if (cli.json) {
    absl::PrintF("%s\n", json.dump(2));
  } else {
    PrintTable(stdout, rows);
  }
  return absl::OkStatus();
}

absl::Status Prompts(const Cli& cli, const DataFlags& flags) {
  ALMOST_RETURN_IF_ERROR(CheckOutput(flags.output));
  ALMOST_ASSIGN_OR_RETURN(const std::string bytes, Env::Posix()->Read(flags.input));
  ALMOST_ASSIGN_OR_RETURN(const absl::string_view text, Utf8Text(flags.input, bytes));
  PromptSeeds seeds;
  if (!flags.seeds.empty()) {
    ALMOST_ASSIGN_OR_RETURN(const std::string seed_bytes, Env::Posix()->Read(flags.seeds));
    ALMOST_ASSIGN_OR_RETURN(const absl::string_view seed_text, Utf8Text(flags.seeds, seed_bytes));
    absl::StatusOr<PromptSeeds> parsed = PromptSeeds::Parse(seed_text);
    if (!parsed.ok()) return Annotate(parsed.status(), flags.seeds);
    seeds = *std::move(parsed);
  }
  PromptFilter filter = flags.preset == "paper" ? PromptFilter::Paper() : PromptFilter::World();
  if (flags.max_rouge_l > 0) filter.max_rouge_l = flags.max_rouge_l;
  const std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipWhitespace());
  if (lines.empty()) return absl::InvalidArgumentError(absl::StrCat(flags.input, ": holds no prompt"));
  const int64_t wanted = flags.num_prompts > 0 ? flags.num_prompts : static_cast<int64_t>(lines.size());
  PromptPool pool(filter, seeds.prompts, wanted);
  std::map<std::string, int64_t> dropped;
  for (const std::string& line : lines) {
    if (pool.full()) break;
    if (const auto reason = pool.Offer(absl::StripAsciiWhitespace(line)))
      ++dropped[std::string(Name(*reason))];
  }
  std::string kept;
  for (const std::string& prompt : pool.kept()) absl::StrAppend(&kept, prompt, "\n");
  ALMOST_RETURN_IF_ERROR(Env::Posix()->WriteAtomically(flags.output, kept));
  std::vector<std::pair<std::string, int64_t>> counts = {{"kept", pool.kept().size()}};
  for (const auto& [reason, count] : dropped) counts.emplace_back(absl::StrCat("dropped_", reason), count);
  return PrintCounts(cli, counts);
}

absl::Status Compare(const Cli& cli, const DataFlags& flags) {
  ALMOST_RETURN_IF_ERROR(CheckOutput(flags.output));
  ALMOST_ASSIGN_OR_RETURN(const Rubric rubric, ReadRubric(flags.rubric));
  ALMOST_ASSIGN_OR_RETURN(const ResponseFolder folder, ResponseFolder::Read(flags.responses, rubric));
  PairRule rule = flags.preset == "paper" ? PairRule::Paper() : PairRule::World();
  if (flags.min_rank_gap > 0) rule.min_rank_gap = flags.min_rank_gap;
  ALMOST_ASSIGN_OR_RETURN(const SynthesizedComparisons made,
                          SynthesizeComparisons(rubric, folder.responses, rule));
  ALMOST_RETURN_IF_ERROR(Env::Posix()->WriteAtomically(
      flags.output, absl::EndsWith(flags.output, ".jsonl")
                        ? ComparisonsAsJsonLines(folder.prompts, made.comparisons)
                        : ComparisonsAsJson(folder.prompts, made.comparisons)));
  std::vector<std::pair<std::string, int64_t>> counts = {{"kept", made.comparisons.size()}};
  for (const ComparisonDropReason reason : kComparisonDropReasons) {
    counts.emplace_back(absl::StrCat("dropped_", Name(reason)), made.dropped[static_cast<size_t>(reason)]);
  }
  return PrintCounts(cli, counts);
}

// CONFIG.json of the official code: a list of responses, "BAD" for a dropped one.
absl::Status FilterFile(const ResponseFilter& filter, const fs::path& from, const fs::path& to,
                        std::map<std::string, int64_t>* counts) {
  ALMOST_ASSIGN_OR_RETURN(const std::string text, Env::Posix()->Read(from));
  auto list = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!list.is_array())
    return absl::InvalidArgumentError(absl::StrCat(from.string(), ": must be a JSON list of strings"));
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(from.string(), ": [", i, "]: must be a string, is ", list[i].type_name()));
    }
    if (list[i] == "BAD") {
      ++(*counts)["bad_before"];
      continue;
    }
    const std::string response = filter.Extract(list[i].get<std::string>());
    // The files do not say why a response ended; what is cut off shows by its last character.
    const std::optional<BadReason> reason = filter.Check(response, /*finished=*/true);
    ++(*counts)[reason ? absl::StrCat("dropped_", Name(*reason)) : "kept"];
    list[i] = reason ? "BAD" : response;
  }
  return Env::Posix()->WriteAtomically(to, list.dump(0, ' ', /*ensure_ascii=*/true) + "\n");
}

absl::Status Filter(const Cli& cli, const DataFlags& flags) {
  const ResponseFilter filter = flags.preset == "paper" ? ResponseFilter::Paper() : ResponseFilter::World();
  ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> names, Env::Posix()->List(flags.responses));
  ALMOST_RETURN_IF_ERROR(Env::Posix()->CreateFolders(flags.output));
  std::map<std::string, int64_t> counts = {{"kept", 0}};
  int files = 0;
  for (const std::string& name : names) {
    const fs::path from = fs::path(flags.responses) / name;
    const fs::path to = fs::path(flags.output) / name;
    if (name == "prompts.txt") {
      ALMOST_ASSIGN_OR_RETURN(const std::string prompts, Env::Posix()->Read(from));
      ALMOST_RETURN_IF_ERROR(Env::Posix()->WriteAtomically(to, prompts));
    } else if (from.extension() == ".json") {
      ALMOST_RETURN_IF_ERROR(FilterFile(filter, from, to, &counts));
      ++files;
    }
  }
  if (files == 0) return absl::NotFoundError(absl::StrCat(flags.responses, ": holds no CONFIG.json"));
  return PrintCounts(cli, {counts.begin(), counts.end()});
}

}  // namespace

void AddData(CLI::App& app, Cli& cli) {
  CLI::App* data = app.add_subcommand("data", "Stages alone, on plain files: prompts, filter, compare");
  data->require_subcommand(1);
  auto flags = std::make_shared<DataFlags>();
  const auto verb = [&](const char* name, const char* help,
                        absl::Status (*action)(const Cli&, const DataFlags&)) {
    CLI::App* sub = data->add_subcommand(name, help);
    sub->add_option("--rules", flags->preset, "paper, or world for the tiny world's short texts")
        ->check(CLI::IsMember({"paper", "world"}))
        ->capture_default_str();
    sub->callback(
        [&cli, flags, action] { cli.action = [&cli, flags, action] { return action(cli, *flags); }; });
    return sub;
  };

  CLI::App* prompts = verb("prompts", "Keeps the mined prompts that are good and new", Prompts);
  prompts->add_option("--input", flags->input, "Mined prompts, one a line")->required();
  prompts->add_option("--seeds", flags->seeds,
                      "Seed file: an instruction, then a prompt a line; near copies are dropped");
  prompts->add_option("--output", flags->output, "The kept prompts, one a line")->required();
  prompts
      ->add_option("--num_prompts", flags->num_prompts, "How many are wanted; by default all that are good")
      ->check(CLI::PositiveNumber);
  prompts
      ->add_option("--max_rouge_l", flags->max_rouge_l,
                   "Drops at this ROUGE-L F1 with a kept one, in place of the preset's")
      ->check(CLI::Range(0.0, 1.0));

  CLI::App* filter = verb("filter", "Replaces unsuitable responses by BAD", Filter);
  filter->add_option("--responses", flags->responses, "Folder of prompts.txt and a CONFIG.json each")
      ->required();
  filter->add_option("--output", flags->output, "Folder for the same files, filtered")->required();

  CLI::App* compare = verb("compare", "Pairs the responses by a ranking of their configurations", Compare);
  compare->add_option("--responses", flags->responses, "Folder of prompts.txt and a CONFIG.json each")
      ->required();
  compare->add_option("--rubric", flags->rubric, "JSON list of configurations, best first; nested lists tie")
      ->required();
  compare
      ->add_option("--output", flags->output,
                   "The pairs: JSON as the official code writes it, or lines if .jsonl")
      ->required();
  compare
      ->add_option("--min_rank_gap", flags->min_rank_gap,
                   "Least difference of rank, in place of the preset's")
      ->check(CLI::PositiveNumber);
}

}  // namespace almost::cli
