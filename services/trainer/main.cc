#include <iostream>
#include <memory>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/logging/logging.h"
#include "common/logging/trace.h"
#include "common/metrics/build_info.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "google/protobuf/util/json_util.h"
#include "services/trainer/metrics.h"
#include "services/trainer/rpc/job_spec_proto.h"
#include "services/trainer/rpc/reward_client.h"
#include "services/trainer/rpc/trainer_service.h"
#include "services/trainer/torch/runtime.h"
#include "services/trainer/torch/train.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string store;             // folder of the artifact store; jobs live in its jobs/
  std::string model_root = ".";  // Hugging Face folders and files are addressed beneath it
  ReplicaPoolOptions replicas;   // of reward services
  ServerOptions server;
};

void ClearPlaces(v1::PpoSpec& spec) {
  spec.clear_dataset();
  spec.clear_mix_dataset();
  spec.clear_reward_target();
  spec.clear_reward_model();
  spec.clear_reward_source();
  spec.clear_guard_model();
  spec.clear_guard_digest();
}

// The part of a spec that the weights depend on, as JSON: no addresses, names or paths. What those stand for
// is pinned by the manifest's inputs.
absl::StatusOr<nlohmann::json> Content(v1::JobSpec spec) {
  spec.clear_base_model();
  spec.clear_output();
  spec.clear_checkpoint_steps();
  spec.clear_priority();
  switch (spec.kind_case()) {
    case v1::JobSpec::kPretrain:
      spec.mutable_pretrain()->clear_dataset();
      spec.mutable_pretrain()->clear_model_config();
      break;
    case v1::JobSpec::kSft:
      spec.mutable_sft()->clear_dataset();
      break;
    case v1::JobSpec::kRewardModel:
      spec.mutable_reward_model()->clear_dataset();
      break;
    case v1::JobSpec::kDpo:
      spec.mutable_dpo()->clear_dataset();
      break;
    case v1::JobSpec::kPpo:
      ClearPlaces(*spec.mutable_ppo());
      break;
    case v1::JobSpec::kGrpo:
      ClearPlaces(*spec.mutable_grpo());
      break;
    default:
      break;
  }
  std::string text;
  google::protobuf::util::JsonPrintOptions print;
  print.preserve_proto_field_names = true;
  if (!google::protobuf::util::MessageToJsonString(spec, &text, print).ok()) {
    return absl::InternalError("the spec has no JSON form");
  }
  return nlohmann::json::parse(text);
}

// What the job began from, by digest where it is an artifact.
std::map<std::string, std::string> Inputs(const v1::JobSpec& spec) {
  std::map<std::string, std::string> inputs;
  const auto add = [&](const char* name, const std::string& source) {
    constexpr absl::string_view kArtifacts = "artifacts/";
    if (absl::StartsWith(source, kArtifacts)) inputs[name] = source.substr(kArtifacts.size());
  };
  add("base_model", spec.base_model());
  switch (spec.kind_case()) {
    case v1::JobSpec::kPretrain:
      add("dataset", spec.pretrain().dataset());
      break;
    case v1::JobSpec::kSft:
      add("dataset", spec.sft().dataset());
      break;
    case v1::JobSpec::kRewardModel:
      add("dataset", spec.reward_model().dataset());
      break;
    case v1::JobSpec::kDpo:
      add("dataset", spec.dpo().dataset());
      break;
    case v1::JobSpec::kPpo:
    case v1::JobSpec::kGrpo: {
      const v1::PpoSpec& kind = spec.has_ppo() ? spec.ppo() : spec.grpo();
      add("dataset", kind.dataset());
      add("mix_dataset", kind.mix_dataset());
      add("reward_model", kind.reward_source());
      break;
    }
    default:
      break;
  }
  return inputs;
}

// Copies the model to <model_root>/<output>, whole or not at all.
absl::Status Place(const fs::path& model, const fs::path& root, const std::string& output) {
  const fs::path to = (root / output).lexically_normal();
  const fs::path relative = to.lexically_relative(root.lexically_normal());
  if (relative.empty() || *relative.begin() == "..")
    return InvalidField("output", "beneath model_root", output);
  const fs::path fresh = to.string() + ".new";
  std::error_code error;
  fs::remove_all(fresh, error);
  fs::create_directories(to.parent_path(), error);
  fs::copy(model, fresh, fs::copy_options::recursive, error);
  if (!error) fs::remove_all(to, error);
  if (!error) fs::rename(fresh, to, error);
  return error ? absl::InternalError(absl::StrCat("output: ", to.string(), ": ", error.message()))
               : absl::OkStatus();
}

absl::StatusOr<TrainedModel> RunJob(const JobContext& job, const Options& options, ArtifactStore& store,
                                    TrainerMetrics& metrics, prometheus::Registry& registry) {
  const TraceScope trace(Trace::New());
  v1::JobSpec proto;
  if (!proto.ParseFromString(job.spec))
    return absl::DataLossError(absl::StrCat("job ", job.id, ": spec is damaged"));
  ALMOST_ASSIGN_OR_RETURN(const JobSpec spec, ReadJobSpec(proto, &store, options.model_root));
  TrainContext context;
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
    const auto scorer = [&](const std::string& model, const std::string& digest) {
      return MakeRewardFunction(kind.reward_target(), model, digest, options.replicas, job.stop, registry);
    };
    ALMOST_ASSIGN_OR_RETURN(context.reward, scorer(kind.reward_model(), kind.reward_digest()));
    if (!kind.guard_model().empty()) {
      ALMOST_ASSIGN_OR_RETURN(context.guard, scorer(kind.guard_model(), kind.guard_digest()));
    }
  }
  log::Info("job started", {{"job", job.id}});
  ALMOST_ASSIGN_OR_RETURN(const TrainedModel trained, Train(spec, context));
  ArtifactDraft draft;
  draft.kind = "model";
  draft.folder = job.work_folder / "model";
  draft.inputs = Inputs(proto);
  ALMOST_ASSIGN_OR_RETURN(draft.recipe, Content(proto));
  draft.numerics_id = trained.numerics_id;
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, store.Publish(draft));
  if (!proto.output().empty()) {
    ALMOST_RETURN_IF_ERROR(Place(draft.folder, options.model_root, proto.output()));
  }
  log::Info("job finished", {{"job", job.id}, {"artifact", artifact.digest}});
  return TrainedModel{artifact.digest, trained.numerics_id};
}

absl::Status Run(const Options& options) {
  ALMOST_RETURN_IF_ERROR(log::Start("trainer", options.server.log_level));
  ConfigureLibTorch();
  ALMOST_ASSIGN_OR_RETURN(const std::shared_ptr<ArtifactStore> store, ArtifactStore::Open(options.store));
  prometheus::Registry registry;
  ExportBuildInfo(registry, LibTorchVersion(), "cpu");
  TrainerMetrics metrics(registry);
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<JobQueue> jobs,
                          JobQueue::Open(fs::path(options.store) / "jobs", [&](const JobContext& job) {
                            return RunJob(job, options, *store, metrics, registry);
                          }));
  TrainerService service(*jobs, store.get(), options.model_root,
                         [](const JobSpec& spec) { return TrainingNumericsId(spec.num_threads); });
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
  app.add_option("--store", options.store, "Folder of the artifact store; jobs live in its jobs/")
      ->required();
  app.add_option("--model_root", options.model_root, "Folder beneath which models and datasets are addressed")
      ->capture_default_str();
  almost::AddPeerTlsFlags(app, options.replicas.tls, "peer_");
  almost::AddServerFlags(app, options.server, "127.0.0.1:50054", "127.0.0.1:9454");
  CLI11_PARSE(app, argc, argv);
  options.replicas.token_file = options.server.token_file;
  if (const absl::Status status = almost::trainer::Run(options); !status.ok()) {
    std::cerr << "almost-trainer: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
