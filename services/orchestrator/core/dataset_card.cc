#include "services/orchestrator/core/dataset_card.h"

#include <filesystem>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/storage/json_lines_file.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

// The file of JSON Lines; empty: there is none.
std::string FileOf(const ArtifactDraft& draft) {
  for (const char* ending : {".jsonl", ".jsonl.gz"}) {
    std::string name = absl::StrCat(draft.kind, ending);
    if (!draft.folder.empty() && std::filesystem::exists(draft.folder / name)) return name;
  }
  return "";
}

// As Hugging Face's hub names sizes.
std::string SizeCategory(int64_t rows) {
  const std::pair<int64_t, const char*> bounds[] = {{1000, "n<1K"},
                                                    {10'000, "1K<n<10K"},
                                                    {100'000, "10K<n<100K"},
                                                    {1'000'000, "100K<n<1M"},
                                                    {10'000'000, "1M<n<10M"}};
  for (const auto& [bound, name] : bounds) {
    if (rows < bound) return name;
  }
  return "n>10M";
}

std::string TypeOf(const ordered_json& value) {
  if (value.is_number_integer()) return "integer";
  if (value.is_number()) return "number";
  if (value.is_array()) return "list";
  return value.type_name();
}

const char* About(const std::string& kind) {
  static const std::map<std::string, const char*> kAbout = {
      {"prompts",
       "Prompts that a language model wrote, filtered for length and likeness (METHOD section 1)."},
      {"dropped", "What a stage dropped, each line with its reason."},
      {"responses", "Answers of every configuration (model, demonstrations, shots) to the same prompts."},
      {"comparisons",
       "Pairs of answers to one prompt. Which is better was not judged: it follows from who wrote them, "
       "larger models with "
       "more and better demonstrations being taken for better."},
      {"demonstrations",
       "Dialogues between a simulated user and an assistant; each answer is the reward model's favourite of "
       "several."},
      {"candidates",
       "Every answer that was sampled for the demonstrations, with its score; dropped dialogues too."},
      {"pairs", "For each demonstration the best and the worst of its candidates, by the reward model."}};
  const auto found = kAbout.find(kind);
  return found == kAbout.end() ? "" : found->second;
}

}  // namespace

bool IsDataset(const ArtifactDraft& draft) { return !FileOf(draft).empty(); }

absl::StatusOr<std::string> DatasetCard(const ArtifactDraft& draft, const std::string& stage,
                                        const std::map<std::string, double>& figures,
                                        const std::string& license) {
  const std::string file = FileOf(draft);
  ALMOST_ASSIGN_OR_RETURN(const std::string sha256, Sha256File(draft.folder / file));
  int64_t rows = 0;
  std::vector<std::string> fields;                     // in the order in which they come
  std::map<std::string, std::set<std::string>> types;  // by field
  ALMOST_RETURN_IF_ERROR(ForEachJsonLineOf(draft.folder / file, [&](int64_t, const ordered_json& line) {
    ++rows;
    for (const auto& [field, value] : line.items()) {
      if (!types.contains(field)) fields.push_back(field);
      types[field].insert(TypeOf(value));
    }
    return absl::OkStatus();
  }));

  std::string card = absl::StrCat("---\nlicense: ", license.empty() ? "unknown" : license, "\n",
                                  "pretty_name: ", stage, " ", draft.kind, "\nsize_categories:\n- ",
                                  SizeCategory(rows), "\ntags:\n- synthetic\n- almost\n");
  if (draft.kind == "comparisons") absl::StrAppend(&card, "- preference\n- reward-model\n");
  if (draft.kind == "pairs") absl::StrAppend(&card, "- preference\n- dpo\n");
  if (draft.kind == "demonstrations") absl::StrAppend(&card, "- sft\n- conversational\n");
  absl::StrAppend(&card,
                  "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: ", file,
                  "\n---\n\n# ", draft.kind, "\n\n");
  if (*About(draft.kind) != '\0') absl::StrAppend(&card, About(draft.kind), "\n\n");
  absl::StrAppend(
      &card, "Made by the stage `", stage, "` of a run, version ", draft.stage_version,
      ", without human labels. Its text was written by language models: licences and terms of those models, "
      "and of the seeds and demonstrations below, apply to it.",
      license.empty() ? " Nobody has said under which licence it may be passed on." : "", "\n\n");
  absl::StrAppend(&card, "| | |\n| --- | --- |\n| rows | ", rows, " |\n| file | `", file, "`, ",
                  std::filesystem::file_size(draft.folder / file), " bytes |\n| SHA-256 | `", sha256,
                  "` |\n");
  if (!draft.numerics_id.empty()) absl::StrAppend(&card, "| numerics | ", draft.numerics_id, " |\n");
  absl::StrAppend(&card, "\n## Fields\n\n| field | type |\n| --- | --- |\n");
  for (const std::string& field : fields) {
    absl::StrAppend(&card, "| `", field, "` | ", absl::StrJoin(types[field], " or "), " |\n");
  }
  std::string counts;
  for (const auto& [name, count] : figures) {
    if (name == "kept" || absl::StartsWith(name, "dropped_")) {
      absl::StrAppend(&counts, "| ", absl::StrReplaceAll(name, {{"_", " "}}), " | ",
                      static_cast<int64_t>(count), " |\n");
    }
  }
  if (!counts.empty()) {
    absl::StrAppend(&card,
                    "\n## Kept and dropped\n\nBy the first reason that applied.\n\n| | |\n| --- | --- |\n",
                    counts);
  }
  if (!draft.inputs.empty()) {
    absl::StrAppend(
        &card,
        "\n## Sources\n\nBy content: an artifact's manifest, a model's weights or a file, SHA-256.\n\n"
        "| source | hash |\n| --- | --- |\n");
    for (const auto& [name, digest] : draft.inputs)
      absl::StrAppend(&card, "| ", name, " | `", digest, "` |\n");
  }
  absl::StrAppend(&card, "\n## Recipe\n\nFilters and settings, defaults filled in.\n\n```json\n",
                  draft.recipe.dump(2, ' ', false, nlohmann::json::error_handler_t::replace), "\n```\n");
  return card;
}

}  // namespace almost::orchestrator
