#include "clients/cli/run_follower.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "almost/orchestrator/v1/orchestrator.grpc.pb.h"
#include "clients/cli/table.h"
#include "clients/cli/watch.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace almost::cli {
namespace {

namespace pb = almost::orchestrator::v1;

// Whether no event will come unless somebody resumes the run.
bool Ended(pb::RunState state) {
  return state != pb::RUN_STATE_RUNNING && state != pb::RUN_STATE_PAUSED;
}

// What a person watches while a stage is at work, in order of preference.
std::string NoteOf(const pb::Stage& stage) {
  static constexpr const char* kFigures[] = {"kept", "loss",         "accuracy",   "reward_mean",
                                             "kl",   "win_rate_sft", "win_rate_rl"};
  std::vector<std::string> parts;
  if (!stage.cached_from().empty()) parts.push_back(absl::StrCat("from ", stage.cached_from()));
  for (const char* figure : kFigures) {
    const auto value = stage.figures().find(figure);
    if (value != stage.figures().end() && parts.size() < 3) {
      parts.push_back(absl::StrFormat("%s %.4g", figure, value->second));
    }
  }
  return absl::StrJoin(parts, "  ");
}

// The stages of a run as its events change them, on the screen.
class RunView {
 public:
  RunView(const pb::Run& run, bool json, FILE* out)
      : json_(json),
        out_(out),
        recipe_(run.recipe()),
        display_(out),
        stages_(run.stages().begin(), run.stages().end()) {
    Show();
  }

  void Take(const pb::RunEvent& event) {
    ended_ = Ended(event.state());
    if (json_) {
      PrintJson(out_, event, /*one_line=*/true);
      fflush(out_);
      return;
    }
    if (event.has_stage()) {
      const auto same = [&](const pb::Stage& stage) { return stage.id() == event.stage().id(); };
      const auto stage = std::find_if(stages_.begin(), stages_.end(), same);
      if (stage == stages_.end()) {
        stages_.push_back(event.stage());
      } else {
        *stage = event.stage();
      }
      Show();
    }
    const bool paused = event.state() == pb::RUN_STATE_PAUSED;
    if (paused && !paused_) Say(absl::StrCat("Paused until it is back: ", event.error().message()));
    if (!paused && paused_) Say("Going on.");
    paused_ = paused;
  }

  void Say(const std::string& message) {
    if (!json_) display_.Say(message);
  }

  bool ended() const { return ended_; }

 private:
  void Show() {
    if (json_) return;
    std::vector<ProgressLine> lines;
    for (const pb::Stage& stage : stages_) lines.push_back(LineOf(stage, recipe_));
    display_.Update(lines, absl::Now());
  }

  const bool json_;
  FILE* const out_;
  const pb::Recipe recipe_;
  ProgressDisplay display_;
  std::vector<pb::Stage> stages_;
  bool paused_ = false;
  bool ended_ = false;
};

}  // namespace

absl::StatusOr<pb::Run> FollowRun(const Endpoint& orchestrator, const std::string& name, bool json,
                                  FILE* out) {
  pb::GetRunRequest get;
  get.set_name(name);
  // The service may be restarting just now.
  const auto get_run = [&]() -> absl::StatusOr<pb::Run> {
    const absl::Time give_up = absl::Now() + absl::Seconds(10);
    while (true) {
      auto run = Call<pb::OrchestratorService>(orchestrator, &pb::OrchestratorService::Stub::GetRun, get);
      if (!absl::IsUnavailable(run.status()) || absl::Now() > give_up) return run;
      absl::SleepFor(absl::Milliseconds(200));
    }
  };
  ALMOST_ASSIGN_OR_RETURN(const pb::Run run, get_run());
  RunView view(run, json, out);
  const auto stub = pb::OrchestratorService::NewStub(orchestrator.channel);
  pb::WatchRunRequest request;
  request.set_name(name);
  ALMOST_RETURN_IF_ERROR(Watch<pb::OrchestratorService::Stub>(
      orchestrator, *stub, &pb::OrchestratorService::Stub::WatchRun, request,
      Watcher<pb::RunEvent>{[&](const pb::RunEvent& event) { view.Take(event); },
                            [&] { return view.ended(); },
                            [&](const std::string& message) { view.Say(message); }}));
  return get_run();
}

absl::Status Outcome(const pb::Run& run) {
  if (run.state() == pb::RUN_STATE_SUCCEEDED) return absl::OkStatus();
  const std::string id(absl::StripPrefix(run.name(), "runs/"));
  if (run.state() == pb::RUN_STATE_FAILED) {
    return absl::AbortedError(absl::StrCat("run ", id, " failed: ", run.error().message(),
                                           "\n  `almost runs resume ", id, "` goes on from where it was."));
  }
  return absl::CancelledError(absl::StrCat("run ", id, " is ", StateName(run.state()),
                                           "; `almost runs resume ", id, "` goes on from where it was."));
}

std::string LabelOf(const pb::Stage& stage, const pb::Recipe& recipe) {
  const pb::RlStage::Algorithm algorithm = recipe.rl().algorithm();
  if (stage.id() != "rl" || algorithm == pb::RlStage::ALGORITHM_UNSPECIFIED) return stage.id();
  const std::string& name = pb::RlStage::Algorithm_Name(algorithm);
  return absl::StrCat("rl (", absl::AsciiStrToLower(absl::StripPrefix(name, "ALGORITHM_")), ")");
}

ProgressLine LineOf(const pb::Stage& stage, const pb::Recipe& recipe) {
  ProgressLine line;
  line.label = LabelOf(stage, recipe);
  line.done = stage.items_done();
  line.total = stage.items_total();
  line.seconds = stage.seconds();
  line.note = NoteOf(stage);
  switch (stage.state()) {
    case pb::STAGE_STATE_RUNNING:
      line.state = ProgressLine::State::kRunning;
      break;
    case pb::STAGE_STATE_SUCCEEDED:
      line.state = ProgressLine::State::kDone;
      break;
    case pb::STAGE_STATE_FAILED:
      line.state = ProgressLine::State::kFailed;
      break;
    default:
      line.state = ProgressLine::State::kWaiting;
  }
  return line;
}

std::string StateName(pb::RunState state) {
  return std::string(absl::StripPrefix(pb::RunState_Name(state), "RUN_STATE_"));
}

absl::Status PrintSummary(FILE* out, const std::string& summary_json) {
  const auto summary = nlohmann::ordered_json::parse(summary_json, nullptr, /*allow_exceptions=*/false);
  if (!summary.is_object()) return absl::DataLossError("the run's summary is not a JSON object");
  std::vector<std::vector<std::string>> rows = {{"FIGURE", "VALUE", "95 % INTERVAL", "N"}};
  const auto number = [](const nlohmann::ordered_json& value) {
    return value.is_number_integer() ? absl::StrCat(value.get<int64_t>())
           : value.is_number()       ? absl::StrFormat("%.3f", value.get<double>())
           : value.is_string()       ? value.get<std::string>()
                                     : value.dump();
  };
  const std::function<void(const std::string&, const nlohmann::ordered_json&)> add =
      [&](const std::string& name, const nlohmann::ordered_json& value) {
        if (value.is_object() && value.contains("value") && value.contains("low")) {
          rows.push_back({name, number(value["value"]),
                          absl::StrCat("[", number(value["low"]), ", ", number(value["high"]), "]"),
                          value.contains("n") ? number(value["n"]) : ""});
        } else if (value.is_object()) {
          for (const auto& [key, inner] : value.items()) add(absl::StrCat(name, ".", key), inner);
        } else if (!value.is_array()) {
          rows.push_back({name, number(value)});
        }
      };
  for (const auto& [name, value] : summary.items()) {
    if (name != "artifact_hashes") add(name, value);  // for programs: summary.json has them
  }
  PrintTable(out, rows);
  return absl::OkStatus();
}

}  // namespace almost::cli
