#include "services/orchestrator/rpc/remote_services.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "almost/generation/v1/generation.grpc.pb.h"
#include "almost/judge/v1/judge.grpc.pb.h"
#include "almost/reward/v1/reward.grpc.pb.h"
#include "almost/simulator/v1/simulator.grpc.pb.h"
#include "almost/trainer/v1/trainer.grpc.pb.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"

namespace almost::orchestrator {
namespace {

using generation::v1::GenerationService;
using judge::v1::JudgeService;
using reward::v1::RewardService;
using simulator::v1::SimulatorService;
using trainer::v1::TrainerService;

template <typename Service, typename Request, typename Response>
absl::StatusOr<Response> Unary(ReplicaPool& pool, const CallOptions& options, double cost,
                               grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                     Response*),
                               const Request& request) {
  return pool.Call<Service>(method, request, cost, absl::Now() + options.timeout, options.stop);
}

// A stream read to its end: whole or not at all.
template <typename Service, typename Request, typename Response>
absl::StatusOr<std::vector<Response>> WholeStream(
    ReplicaPool& pool, const CallOptions& options, double cost,
    std::unique_ptr<grpc::ClientReader<Response>> (Service::Stub::*method)(grpc::ClientContext*,
                                                                           const Request&),
    const Request& request) {
  std::vector<Response> responses;
  ALMOST_RETURN_IF_ERROR(
      pool.Try(cost, absl::Now() + options.timeout, options.stop,
               [&](const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext& context) {
                 typename Service::Stub stub(channel);
                 responses.clear();
                 const auto reader = (stub.*method)(&context, request);
                 for (Response response; reader->Read(&response);) responses.push_back(response);
                 return reader->Finish();
               }));
  return responses;
}

// About a token for every four bytes read, and every token that may be written.
double Tokens(const types::v1::Input& input) {
  double bytes = static_cast<double>(input.text().size());
  for (const types::v1::Message& message : input.messages().messages()) {
    bytes += static_cast<double>(message.content().size());
  }
  return bytes / 4 + input.token_ids().ids_size();
}

}  // namespace

absl::StatusOr<std::unique_ptr<RemoteServices>> RemoteServices::Create(const Targets& targets,
                                                                       const ReplicaPoolOptions& options,
                                                                       prometheus::Registry* registry) {
  std::unique_ptr<RemoteServices> services(new RemoteServices(options, registry));
  ALMOST_ASSIGN_OR_RETURN(services->generation_, ReplicaPool::Create(targets.generation, options, registry));
  ALMOST_ASSIGN_OR_RETURN(services->reward_, ReplicaPool::Create(targets.reward, options, registry));
  ALMOST_ASSIGN_OR_RETURN(services->simulator_, ReplicaPool::Create(targets.simulator, options, registry));
  ALMOST_ASSIGN_OR_RETURN(services->trainer_, ReplicaPool::Create(targets.trainer, options, registry));
  return services;
}

int RemoteServices::num_replicas(ModelHost host) const {
  return static_cast<int>((host == ModelHost::kGeneration ? generation_ : reward_)->Addresses().size());
}

absl::StatusOr<generation::v1::GenerateResponse> RemoteServices::Generate(
    const CallOptions& options, const generation::v1::GenerateRequest& request) {
  double cost = 0;
  for (const generation::v1::GenerateItem& item : request.items()) {
    const types::v1::SamplingParams& sampling = item.has_sampling() ? item.sampling() : request.sampling();
    cost += Tokens(item.input()) + sampling.max_new_tokens() * std::max(sampling.n(), 1);
  }
  return Unary<GenerationService>(*generation_, options, cost, &GenerationService::Stub::Generate, request);
}

absl::StatusOr<generation::v1::ScoreCompletionsResponse> RemoteServices::ScoreCompletions(
    const CallOptions& options, const generation::v1::ScoreCompletionsRequest& request) {
  double cost = 0;
  for (const generation::v1::CompletionToScore& item : request.items()) cost += Tokens(item.input());
  return Unary<GenerationService>(*generation_, options, cost, &GenerationService::Stub::ScoreCompletions,
                                  request);
}

absl::StatusOr<generation::v1::TokenizeResponse> RemoteServices::Tokenize(
    const CallOptions& options, const generation::v1::TokenizeRequest& request) {
  return Unary<GenerationService>(*generation_, options, 1, &GenerationService::Stub::Tokenize, request);
}

absl::StatusOr<reward::v1::ScoreResponse> RemoteServices::Score(const CallOptions& options,
                                                                const reward::v1::ScoreRequest& request,
                                                                absl::string_view target) {
  ReplicaPool* pool = reward_.get();
  if (!target.empty()) {
    ALMOST_ASSIGN_OR_RETURN(pool, PoolOf(target));
  }
  return Unary<RewardService>(*pool, options, static_cast<double>(request.ByteSizeLong()) / 4,
                              &RewardService::Stub::Score, request);
}

absl::StatusOr<types::v1::Model> RemoteServices::LoadModel(const CallOptions& options, ModelHost host,
                                                           const types::v1::LoadModelRequest& request) {
  std::vector<types::v1::Model> loaded;
  const auto load = [&]<typename Stub>(Stub stub, grpc::ClientContext& context) {
    types::v1::Model model;
    grpc::Status status = stub.LoadModel(&context, request, &model);
    if (status.ok()) loaded.push_back(std::move(model));
    return status;
  };
  const bool generation = host == ModelHost::kGeneration;
  ALMOST_RETURN_IF_ERROR(
      (generation ? generation_ : reward_)
          ->TryEach(absl::Now() + options.timeout, options.stop,
                    [&](const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext& context) {
                      return generation ? load(GenerationService::Stub(channel), context)
                                        : load(RewardService::Stub(channel), context);
                    }));
  for (const types::v1::Model& model : loaded) {
    if (model.digest() != loaded.front().digest() || model.numerics_id() != loaded.front().numerics_id()) {
      return absl::FailedPreconditionError(
          absl::StrCat(request.name(), ": replicas disagree: ", model.digest(), " with ", model.numerics_id(),
                       ", and ", loaded.front().digest(), " with ", loaded.front().numerics_id()));
    }
  }
  return loaded.front();
}

absl::Status RemoteServices::UnloadModel(const CallOptions& options, ModelHost host,
                                         const types::v1::UnloadModelRequest& request) {
  const bool generation = host == ModelHost::kGeneration;
  return (generation ? generation_ : reward_)
      ->TryEach(absl::Now() + options.timeout, options.stop,
                [&](const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext& context) {
                  types::v1::UnloadModelResponse response;
                  return generation
                             ? GenerationService::Stub(channel).UnloadModel(&context, request, &response)
                             : RewardService::Stub(channel).UnloadModel(&context, request, &response);
                });
}

absl::StatusOr<std::vector<simulator::v1::GeneratePromptsResponse>> RemoteServices::GeneratePrompts(
    const CallOptions& options, const simulator::v1::GeneratePromptsRequest& request) {
  return WholeStream<SimulatorService>(*simulator_, options, request.num_attempts(),
                                       &SimulatorService::Stub::GeneratePrompts, request);
}

absl::StatusOr<std::vector<simulator::v1::SimulateDialoguesResponse>> RemoteServices::SimulateDialogues(
    const CallOptions& options, const simulator::v1::SimulateDialoguesRequest& request) {
  return WholeStream<SimulatorService>(*simulator_, options, request.seeds_size(),
                                       &SimulatorService::Stub::SimulateDialogues, request);
}

absl::StatusOr<trainer::v1::Job> RemoteServices::CreateJob(const CallOptions& options,
                                                           const trainer::v1::CreateJobRequest& request) {
  return Unary<TrainerService>(*trainer_, options, 1, &TrainerService::Stub::CreateJob, request);
}

absl::StatusOr<trainer::v1::Job> RemoteServices::GetJob(const CallOptions& options,
                                                        const trainer::v1::GetJobRequest& request) {
  return Unary<TrainerService>(*trainer_, options, 1, &TrainerService::Stub::GetJob, request);
}

absl::StatusOr<trainer::v1::ListJobsResponse> RemoteServices::ListJobs(
    const CallOptions& options, const trainer::v1::ListJobsRequest& request) {
  return Unary<TrainerService>(*trainer_, options, 1, &TrainerService::Stub::ListJobs, request);
}

absl::StatusOr<trainer::v1::Job> RemoteServices::CancelJob(const CallOptions& options,
                                                           const trainer::v1::CancelJobRequest& request) {
  return Unary<TrainerService>(*trainer_, options, 1, &TrainerService::Stub::CancelJob, request);
}

absl::StatusOr<trainer::v1::Job> RemoteServices::PauseJob(const CallOptions& options,
                                                          const trainer::v1::PauseJobRequest& request) {
  return Unary<TrainerService>(*trainer_, options, 1, &TrainerService::Stub::PauseJob, request);
}

absl::StatusOr<trainer::v1::Job> RemoteServices::ResumeJob(const CallOptions& options,
                                                           const trainer::v1::ResumeJobRequest& request) {
  return Unary<TrainerService>(*trainer_, options, 1, &TrainerService::Stub::ResumeJob, request);
}

absl::Status RemoteServices::WatchJob(const CallOptions& options, const trainer::v1::WatchJobRequest& request,
                                      const std::function<bool(const trainer::v1::JobEvent&)>& use) {
  trainer::v1::WatchJobRequest from = request;
  bool enough = false;
  const absl::Status status =
      trainer_->Try(1, absl::Now() + options.timeout, options.stop,
                    [&](const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext& context) {
                      TrainerService::Stub stub(channel);
                      const auto reader = stub.WatchJob(&context, from);
                      for (trainer::v1::JobEvent event; !enough && reader->Read(&event);) {
                        from.set_after_sequence(std::max(from.after_sequence(), event.sequence()));
                        enough = !use(event);
                      }
                      if (enough) context.TryCancel();
                      const grpc::Status end = reader->Finish();
                      return enough ? grpc::Status::OK : end;
                    });
  return absl::IsDeadlineExceeded(status) ? absl::OkStatus() : status;
}

absl::StatusOr<ReplicaPool*> RemoteServices::PoolOf(absl::string_view target) {
  const absl::MutexLock lock(&mutex_);
  std::unique_ptr<ReplicaPool>& pool = named_[std::string(target)];
  if (pool == nullptr) {
    ALMOST_ASSIGN_OR_RETURN(pool, ReplicaPool::Create(std::string(target), options_, registry_));
  }
  return pool.get();
}

absl::StatusOr<judge::v1::CompareResponse> RemoteServices::Compare(const CallOptions& options,
                                                                   absl::string_view target,
                                                                   const judge::v1::CompareRequest& request) {
  ALMOST_ASSIGN_OR_RETURN(ReplicaPool * pool, PoolOf(target));
  return Unary<JudgeService>(*pool, options, request.items_size(), &JudgeService::Stub::Compare, request);
}

}  // namespace almost::orchestrator
