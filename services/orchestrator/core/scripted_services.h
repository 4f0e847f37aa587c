#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "almost/orchestrator/v1/recipe.pb.h"
#include "common/storage/artifact_store.h"
#include "services/orchestrator/core/services.h"

namespace almost::orchestrator {

// For tests: a recipe of every stage up to RL that takes ScriptedServices little time.
v1::Recipe ScriptedRecipe(uint64_t seed);

// For tests: services in this process whose answers are functions of what they are asked, like the real
// ones'. They lose models and fail calls on demand. Thread-safe.
class ScriptedServices : public Services {
 public:
  // Called before each call with its name; an error is the call's answer. And as "Train" before a job ends:
  // an error is the job's.
  using Script = std::function<absl::Status(absl::string_view method, const CallOptions& options)>;

  explicit ScriptedServices(ArtifactStore* store) : store_(store) {}

  void SetScript(Script script);
  void SetNumerics(std::string numerics_id);
  // Generates other texts from the same requests, as a build would that has broken its promise.
  void SetSalt(std::string salt);
  // As a restarted process: no model is in memory.
  void LoseModels();
  std::set<std::string> models() const;  // in memory
  int64_t calls(absl::string_view method) const;
  std::map<std::string, trainer::v1::JobState> jobs() const;
  std::vector<trainer::v1::JobSpec> specs() const;  // of the jobs
  // Jobs stay in RUNNING until told otherwise.
  void HoldJobs(bool hold);

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
  absl::Status Before(absl::string_view method, const CallOptions& options);
  // Digest of a model in memory; kNotFound, or kFailedPrecondition for another one.
  absl::StatusOr<std::string> Digest(const std::string& name, const std::string& expected) const;

  ArtifactStore* const store_;
  mutable absl::Mutex mutex_;
  Script script_ ABSL_GUARDED_BY(mutex_);
  std::string numerics_id_ ABSL_GUARDED_BY(mutex_) = "numerics-1";
  std::string salt_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string, std::less<>> models_ ABSL_GUARDED_BY(mutex_);  // name -> digest
  std::map<std::string, int64_t, std::less<>> calls_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, trainer::v1::Job> jobs_ ABSL_GUARDED_BY(mutex_);
  bool hold_jobs_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace almost::orchestrator
