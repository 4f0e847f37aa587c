#include <csignal>
#include <iostream>
#include <memory>
#include <thread>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/logging/logging.h"
#include "common/logging/trace.h"
#include "common/metrics/build_info.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "common/storage/store_options.h"
#include "services/trainer/core/output_folder.h"
#include "services/trainer/metrics.h"
#include "services/trainer/rpc/job_spec_proto.h"
#include "services/trainer/rpc/reward_client.h"
#include "services/trainer/rpc/trainer_service.h"
#include "services/trainer/torch/rendezvous.h"
#include "services/trainer/torch/runtime.h"
#include "services/trainer/torch/train.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;

struct Options {
  StoreOptions store;
  std::string jobs;              // folder of the jobs and their checkpoints; empty: <store>/jobs
  std::string model_root = ".";  // Hugging Face folders and files are addressed beneath it
  std::string device = "cpu";    // or "cuda:N"; opened, it is ranks.device
  ReplicaPoolOptions replicas;   // of reward services
  // One trainer of several processes: rank 0 serves, the others follow.
  RankOptions ranks;
  double rank_silence_seconds = 1800;
  ServerOptions server;
};

// One attempt after another where ranks come and go; without a step done, so many.
constexpr int kFruitlessAttempts = 5;

// Asks the store again for as long as S3 cannot be reached and the job is not to stop: what was trained for
// days is not lost to an outage of minutes.
template <typename Call>
auto WhileStoreIsAway(absl::string_view job, const std::stop_token& stop, const Call& call)
    -> decltype(call()) {
  constexpr absl::Duration kPause = absl::Seconds(1);
  while (true) {
    auto answer = call();
    if (!absl::IsUnavailable(answer.status())) return answer;
    if (stop.stop_requested()) return absl::CancelledError("the job was stopped");
    log::Warning("job waits for the store", {{"job", job}, {"error", answer.status().ToString()}});
    absl::SleepFor(kPause);
  }
}

// The spec of a job that was accepted when it was asked for: files that have gone since may come back.
absl::StatusOr<JobSpec> ReadAccepted(const v1::JobSpec& proto, absl::string_view job,
                                     const std::stop_token& stop, ArtifactStore& store,
                                     const Options& options) {
  absl::StatusOr<JobSpec> spec =
      WhileStoreIsAway(job, stop, [&] { return ReadJobSpec(proto, &store, options.model_root); });
  if (absl::IsInvalidArgument(spec.status())) return absl::FailedPreconditionError(spec.status().message());
  return spec;
}

// Calls all ranks to the job, again whenever one is lost: it goes on from its last checkpoint. An error of
// any rank's own is the job's, and so is a rank that is lost time after time without a step done.
absl::StatusOr<TrainedModel> TrainOnAllRanks(const JobContext& job, const JobSpec& spec, TrainContext context,
                                             Rendezvous& rendezvous) {
  const auto report = std::move(context.report);
  int fruitless = 0;
  context.report = [&](int64_t step, int64_t num_steps, const std::map<std::string, double>& values) {
    fruitless = 0;
    report(step, num_steps, values);
  };
  while (true) {
    absl::StatusOr<Group> group = rendezvous.Call(
        job.spec, MachineNumerics(context.device), job.stop,
        [&](int missing) { log::Warning("waiting for ranks", {{"job", job.id}, {"missing", missing}}); });
    absl::Status status = group.status();
    if (group.ok()) {
      context.group = &*group;
      const absl::StatusOr<TrainedModel> trained = Train(spec, context);
      if (trained.ok() || (!group->lost() && !absl::IsCancelled(trained.status()))) return trained;
      status = trained.status();
    } else if (!absl::IsUnavailable(status)) {
      return status;
    }
    if (job.stop.stop_requested()) return absl::CancelledError("stopped");
    if (absl::IsCancelled(status)) {
      log::Info("a rank is asked to stop", {{"job", job.id}});
      continue;
    }
    if (const absl::Status complaint = rendezvous.Complaint(); !complaint.ok()) return complaint;
    log::Warning("rank lost", {{"job", job.id}, {"error", std::string(status.message())}});
    if (++fruitless == kFruitlessAttempts) return status;
  }
}

absl::StatusOr<TrainedModel> RunJob(const JobContext& job, const Options& options, ArtifactStore& store,
                                    TrainerMetrics& metrics, prometheus::Registry& registry,
                                    Rendezvous* rendezvous) {
  const TraceScope trace(Trace::New());
  v1::JobSpec proto;
  if (!proto.ParseFromString(job.spec))
    return absl::DataLossError(absl::StrCat("job ", job.id, ": spec is damaged"));
  ALMOST_ASSIGN_OR_RETURN(const JobSpec spec, ReadAccepted(proto, job.id, job.stop, store, options));
  TrainContext context;
  context.device = options.ranks.device;
  context.work_folder = job.work_folder;
  context.stop = job.stop;
  context.report = [&](int64_t step, int64_t num_steps, const std::map<std::string, double>& values) {
    metrics.Step(step, values);
    job.report(step, num_steps, values);
  };
  context.checkpoint = [&](const CheckpointWork& work) { metrics.Checkpoint(work); };
  context.not_finite = [&] { metrics.NotFinite(); };
  context.warn = [&](const std::string& message) {
    log::Warning("job", {{"job", job.id}, {"message", message}});
  };
  if (proto.has_ppo() || proto.has_grpo()) {
    const v1::PpoSpec& kind = proto.has_ppo() ? proto.ppo() : proto.grpo();
    const auto scorer = [&](const std::string& field, const std::string& model, const std::string& digest) {
      const absl::StatusOr<Reader> reader =
          DescribeRewardModel(field, kind.reward_target(), model, options.replicas, job.stop, registry);
      if (reader.ok()) context.scorers.push_back(*reader);
      return MakeRewardFunction(kind.reward_target(), model, digest, options.replicas, job.stop, registry);
    };
    ALMOST_ASSIGN_OR_RETURN(context.reward,
                            scorer("reward_model", kind.reward_model(), kind.reward_digest()));
    if (!kind.guard_model().empty()) {
      ALMOST_ASSIGN_OR_RETURN(context.guard, scorer("guard_model", kind.guard_model(), kind.guard_digest()));
    }
  }
  log::Info("job started", {{"job", job.id}});
  ALMOST_ASSIGN_OR_RETURN(const TrainedModel trained, rendezvous == nullptr
                                                          ? Train(spec, context)
                                                          : TrainOnAllRanks(job, spec, context, *rendezvous));
  ArtifactDraft draft;
  draft.kind = "model";
  draft.folder = job.work_folder / "model";
  draft.inputs = ManifestInputs(proto);
  ALMOST_ASSIGN_OR_RETURN(draft.recipe, ManifestRecipe(proto));
  draft.numerics_id = trained.numerics_id;
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact,
                          WhileStoreIsAway(job.id, job.stop, [&] { return store.Publish(draft); }));
  if (!proto.output().empty()) {
    ALMOST_RETURN_IF_ERROR(PlaceModel(draft.folder, options.model_root, proto.output()));
  }
  log::Info("job finished", {{"job", job.id}, {"artifact", artifact.digest}});
  return TrainedModel{artifact.digest, trained.numerics_id};
}

// Takes part in jobs that rank 0 calls to, until it is asked to stop.
void FollowJobs(const Options& options, ArtifactStore& store, Rendezvous& rendezvous,
                const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    const auto run = [&](absl::string_view bytes, Group& group) -> absl::Status {
      v1::JobSpec proto;
      if (!proto.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
        return absl::DataLossError("the job's spec is damaged");
      }
      ALMOST_ASSIGN_OR_RETURN(const JobSpec spec, ReadAccepted(proto, "of rank 0", stop, store, options));
      TrainContext context;
      context.device = options.ranks.device;
      context.stop = stop;
      context.group = &group;
      return Train(spec, context).status();
    };
    absl::StatusOr<Rendezvous::Attempt> attempt =
        rendezvous.Follow(MachineNumerics(options.ranks.device), stop);
    if (!attempt.ok()) continue;
    log::Info("following a job");
    const absl::Status status = run(attempt->job, attempt->group);
    if (!status.ok() && !attempt->group.lost() && !absl::IsCancelled(status)) rendezvous.Complain(status);
    log::Info("job left", {{"status", status.ToString()}});
  }
}

// A rank but the first: no calls are served, health and metrics are.
absl::Status RunFollower(const Options& options, ArtifactStore& store, Rendezvous& rendezvous,
                         prometheus::Registry& registry) {
  v1::TrainerService::Service unimplemented;
  ALMOST_ASSIGN_OR_RETURN(
      const std::unique_ptr<Server> server,
      Server::Start(options.server, {{v1::TrainerService::service_full_name(), &unimplemented}}, registry));
  const std::jthread follower(
      [&](const std::stop_token& stop) { FollowJobs(options, store, rendezvous, stop); });
  server->SetReady();
  server->WaitForStop();
  return absl::OkStatus();
}

absl::Status Run(Options options) {
  ALMOST_RETURN_IF_ERROR(log::Start("trainer", options.server.log_level));
  ConfigureLibTorch();
  if (options.jobs.empty() && IsS3(options.store)) {
    return absl::InvalidArgumentError("jobs: with a store in S3, checkpoints need a folder that lasts");
  }
  ALMOST_ASSIGN_OR_RETURN(options.ranks.device, OpenDevice(options.device));
  ALMOST_ASSIGN_OR_RETURN(const std::shared_ptr<ArtifactStore> store, OpenStore(options.store));
  prometheus::Registry registry;
  ExportBuildInfo(registry, LibTorchVersion(), options.device);
  std::unique_ptr<Rendezvous> rendezvous;
  if (options.ranks.world_size != 1) {
    options.ranks.silence = absl::Seconds(options.rank_silence_seconds);
    ALMOST_ASSIGN_OR_RETURN(rendezvous, Rendezvous::Open(options.ranks));
    if (rendezvous->rank() != 0) return RunFollower(options, *store, *rendezvous, registry);
  }
  TrainerMetrics metrics(registry);
  const fs::path jobs_folder =
      options.jobs.empty() ? fs::path(options.store.root) / "jobs" : fs::path(options.jobs);
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<JobQueue> jobs,
                          JobQueue::Open(jobs_folder, [&](const JobContext& job) {
                            return RunJob(job, options, *store, metrics, registry, rendezvous.get());
                          }));
  TrainerService service(*jobs, store.get(), options.model_root, [&](const JobSpec& spec) {
    return TrainingNumericsId(options.ranks.device, spec.memory.precision, spec.num_threads,
                              options.ranks.world_size);
  });
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                          Server::Start(options.server, {{v1::TrainerService::service_full_name(), &service}},
                                        registry, [&] { metrics.Observe(*jobs); }));
  server->SetReady();
  server->WaitForStop();
  return absl::OkStatus();
}

}  // namespace
}  // namespace almost::trainer

int main(int argc, char** argv) {
  almost::BlockStopSignals();
  CLI::App app("Trains models as jobs.", "almost-trainer");
  almost::trainer::Options options;
  almost::AddStoreFlags(app, options.store);
  app.get_option("--store")->required();
  app.add_option("--jobs", options.jobs,
                 "Folder of the jobs and their checkpoints; by default jobs in the store");
  app.add_option("--model_root", options.model_root, "Folder beneath which models and datasets are addressed")
      ->capture_default_str();
  app.add_option("--device", options.device, "Where jobs are computed: cpu or cuda:N")->capture_default_str();
  app.add_option("--rank", options.ranks.rank, "Place among the processes that train together; 0 serves")
      ->envname("RANK")
      ->capture_default_str();
  app.add_option("--world_size", options.ranks.world_size, "How many processes train together")
      ->envname("WORLD_SIZE")
      ->capture_default_str();
  app.add_option("--master_addr", options.ranks.master_addr, "Host of rank 0, where the ranks meet")
      ->envname("MASTER_ADDR")
      ->capture_default_str();
  app.add_option("--master_port", options.ranks.master_port, "Its port")
      ->envname("MASTER_PORT")
      ->capture_default_str();
  app.add_option("--rank_silence_seconds", options.rank_silence_seconds,
                 "A rank that says nothing for so long within a step is given up")
      ->capture_default_str();
  almost::AddPeerTlsFlags(app, options.replicas.tls, "peer_");
  almost::AddServerFlags(app, options.server, "127.0.0.1:50054", "127.0.0.1:9454");
  CLI11_PARSE(app, argc, argv);
  options.replicas.token_file = options.server.token_file;
  if (const absl::Status status = almost::trainer::Run(options); !status.ok()) {
    std::cerr << "almost-trainer: " << status.message() << "\n";
    return 1;
  }
  // To Kubernetes, an index of a Job whose process ends with 0 is done; a rank that is told to go is to come
  // again.
  return options.ranks.world_size == 1 ? 0 : 128 + SIGTERM;
}
