#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/replica_pool.h"
#include "services/orchestrator/core/services.h"

namespace almost::orchestrator {

// Where the other services are: targets as ReplicaPool takes them.
struct Targets {
  std::string generation = "127.0.0.1:50051";
  std::string reward = "127.0.0.1:50052";
  std::string simulator = "127.0.0.1:50053";
  std::string trainer = "127.0.0.1:50054";
};

// The services over gRPC. A call goes to the replica with the least outstanding tokens; a model is loaded by
// every replica, which must agree on its digest and numerics (kFailedPrecondition otherwise).
class RemoteServices : public Services {
 public:
  // As ReplicaPool::Create. `registry` outlives this.
  static absl::StatusOr<std::unique_ptr<RemoteServices>> Create(const Targets& targets,
                                                                const ReplicaPoolOptions& options,
                                                                prometheus::Registry* registry);

  int num_replicas(ModelHost host) const override;
  absl::StatusOr<generation::v1::GenerateResponse> Generate(
      const CallOptions& options, const generation::v1::GenerateRequest& request) override;
  absl::StatusOr<generation::v1::ScoreCompletionsResponse> ScoreCompletions(
      const CallOptions& options, const generation::v1::ScoreCompletionsRequest& request) override;
  absl::StatusOr<generation::v1::TokenizeResponse> Tokenize(
      const CallOptions& options, const generation::v1::TokenizeRequest& request) override;
  absl::StatusOr<reward::v1::ScoreResponse> Score(const CallOptions& options,
                                                  const reward::v1::ScoreRequest& request,
                                                  absl::string_view target) override;
  absl::StatusOr<types::v1::Model> LoadModel(const CallOptions& options, ModelHost host,
                                             const types::v1::LoadModelRequest& request) override;
  absl::Status UnloadModel(const CallOptions& options, ModelHost host,
                           const types::v1::UnloadModelRequest& request) override;
  absl::StatusOr<std::vector<simulator::v1::GeneratePromptsResponse>> GeneratePrompts(
      const CallOptions& options, const simulator::v1::GeneratePromptsRequest& request) override;
  absl::StatusOr<std::vector<simulator::v1::SimulateDialoguesResponse>> SimulateDialogues(
      const CallOptions& options, const simulator::v1::SimulateDialoguesRequest& request) override;
  absl::StatusOr<trainer::v1::Job> CreateJob(const CallOptions& options,
                                             const trainer::v1::CreateJobRequest& request) override;
  absl::StatusOr<trainer::v1::Job> GetJob(const CallOptions& options,
                                          const trainer::v1::GetJobRequest& request) override;
  absl::StatusOr<trainer::v1::ListJobsResponse> ListJobs(
      const CallOptions& options, const trainer::v1::ListJobsRequest& request) override;
  absl::StatusOr<trainer::v1::Job> CancelJob(const CallOptions& options,
                                             const trainer::v1::CancelJobRequest& request) override;
  absl::StatusOr<trainer::v1::Job> PauseJob(const CallOptions& options,
                                            const trainer::v1::PauseJobRequest& request) override;
  absl::StatusOr<trainer::v1::Job> ResumeJob(const CallOptions& options,
                                             const trainer::v1::ResumeJobRequest& request) override;
  absl::Status WatchJob(const CallOptions& options, const trainer::v1::WatchJobRequest& request,
                        const std::function<bool(const trainer::v1::JobEvent&)>& use) override;
  absl::StatusOr<judge::v1::CompareResponse> Compare(const CallOptions& options, absl::string_view target,
                                                     const judge::v1::CompareRequest& request) override;

 private:
  RemoteServices(const ReplicaPoolOptions& options, prometheus::Registry* registry)
      : options_(options), registry_(registry) {}
  absl::StatusOr<ReplicaPool*> PoolOf(absl::string_view target);

  const ReplicaPoolOptions options_;
  prometheus::Registry* const registry_;
  std::unique_ptr<ReplicaPool> generation_;
  std::unique_ptr<ReplicaPool> reward_;
  std::unique_ptr<ReplicaPool> simulator_;
  std::unique_ptr<ReplicaPool> trainer_;
  absl::Mutex mutex_;
  // Of targets that recipes name: judges and scorers.
  std::map<std::string, std::unique_ptr<ReplicaPool>, std::less<>> named_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace almost::orchestrator
