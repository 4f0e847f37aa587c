// almost run: the whole method, or as much of it as the recipe asks for.

#include <filesystem>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "almost/orchestrator/v1/orchestrator.grpc.pb.h"
#include "clients/cli/endpoints.h"
#include "clients/cli/recipe_file.h"
#include "clients/cli/run_follower.h"
#include "clients/cli/table.h"
#include "clients/cli/up_file.h"
#include "clients/cli/verbs.h"
#include "clients/cli/yaml_file.h"
#include "common/base/status_macros.h"

namespace almost::cli {
namespace {

namespace fs = std::filesystem;
namespace pb = almost::orchestrator::v1;

struct RunFlags {
  std::string recipe, id, judge;
  std::optional<uint64_t> seed;
  bool follow = false, validate_only = false, recompute = false;
};

absl::Status Run(const Cli& cli, const RunFlags& flags) {
  std::string judge = flags.judge;
  if (judge.empty()) {
    ALMOST_ASSIGN_OR_RETURN(const UpFile up, ReadUpFile(cli.store));
    if (const auto service = up.services.find("judge"); service != up.services.end())
      judge = service->second.address;
  }
  pb::CreateRunRequest request;
  ALMOST_ASSIGN_OR_RETURN(*request.mutable_recipe(), ReadRecipe(flags.recipe, judge));
  if (flags.seed) request.mutable_recipe()->set_seed(*flags.seed);
  request.set_run_id(flags.id.empty() ? IdFromFile(flags.recipe) : flags.id);
  request.set_validate_only(flags.validate_only);
  request.set_recompute(flags.recompute);
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  ALMOST_ASSIGN_OR_RETURN(pb::Run run, Call<pb::OrchestratorService>(
                                           endpoint, &pb::OrchestratorService::Stub::CreateRun, request));
  if (flags.validate_only || !flags.follow) {
    if (cli.json) {
      PrintJson(stdout, run);
    } else if (flags.validate_only) {
      absl::PrintF("%s is valid.\n", flags.recipe);
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
  run->add_option("--id", flags->id, "The run's id; by default the file's name and the time");
  run->add_option("--seed", flags->seed, "In place of the recipe's");
  run->add_option("--judge", flags->judge, "host:port of the JudgeService that a recipe calls up:judge");
  run->add_flag("--follow", flags->follow, "Shows the progress until the run ends");
  run->add_flag("--recompute", flags->recompute, "Does every stage, even where an earlier run has done the same");
  run->add_flag("--validate_only", flags->validate_only, "Checks the recipe, and starts nothing");
  run->callback([&cli, flags] { cli.action = [&cli, flags] { return Run(cli, *flags); }; });
}

}  // namespace almost::cli
