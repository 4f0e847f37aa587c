// almost runs: what has been started, and what becomes of it.

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "almost/orchestrator/v1/orchestrator.grpc.pb.h"
#include "clients/cli/endpoints.h"
#include "clients/cli/run_follower.h"
#include "clients/cli/table.h"
#include "clients/cli/verbs.h"
#include "common/base/status_macros.h"
#include "common/evaluation/statistics.h"
#include "nlohmann/json.hpp"

namespace almost::cli {
namespace {

namespace pb = almost::orchestrator::v1;
using nlohmann::ordered_json;
using Stub = pb::OrchestratorService::Stub;

absl::Status List(const Cli& cli) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  std::vector<std::vector<std::string>> rows = {{"RUN", "STATE", "CREATED", "ENDED"}};
  pb::ListRunsResponse all;
  pb::ListRunsRequest request;
  do {
    ALMOST_ASSIGN_OR_RETURN(pb::ListRunsResponse page,
                            Call<pb::OrchestratorService>(endpoint, &Stub::ListRuns, request));
    request.set_page_token(page.next_page_token());
    all.mutable_runs()->MergeFrom(page.runs());
  } while (!request.page_token().empty());
  if (cli.json) {
    PrintJson(stdout, all);
    return absl::OkStatus();
  }
  for (const pb::Run& run : all.runs()) {
    rows.push_back({std::string(absl::StripPrefix(run.name(), "runs/")), StateName(run.state()),
                    TimeText(run.create_time()), TimeText(run.end_time())});
  }
  PrintTable(stdout, rows);
  return absl::OkStatus();
}

absl::Status Print(const Cli& cli, const pb::Run& run) {
  if (cli.json) {
    PrintJson(stdout, run);
    return absl::OkStatus();
  }
  absl::PrintF("%s: %s, created %s, ended %s\n", run.name(), StateName(run.state()),
               TimeText(run.create_time()), TimeText(run.end_time()));
  if (run.has_error()) absl::PrintF("%s\n", run.error().message());
  for (const pb::Stage& stage : run.stages()) {
    absl::PrintF("%s\n", FormatProgressLine(LineOf(stage, run.recipe()), 0));
  }
  return run.summary_json().empty() ? absl::OkStatus() : PrintSummary(stdout, run.summary_json());
}

template <typename Request>
absl::Status OneRun(const Cli& cli, const std::string& id,
                    grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, pb::Run*)) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  Request request;
  request.set_name(ResourceName("runs", id));
  ALMOST_ASSIGN_OR_RETURN(const pb::Run run, Call<pb::OrchestratorService>(endpoint, method, request));
  return Print(cli, run);
}

// Name and value of every figure of a summary, in its order; of an estimate its value.
void AddFigures(const std::string& name, const ordered_json& value,
                std::vector<std::pair<std::string, double>>& out) {
  if (value.is_number()) {
    out.emplace_back(name, value.get<double>());
  } else if (value.is_object() && value.contains("value") && value.contains("low")) {
    AddFigures(name, value["value"], out);
  } else if (value.is_object() && name != "artifact_hashes") {
    for (const auto& [key, inner] : value.items()) {
      AddFigures(name.empty() ? key : absl::StrCat(name, ".", key), inner, out);
    }
  }
}

absl::Status Compare(const Cli& cli, const std::vector<std::string>& ids) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  std::vector<std::string> names;  // of figures, in the first run's order, then those that others add
  std::map<std::string, std::vector<std::optional<double>>> values;
  for (size_t i = 0; i < ids.size(); ++i) {
    pb::GetRunRequest request;
    request.set_name(ResourceName("runs", ids[i]));
    ALMOST_ASSIGN_OR_RETURN(const pb::Run run,
                            Call<pb::OrchestratorService>(endpoint, &Stub::GetRun, request));
    if (run.summary_json().empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat(run.name(), " is ", StateName(run.state()), " and has no figures yet"));
    }
    std::vector<std::pair<std::string, double>> figures;
    AddFigures("", ordered_json::parse(run.summary_json(), nullptr, /*allow_exceptions=*/false), figures);
    for (const auto& [name, value] : figures) {
      auto [entry, added] = values.try_emplace(name, ids.size());
      if (added) names.push_back(name);
      entry->second[i] = value;
    }
  }
  ordered_json all = ordered_json::object();
  std::vector<std::vector<std::string>> rows = {{"FIGURE"}};
  rows[0].insert(rows[0].end(), ids.begin(), ids.end());
  rows[0].insert(rows[0].end(), {"MEAN", "STANDARD ERROR"});
  for (const std::string& name : names) {
    std::vector<std::string>& row = rows.emplace_back(1, name);
    std::vector<double> there;
    for (const std::optional<double>& value : values[name]) {
      if (value) there.push_back(*value);
    }
    const bool counts = std::ranges::all_of(there, [](double value) { return value == std::floor(value); });
    for (const std::optional<double>& value : values[name]) {
      row.push_back(!value   ? "-"
                    : counts ? absl::StrFormat("%.0f", *value)
                             : absl::StrFormat("%.3f", *value));
    }
    const MeanOverRuns mean = MeanOf(there);
    row.insert(row.end(), {absl::StrFormat("%.3f", mean.mean), absl::StrFormat("%.3f", mean.standard_error)});
    all[name] = {{"values", there}, {"mean", mean.mean}, {"standard_error", mean.standard_error}};
  }
  if (cli.json) {
    absl::PrintF("%s\n", all.dump(1));
  } else {
    PrintTable(stdout, rows);
  }
  return absl::OkStatus();
}

absl::Status Watch(const Cli& cli, const std::string& id) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  ALMOST_ASSIGN_OR_RETURN(const pb::Run run, FollowRun(endpoint, ResourceName("runs", id), cli.json, stdout));
  if (!cli.json && !run.summary_json().empty())
    ALMOST_RETURN_IF_ERROR(PrintSummary(stdout, run.summary_json()));
  return Outcome(run);
}

absl::Status Delete(const Cli& cli, const std::string& id) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  pb::DeleteRunRequest request;
  request.set_name(ResourceName("runs", id));
  ALMOST_ASSIGN_OR_RETURN(const pb::DeleteRunResponse response,
                          Call<pb::OrchestratorService>(endpoint, &Stub::DeleteRun, request));
  if (cli.json) {
    PrintJson(stdout, response);
  } else {
    absl::PrintF("Deleted %s. Its artifacts go when garbage is collected and nothing else needs them.\n",
                 request.name());
  }
  return absl::OkStatus();
}

}  // namespace

void AddRuns(CLI::App& app, Cli& cli) {
  CLI::App* runs =
      app.add_subcommand("runs", "Runs: list, show, compare, watch, pause, cancel, resume, delete");
  runs->require_subcommand(1);
  auto id = std::make_shared<std::string>();
  const auto verb = [&](const char* name, const char* help, std::function<absl::Status()> action) {
    CLI::App* sub = runs->add_subcommand(name, help);
    sub->callback([&cli, action = std::move(action)] { cli.action = action; });
    return sub;
  };
  verb("list", "All runs, newest first", [&cli] { return List(cli); });
  const auto with_id = [&](CLI::App* sub) { sub->add_option("RUN", *id, "The run's id")->required(); };
  with_id(verb("show", "One run with its stages and figures",
               [&cli, id] { return OneRun(cli, *id, &Stub::GetRun); }));
  auto ids = std::make_shared<std::vector<std::string>>();
  verb("compare", "Figures of several runs side by side, as a rule of several seeds: mean and standard error",
       [&cli, ids] { return Compare(cli, *ids); })
      ->add_option("RUN", *ids, "The runs' ids")
      ->required();
  with_id(verb("watch", "Follows a run until it ends", [&cli, id] { return Watch(cli, *id); }));
  with_id(verb("pause", "Stops a run for now; it keeps all it has done, training jobs at a checkpoint",
               [&cli, id] { return OneRun(cli, *id, &Stub::PauseRun); }));
  with_id(verb("cancel", "Stops a run; it can be resumed, a training job under way from its beginning",
               [&cli, id] { return OneRun(cli, *id, &Stub::CancelRun); }));
  with_id(verb("delete", "Forgets a run that has ended, and its folder in the store",
               [&cli, id] { return Delete(cli, *id); }));
  with_id(verb("resume", "Goes on with a failed, cancelled or paused run",
               [&cli, id] { return OneRun(cli, *id, &Stub::ResumeRun); }));
}

}  // namespace almost::cli
