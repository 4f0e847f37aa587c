#pragma once

#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "almost/generation/v1/generation.pb.h"
#include "almost/judge/v1/judge.pb.h"
#include "almost/reward/v1/reward.pb.h"
#include "almost/simulator/v1/simulator.pb.h"
#include "almost/trainer/v1/trainer.pb.h"
#include "almost/types/v1/model.pb.h"

namespace almost::orchestrator {

// Which service holds a model.
enum class ModelHost { kGeneration, kReward };

// Of one call: its deadline, and what ends it early with kCancelled.
struct CallOptions {
  absl::Duration timeout = absl::Minutes(2);
  std::stop_token stop;
};

// The other services as the orchestrator sees them: every call is one blocking try. Thread-safe.
// Errors are the services' own; kUnavailable, kDeadlineExceeded, kResourceExhausted and kAborted say that the
// same call may succeed later. Over gRPC in rpc/, scripted in tests; stages use RetryingServices.
class Services {
 public:
  virtual ~Services() = default;

  // Replicas of a host known now.
  virtual int num_replicas(ModelHost) const { return 1; }

  virtual absl::StatusOr<generation::v1::GenerateResponse> Generate(
      const CallOptions& options, const generation::v1::GenerateRequest& request) = 0;
  virtual absl::StatusOr<generation::v1::ScoreCompletionsResponse> ScoreCompletions(
      const CallOptions& options, const generation::v1::ScoreCompletionsRequest& request) = 0;
  virtual absl::StatusOr<generation::v1::TokenizeResponse> Tokenize(
      const CallOptions& options, const generation::v1::TokenizeRequest& request) = 0;

  // Asks the reward service at `target`, or the suite's own where that is empty.
  virtual absl::StatusOr<reward::v1::ScoreResponse> Score(const CallOptions& options,
                                                          const reward::v1::ScoreRequest& request,
                                                          absl::string_view target) = 0;

  // Loading reaches every replica of the host and answers for all of them.
  virtual absl::StatusOr<types::v1::Model> LoadModel(const CallOptions& options, ModelHost host,
                                                     const types::v1::LoadModelRequest& request) = 0;
  virtual absl::Status UnloadModel(const CallOptions& options, ModelHost host,
                                   const types::v1::UnloadModelRequest& request) = 0;

  // The whole stream.
  virtual absl::StatusOr<std::vector<simulator::v1::GeneratePromptsResponse>> GeneratePrompts(
      const CallOptions& options, const simulator::v1::GeneratePromptsRequest& request) = 0;
  virtual absl::StatusOr<std::vector<simulator::v1::SimulateDialoguesResponse>> SimulateDialogues(
      const CallOptions& options, const simulator::v1::SimulateDialoguesRequest& request) = 0;

  virtual absl::StatusOr<trainer::v1::Job> CreateJob(const CallOptions& options,
                                                     const trainer::v1::CreateJobRequest& request) = 0;
  virtual absl::StatusOr<trainer::v1::Job> GetJob(const CallOptions& options,
                                                  const trainer::v1::GetJobRequest& request) = 0;
  virtual absl::StatusOr<trainer::v1::ListJobsResponse> ListJobs(
      const CallOptions& options, const trainer::v1::ListJobsRequest& request) = 0;
  virtual absl::StatusOr<trainer::v1::Job> CancelJob(const CallOptions& options,
                                                     const trainer::v1::CancelJobRequest& request) = 0;
  virtual absl::StatusOr<trainer::v1::Job> PauseJob(const CallOptions& options,
                                                    const trainer::v1::PauseJobRequest& request) = 0;
  virtual absl::StatusOr<trainer::v1::Job> ResumeJob(const CallOptions& options,
                                                     const trainer::v1::ResumeJobRequest& request) = 0;
  // Hands every event to `use` until the job ends, `use` returns false, or the deadline passes (all OK).
  virtual absl::Status WatchJob(const CallOptions& options, const trainer::v1::WatchJobRequest& request,
                                const std::function<bool(const trainer::v1::JobEvent&)>& use) = 0;

  // Asks the JudgeService at `target`.
  virtual absl::StatusOr<judge::v1::CompareResponse> Compare(const CallOptions& options,
                                                             absl::string_view target,
                                                             const judge::v1::CompareRequest& request) = 0;
};

}  // namespace almost::orchestrator
