// almost train: one training job through the trainer service.

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "almost/trainer/v1/trainer.grpc.pb.h"
#include "clients/cli/endpoints.h"
#include "clients/cli/progress.h"
#include "clients/cli/table.h"
#include "clients/cli/verbs.h"
#include "clients/cli/watch.h"
#include "clients/cli/yaml_file.h"
#include "common/base/status_macros.h"

namespace almost::cli {
namespace {

namespace pb = almost::trainer::v1;
using Trainer = pb::TrainerService;

struct TrainFlags {
  std::string spec, id, base_model, output;
  std::optional<uint64_t> seed;
  bool follow = false, validate_only = false;
};

std::string StateName(pb::JobState state) {
  return std::string(absl::StripPrefix(pb::JobState_Name(state), "JOB_STATE_"));
}

ProgressLine LineOf(const pb::JobEvent& event, const std::map<std::string, double>& metrics,
                    absl::Duration elapsed) {
  ProgressLine line;
  line.label = "training";
  line.done = event.step();
  line.total = event.num_steps();
  line.seconds = absl::ToDoubleSeconds(elapsed);
  line.state = event.state() == pb::JOB_STATE_RUNNING     ? ProgressLine::State::kRunning
               : event.state() == pb::JOB_STATE_SUCCEEDED ? ProgressLine::State::kDone
               : event.state() == pb::JOB_STATE_QUEUED || event.state() == pb::JOB_STATE_PAUSED
                   ? ProgressLine::State::kWaiting
                   : ProgressLine::State::kFailed;
  std::vector<std::string> figures;
  for (const char* name :
       {"loss", "accuracy", "held_out_accuracy", "reward_mean", "kl", "tokens_per_second"}) {
    const auto value = metrics.find(name);
    if (value != metrics.end()) figures.push_back(absl::StrFormat("%s %.4g", name, value->second));
  }
  line.note = absl::StrJoin(figures, "  ");
  return line;
}

absl::StatusOr<pb::Job> Follow(const Cli& cli, const Endpoint& endpoint, const std::string& name) {
  ProgressDisplay display(stdout);
  absl::Time started = absl::Now();
  pb::JobState state = pb::JOB_STATE_UNSPECIFIED;
  Watcher<pb::JobEvent> watcher;
  std::map<std::string, double> metrics;  // the last event has none of its own
  watcher.take = [&](const pb::JobEvent& event) {
    for (const auto& [metric, value] : event.metrics()) metrics[metric] = value;
    if (state != pb::JOB_STATE_RUNNING && event.state() == pb::JOB_STATE_RUNNING) started = absl::Now();
    state = event.state();
    if (cli.json) {
      PrintJson(stdout, event, /*one_line=*/true);
      fflush(stdout);
    } else {
      display.Update({LineOf(event, metrics, absl::Now() - started)}, absl::Now());
    }
  };
  watcher.ended = [&] {
    return state == pb::JOB_STATE_SUCCEEDED || state == pb::JOB_STATE_FAILED ||
           state == pb::JOB_STATE_CANCELLED;
  };
  watcher.say = [&](const std::string& message) {
    if (!cli.json) display.Say(message);
  };
  const auto stub = Trainer::NewStub(endpoint.channel);
  pb::WatchJobRequest request;
  request.set_name(name);
  ALMOST_RETURN_IF_ERROR(Watch<Trainer::Stub>(endpoint, *stub, &Trainer::Stub::WatchJob, request, watcher));
  pb::GetJobRequest get;
  get.set_name(name);
  return Call<Trainer>(endpoint, &Trainer::Stub::GetJob, get);
}

absl::Status Train(const Cli& cli, const TrainFlags& flags) {
  pb::CreateJobRequest request;
  request.set_job_id(flags.id.empty() ? IdFromFile(flags.spec) : flags.id);
  request.set_validate_only(flags.validate_only);
  pb::JobSpec& spec = *request.mutable_spec();
  ALMOST_RETURN_IF_ERROR(ReadYamlFile(flags.spec, &spec));
  if (!flags.base_model.empty()) spec.set_base_model(flags.base_model);
  if (!flags.output.empty()) spec.set_output(flags.output);
  if (flags.seed) spec.set_seed(*flags.seed);
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "trainer"));
  ALMOST_ASSIGN_OR_RETURN(pb::Job job, Call<Trainer>(endpoint, &Trainer::Stub::CreateJob, request));
  if (flags.follow && !flags.validate_only) {
    ALMOST_ASSIGN_OR_RETURN(job, Follow(cli, endpoint, job.name()));
  }
  if (cli.json) {
    PrintJson(stdout, job, flags.follow);
  } else if (flags.validate_only) {
    absl::PrintF("%s is valid.\n", flags.spec);
  } else {
    absl::PrintF("%s: %s%s\n", job.name(), StateName(job.state()),
                 job.output_digest().empty() ? "" : absl::StrCat(", model artifacts/", job.output_digest()));
  }
  if (job.state() == pb::JOB_STATE_FAILED) {
    return absl::AbortedError(absl::StrCat(job.name(), " failed: ", job.error().message()));
  }
  if (job.state() == pb::JOB_STATE_CANCELLED)
    return absl::CancelledError(absl::StrCat(job.name(), " was cancelled"));
  return absl::OkStatus();
}

}  // namespace

void AddTrain(CLI::App& app, Cli& cli) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App* train =
      app.add_subcommand("train", "Trains one model: pretrain, sft, reward_model, dpo, ppo or grpo");
  train->add_option("SPEC", flags->spec, "YAML of almost.trainer.v1.JobSpec")->required();
  train->add_option("--id", flags->id, "The job's id; by default the file's name and the time");
  train->add_option("--base_model", flags->base_model, "In place of the spec's");
  train->add_option("--model_output", flags->output,
                    "Folder for the finished model, in place of the spec's output");
  train->add_option("--seed", flags->seed, "In place of the spec's");
  train->add_flag("--follow", flags->follow, "Shows the progress until the job ends");
  train->add_flag("--validate_only", flags->validate_only,
                  "Checks the spec and the files it names, and trains nothing");
  train->callback([&cli, flags] { cli.action = [&cli, flags] { return Train(cli, *flags); }; });
}

}  // namespace almost::cli
