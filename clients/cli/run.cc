// almost run: the whole method, or as much of it as the recipe asks for.

#include <filesystem>
#include <map>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "almost/orchestrator/v1/orchestrator.grpc.pb.h"
#include "clients/cli/endpoints.h"
#include "clients/cli/recipe_file.h"
#include "clients/cli/run_follower.h"
#include "clients/cli/table.h"
#include "clients/cli/verbs.h"
#include "clients/cli/yaml_file.h"
#include "common/base/status_macros.h"

namespace almost::cli {
namespace {

namespace fs = std::filesystem;
namespace pb = almost::orchestrator::v1;

std::string TokensText(int64_t tokens) {
  if (tokens >= 10'000'000) return absl::StrFormat("%.0fM", static_cast<double>(tokens) / 1e6);
  if (tokens >= 10'000) return absl::StrFormat("%.0fk", static_cast<double>(tokens) / 1e3);
  return absl::StrCat(tokens);
}

std::string BytesText(int64_t bytes) {
  const double megabytes = static_cast<double>(bytes) / 1e6;
  return megabytes >= 1000 ? absl::StrFormat("%.3g GB", megabytes / 1000)
                           : absl::StrFormat("%.3g MB", megabytes);
}

std::string ModelsText(const pb::StagePlan& plan) {
  std::vector<std::string> models;
  for (const pb::PlannedModel& model : plan.models()) {
    models.push_back(absl::StrFormat("%s on %s %s (%s)", model.id(), model.service(), model.device(),
                                     BytesText(model.weight_bytes())));
  }
  return absl::StrJoin(models, ", ");
}

// The most weights that each service has in memory at once.
std::string MemoryText(const pb::Run& run) {
  struct Peak {
    int64_t bytes = 0;
    std::string stage;
  };
  std::map<std::string, Peak> peaks;
  for (const pb::Stage& stage : run.stages()) {
    std::map<std::pair<std::string, int>, int64_t> bytes;  // by service and turn
    for (const pb::PlannedModel& model : stage.plan().models()) {
      bytes[{model.service(), model.turn()}] += model.weight_bytes();
    }
    for (const auto& [place, sum] : bytes) {
      Peak& peak = peaks[place.first];
      if (sum > peak.bytes) peak = {sum, stage.id()};
    }
  }
  std::vector<std::string> texts;
  for (const auto& [service, peak] : peaks) {
    texts.push_back(absl::StrFormat("%s %s (%s)", service, BytesText(peak.bytes), peak.stage));
  }
  return texts.empty() ? "" : absl::StrCat("Most weights at once: ", absl::StrJoin(texts, ", "), ".\n");
}

// What would be done, what is there already, and what it is expected to take.
void PrintPlan(const pb::Run& run) {
  std::vector<std::vector<std::string>> rows = {
      {"STAGE", "WOULD BE", "TOKENS DRAWN", "SCORES", "TIME", "MODELS"}};
  double seconds = 0;
  std::vector<std::string> unmeasured;
  for (const pb::Stage& stage : run.stages()) {
    const pb::StagePlan& plan = stage.plan();
    const std::string label = LabelOf(stage, run.recipe());
    if (!stage.cached_from().empty()) {
      rows.push_back({label, absl::StrCat("taken from ", stage.cached_from()), "", "", "", ModelsText(plan)});
      continue;
    }
    const bool measured = !plan.measured_by().empty();
    const int64_t expected = plan.cost().generated_tokens();
    const int64_t most = plan.max_generated_tokens();
    rows.push_back({label, "done",
                    expected > 0            ? absl::StrCat("about ", TokensText(expected))
                    : !measured && most > 0 ? absl::StrCat("at most ", TokensText(most))
                                            : "",
                    plan.cost().scored_items() > 0 ? absl::StrCat(plan.cost().scored_items()) : "",
                    measured ? absl::StrFormat("%.3g s", plan.seconds()) : "", ModelsText(plan)});
    seconds += plan.seconds();
    if (!measured && stage.id() != "report") unmeasured.push_back(label);
  }
  PrintTable(stdout, rows);
  absl::PrintF("Expected time: %.3g s", seconds);
  if (!unmeasured.empty()) {
    absl::PrintF(", and that of %s, of which no run has measured its like", absl::StrJoin(unmeasured, ", "));
  }
  absl::PrintF(".\n%s", MemoryText(run));
}

// Every model of the recipe is loaded once to be looked at.
constexpr absl::Duration kCreateTimeout = absl::Minutes(30);

struct RunFlags {
  std::string recipe, id, judge;
  std::vector<std::filesystem::path> changes;
  std::optional<uint64_t> seed;
  bool follow = false, validate_only = false, recompute = false;
  int priority = 0;
};

absl::Status Run(const Cli& cli, const RunFlags& flags) {
  ALMOST_ASSIGN_OR_RETURN(const std::string judge, FindJudge(cli, flags.judge));
  pb::CreateRunRequest request;
  ALMOST_ASSIGN_OR_RETURN(*request.mutable_recipe(), ReadRecipe(flags.recipe, judge, flags.changes));
  if (flags.seed) request.mutable_recipe()->set_seed(*flags.seed);
  request.set_run_id(flags.id.empty() ? IdFromFile(flags.recipe) : flags.id);
  request.set_validate_only(flags.validate_only);
  request.set_recompute(flags.recompute);
  request.set_priority(flags.priority);
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  ALMOST_ASSIGN_OR_RETURN(
      pb::Run run, Call<pb::OrchestratorService>(endpoint, &pb::OrchestratorService::Stub::CreateRun, request,
                                                 kCreateTimeout));
  if (flags.validate_only || !flags.follow) {
    if (cli.json) {
      PrintJson(stdout, run);
    } else if (flags.validate_only) {
      PrintPlan(run);
      absl::PrintF("%s is valid; nothing was started.\n", flags.recipe);
    } else {
      absl::PrintF("Started %s; `almost runs watch %s` follows it.\n", run.name(), request.run_id());
    }
    return absl::OkStatus();
  }
  if (!cli.json) {
    absl::PrintF("Following %s; Ctrl-C leaves it going, `almost runs watch %s` comes back to it.\n",
                 run.name(), request.run_id());
  }
  ALMOST_ASSIGN_OR_RETURN(run, FollowRun(endpoint, run.name(), cli.json, stdout));
  if (cli.json) {
    PrintJson(stdout, run, /*one_line=*/true);
    return Outcome(run);
  }
  if (!run.summary_json().empty()) {
    absl::PrintF("\n");
    ALMOST_RETURN_IF_ERROR(PrintSummary(stdout, run.summary_json()));
  }
  ALMOST_RETURN_IF_ERROR(Outcome(run));
  const fs::path report = fs::absolute(fs::path(cli.store)) / "runs" / request.run_id() / "report.html";
  absl::PrintF("\nReport: %s\n", fs::exists(report) ? report.lexically_normal().string()
                                                    : absl::StrCat("`almost report ", request.run_id(), "`"));
  return absl::OkStatus();
}

}  // namespace

void AddRun(CLI::App& app, Cli& cli) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* run = app.add_subcommand("run", "Runs a recipe, from prompts to the report");
  run->add_option("RECIPE", flags->recipe, "YAML of almost.orchestrator.v1.Recipe")->required();
  run->add_option("--with", flags->changes,
                  "YAML of what is different, such as deploy/recipes/ablations/*.yaml; repeatable");
  run->add_option("--id", flags->id, "The run's id; by default the file's name and the time");
  run->add_option("--seed", flags->seed, "In place of the recipe's")->check(CLI::NonNegativeNumber);
  run->add_option("--judge", flags->judge, "host:port of the JudgeService that a recipe calls up:judge");
  run->add_flag("--follow", flags->follow, "Shows the progress until the run ends");
  run->add_option("--priority", flags->priority, "Work of runs with a higher one goes first");
  run->add_flag("--recompute", flags->recompute,
                "Does every stage, even where an earlier run has done the same");
  run->add_flag("--dry-run,--validate_only", flags->validate_only,
                "Checks the recipe and tells what would be done and what it would take; starts nothing");
  run->callback([&cli, flags] { cli.action = [&cli, flags] { return Run(cli, *flags); }; });
}

}  // namespace almost::cli
