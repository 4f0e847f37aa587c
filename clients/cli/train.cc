// almost train, almost jobs: training jobs of the trainer service.

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

// An ended job's outcome: kAborted where it failed, kCancelled.
absl::Status Outcome(const pb::Job& job) {
  if (job.state() == pb::JOB_STATE_FAILED) {
    return absl::AbortedError(absl::StrCat(job.name(), " failed: ", job.error().message()));
  }
  if (job.state() == pb::JOB_STATE_CANCELLED) {
    return absl::CancelledError(absl::StrCat(job.name(), " was cancelled"));
  }
  return absl::OkStatus();
}

std::string Steps(const pb::Job& job) { return absl::StrCat(job.step(), "/", job.num_steps()); }

void Print(const Cli& cli, const pb::Job& job, bool one_line = false) {
  if (cli.json) {
    PrintJson(stdout, job, one_line);
  } else {
    absl::PrintF("%s: %s%s\n", job.name(), StateName(job.state()),
                 job.output_digest().empty() ? absl::StrCat(", step ", Steps(job))
                                             : absl::StrCat(", model artifacts/", job.output_digest()));
  }
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
  if (flags.validate_only && !cli.json) {
    absl::PrintF("%s is valid.\n", flags.spec);
  } else {
    Print(cli, job, flags.follow);
  }
  return Outcome(job);
}

absl::Status List(const Cli& cli) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "trainer"));
  pb::ListJobsResponse all;
  pb::ListJobsRequest request;
  do {
    ALMOST_ASSIGN_OR_RETURN(pb::ListJobsResponse page,
                            Call<Trainer>(endpoint, &Trainer::Stub::ListJobs, request));
    request.set_page_token(page.next_page_token());
    all.mutable_jobs()->MergeFrom(page.jobs());
  } while (!request.page_token().empty());
  if (cli.json) {
    PrintJson(stdout, all);
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {{"JOB", "STATE", "STEP", "CREATED", "ENDED"}};
  for (const pb::Job& job : all.jobs()) {
    rows.push_back({std::string(absl::StripPrefix(job.name(), "jobs/")), StateName(job.state()), Steps(job),
                    TimeText(job.create_time()), TimeText(job.end_time())});
  }
  PrintTable(stdout, rows);
  return absl::OkStatus();
}

template <typename Request>
absl::Status OneJob(const Cli& cli, const std::string& id,
                    grpc::Status (Trainer::Stub::*method)(grpc::ClientContext*, const Request&, pb::Job*)) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "trainer"));
  Request request;
  request.set_name(ResourceName("jobs", id));
  ALMOST_ASSIGN_OR_RETURN(const pb::Job job, Call<Trainer>(endpoint, method, request));
  Print(cli, job);
  if (!cli.json && job.has_error()) absl::PrintF("%s\n", job.error().message());
  return absl::OkStatus();
}

absl::Status WatchOne(const Cli& cli, const std::string& id) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "trainer"));
  ALMOST_ASSIGN_OR_RETURN(const pb::Job job, Follow(cli, endpoint, ResourceName("jobs", id)));
  Print(cli, job, /*one_line=*/true);
  return Outcome(job);
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
  train->add_option("--seed", flags->seed, "In place of the spec's")->check(CLI::NonNegativeNumber);
  train->add_flag("--follow", flags->follow, "Shows the progress until the job ends");
  train->add_flag("--validate_only", flags->validate_only,
                  "Checks the spec and the files it names, and trains nothing");
  train->callback([&cli, flags] { cli.action = [&cli, flags] { return Train(cli, *flags); }; });
}

void AddJobs(CLI::App& app, Cli& cli) {
  CLI::App* jobs = app.add_subcommand("jobs", "Training jobs: list, show, watch, pause, resume, cancel");
  jobs->require_subcommand(1);
  const auto verb = [&](const char* name, const char* help, std::function<absl::Status()> action) {
    CLI::App* sub = jobs->add_subcommand(name, help);
    sub->callback([&cli, action = std::move(action)] { cli.action = action; });
    return sub;
  };
  verb("list", "All jobs, newest first", [&cli] { return List(cli); });
  auto id = std::make_shared<std::string>();
  const auto of_one = [&](const char* name, const char* help, std::function<absl::Status()> action) {
    verb(name, help, std::move(action))->add_option("JOB", *id, "The job's id")->required();
  };
  of_one("show", "One job", [&cli, id] { return OneJob(cli, *id, &Trainer::Stub::GetJob); });
  of_one("watch", "Follows a job until it ends", [&cli, id] { return WatchOne(cli, *id); });
  of_one("pause", "Stops a job at a checkpoint after the step under way; the device is free for others",
         [&cli, id] { return OneJob(cli, *id, &Trainer::Stub::PauseJob); });
  of_one("resume", "Goes on with a paused job, or with one that failed for want of room or of a service",
         [&cli, id] { return OneJob(cli, *id, &Trainer::Stub::ResumeJob); });
  of_one("cancel", "Gives a job up", [&cli, id] { return OneJob(cli, *id, &Trainer::Stub::CancelJob); });
}

}  // namespace almost::cli
