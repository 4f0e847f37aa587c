// almost inspect: a page to read a dataset with.

#include <filesystem>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "clients/cli/artifact_files.h"
#include "clients/cli/asked_model.h"
#include "clients/cli/dataset_rows.h"
#include "clients/cli/pages/pages.h"
#include "clients/cli/progress.h"
#include "clients/cli/verbs.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/page/page.h"
#include "common/storage/env.h"
#include "common/storage/json_lines_file.h"

namespace almost::cli {
namespace {

namespace fs = std::filesystem;
namespace pb = almost::orchestrator::v1;
using nlohmann::ordered_json;

struct InspectFlags {
  std::string what, dataset = "comparisons", reward_model, to;
  double near = 0.7;
};

struct Inspected {
  std::vector<ordered_json> rows;
  ordered_json lineage = ordered_json::object();  // dataset -> digest of its artifact
  ordered_json card = ordered_json::array();
  std::string readme;
};

bool IsJsonLines(absl::string_view file) {
  return absl::EndsWith(file, ".jsonl") || absl::EndsWith(file, ".jsonl.gz");
}

absl::Status AddFile(const std::string& dataset, const fs::path& file, Inspected& out) {
  const size_t before = out.rows.size();
  ALMOST_ASSIGN_OR_RETURN(const std::string sha256, Sha256File(file));
  ALMOST_RETURN_IF_ERROR(ForEachJsonLineOf(file, [&](int64_t line, const ordered_json& value) {
    out.rows.push_back(RowOf(dataset, line, value));
    return absl::OkStatus();
  }));
  out.card.push_back(
      {file.filename().string(), absl::StrCat(out.rows.size() - before, " rows, ", fs::file_size(file),
                                              " bytes, SHA-256 ", sha256)});
  return absl::OkStatus();
}

// The datasets of one stage that belong together: what was kept and what was dropped.
absl::Status AddRun(const Cli& cli, const InspectFlags& flags, Inspected& out) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  ALMOST_ASSIGN_OR_RETURN(const std::vector<pb::Artifact> artifacts,
                          ListArtifacts(endpoint, ResourceName("runs", flags.what)));
  const fs::path folder = fs::temp_directory_path() / absl::StrCat("almost-inspect-", UniqueName());
  const absl::Cleanup clean = [&] { Env::Posix()->Remove(folder).IgnoreError(); };
  ALMOST_RETURN_IF_ERROR(Env::Posix()->CreateFolders(folder));
  // A demonstration is best read among its candidates, of which the dropped are some.
  const std::string kept = flags.dataset == "demonstrations" ? "candidates" : flags.dataset;
  for (const pb::Artifact& artifact : artifacts) {
    if (artifact.stage() != flags.dataset || (artifact.kind() != kept && artifact.kind() != "dropped"))
      continue;
    for (const pb::ArtifactFile& file : artifact.files()) {
      if (file.size_bytes() == 0) continue;  // nothing was dropped
      const fs::path to = folder / artifact.kind() / file.path();
      ALMOST_RETURN_IF_ERROR(FetchFile(endpoint, artifact.name(), file.path(), to));
      if (IsJsonLines(file.path())) {
        ALMOST_RETURN_IF_ERROR(AddFile(artifact.kind(), to, out));
      } else if (artifact.kind() == kept) {
        ALMOST_ASSIGN_OR_RETURN(out.readme, Env::Posix()->Read(to));
      }
    }
    out.lineage[artifact.kind()] = artifact.name().substr(artifact.name().find('/') + 1);
  }
  if (!out.lineage.empty()) return absl::OkStatus();
  std::vector<std::string> names;
  for (const pb::Artifact& artifact : artifacts) {
    if (artifact.stage() == artifact.kind()) names.push_back(artifact.stage());
  }
  return absl::NotFoundError(
      absl::StrCat("no ", flags.dataset, " in run ", flags.what, "; it has ", absl::StrJoin(names, ", ")));
}

// Scores both sides of every comparison, and the margin by which the reward model agrees (below 0:
// disagrees).
absl::Status AddRewards(const Cli& cli, const InspectFlags& flags, ProgressDisplay& display, Inspected& out) {
  constexpr size_t kStretch = 1024;
  ALMOST_ASSIGN_OR_RETURN(const auto model, AskedModel::Find(cli, "reward", flags.reward_model));
  std::vector<ordered_json*> pairs;
  for (ordered_json& row : out.rows) {
    if (row.contains("chosen_length") && row.contains("prompt") && row["prompt"].is_string())
      pairs.push_back(&row);
  }
  const absl::Time started = absl::Now();
  for (size_t first = 0; first < pairs.size(); first += kStretch) {
    const size_t end = std::min(pairs.size(), first + kStretch);
    std::vector<std::vector<Message>> dialogues;
    for (size_t i = first; i < end; ++i) {
      for (const char* side : {"chosen", "rejected"}) {
        dialogues.push_back({{"user", (*pairs[i])["prompt"]}, {"assistant", (*pairs[i])[side]}});
      }
    }
    ALMOST_ASSIGN_OR_RETURN(const std::vector<absl::StatusOr<double>> scores, model->Rewards(dialogues));
    for (size_t i = first; i < end; ++i) {
      const auto &chosen = scores[2 * (i - first)], &rejected = scores[2 * (i - first) + 1];
      if (!chosen.ok() || !rejected.ok()) continue;  // longer than the context: no score
      ordered_json& row = *pairs[i];
      row["chosen_reward"] = *chosen;
      row["rejected_reward"] = *rejected;
      row["margin"] = *chosen - *rejected;
      row["reward"] = *chosen > *rejected ? "agrees" : *chosen < *rejected ? "disagrees" : "undecided";
    }
    display.Update(
        {{"scores", end == pairs.size() ? ProgressLine::State::kDone : ProgressLine::State::kRunning,
          static_cast<int64_t>(end), static_cast<int64_t>(pairs.size()),
          absl::ToDoubleSeconds(absl::Now() - started), ""}},
        absl::Now());
  }
  out.card.push_back({"reward model", absl::StrCat(model->about().name(), ", ", model->about().digest())});
  return absl::OkStatus();
}

absl::Status Inspect(const Cli& cli, const InspectFlags& flags) {
  Inspected out;
  const bool is_file = IsJsonLines(flags.what);
  const std::string file = fs::path(flags.what).filename().string();
  const std::string name = is_file ? file.substr(0, file.rfind(".jsonl")) : flags.dataset;
  if (!is_file && fs::is_regular_file(flags.what)) {
    return absl::InvalidArgumentError(absl::StrCat(flags.what, ": must be JSON Lines, .jsonl or .jsonl.gz"));
  }
  const std::string to = !flags.to.empty() ? flags.to
                         : is_file         ? absl::StrCat(name, ".html")
                                   : absl::StrCat(absl::StripPrefix(flags.what, "runs/"), "-", name, ".html");
  ALMOST_RETURN_IF_ERROR(CheckOutput(to));
  if (is_file) {
    ALMOST_RETURN_IF_ERROR(AddFile(name, flags.what, out));
  } else {
    ALMOST_RETURN_IF_ERROR(AddRun(cli, flags, out));
  }
  if (out.rows.empty()) return absl::InvalidArgumentError(absl::StrCat(flags.what, ": holds no row"));
  ProgressDisplay display(stderr);
  if (!flags.reward_model.empty()) ALMOST_RETURN_IF_ERROR(AddRewards(cli, flags, display, out));
  const absl::Time started = absl::Now();
  MarkNearDuplicates(out.rows, flags.near, [&](int64_t done, int64_t total) {
    display.Update(
        {{"near duplicates", done == total ? ProgressLine::State::kDone : ProgressLine::State::kRunning, done,
          total, absl::ToDoubleSeconds(absl::Now() - started), ""}},
        absl::Now());
  });
  for (ordered_json& row : out.rows) {
    row["like_an_earlier_prompt"] = row.contains("near_duplicate_of") ? "yes" : "no";
  }
  const auto histogram = [](const char* column, const char* title, const char* note,
                            const char* x) -> ordered_json {
    return {{"column", column}, {"title", title}, {"note", note}, {"x", x}};
  };
  const ordered_json data = {
      {"title", is_file ? file : absl::StrCat(flags.dataset, " of ", flags.what)},
      {"subtitle", absl::StrCat(out.rows.size(), " rows")},
      {"lead", {"prompt", "chosen", "rejected", "messages", "response", "text"}},
      {"sort", flags.reward_model.empty() ? ordered_json()
                                          : ordered_json{{"column", "margin"}, {"descending", false}}},
      {"histograms",
       {histogram("margin", "Does the reward agree with the rank?",
                  "Reward of the better-ranked answer less the other's; below zero they disagree.", "margin"),
        histogram("length_difference", "Is the better-ranked answer longer?", "Above zero it is.",
                  "characters"),
        histogram("chosen_length", "How long are chosen answers?", "", "characters"),
        histogram("rejected_length", "How long are rejected answers?", "", "characters"),
        histogram("chosen_reward", "How are chosen answers scored?", "", "reward"),
        histogram("rejected_reward", "How are rejected answers scored?", "", "reward"),
        histogram("score", "How are dialogues scored?", "The reward of the last answer.", "score"),
        histogram("score_spread", "How far apart are candidates?", "Highest less lowest score of a turn.",
                  "score"),
        histogram("answer_length", "How long are answers?", "All turns together.", "characters"),
        histogram("length", "How long are they?", "", "characters"),
        histogram("num_tokens", "How many tokens?", "", "tokens")}},
      {"card", out.card},
      {"readme", out.readme},
      {"lineage", out.lineage}};
  ALMOST_RETURN_IF_ERROR(Env::Posix()->WriteAtomically(to, RenderPage(kInspectScript, data, out.rows)));
  absl::PrintF("%s\n", fs::absolute(to).lexically_normal().string());
  return absl::OkStatus();
}

}  // namespace

void AddInspect(CLI::App& app, Cli& cli) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* inspect = app.add_subcommand("inspect",
                                         "A page to read a dataset with: rows to search, filter and sort, "
                                         "histograms, near-duplicates, its card");
  inspect->add_option("WHAT", flags->what, "A run's id, or a file of JSON Lines (.jsonl, .jsonl.gz)")
      ->required();
  inspect
      ->add_option("--dataset", flags->dataset, "Of a run: comparisons, demonstrations, responses or prompts")
      ->check(CLI::IsMember({"comparisons", "demonstrations", "responses", "prompts"}))
      ->capture_default_str();
  inspect->add_option("--reward_model", flags->reward_model,
                      absl::StrCat("Scores both sides of comparisons and sorts by disagreement: ",
                                   kModelArgument));
  inspect->add_option("--near", flags->near, "ROUGE-L F1 from which two prompts are near-duplicates")
      ->check(CLI::Range(0.1, 1.0))
      ->capture_default_str();
  inspect->add_option("--to", flags->to, "The file; by default RUN-DATASET.html here");
  inspect->callback([&cli, flags] { cli.action = [&cli, flags] { return Inspect(cli, *flags); }; });
}

}  // namespace almost::cli
