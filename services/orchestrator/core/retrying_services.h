#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/orchestrator/core/cost_meter.h"
#include "services/orchestrator/core/services.h"

namespace almost::orchestrator {

// How a run bears with services that are away.
struct RetryPolicy {
  absl::Duration first_backoff = absl::Milliseconds(200);
  absl::Duration max_backoff = absl::Seconds(10);
  // Tries after the first, of all calls of a run together: so many at once, then so many a second.
  double retry_burst = 20;
  double retries_per_second = 2;
  // Without any answer for so long, the run counts as paused.
  absl::Duration pause_after = absl::Seconds(15);
  // Of one try of an ordinary call, and of a call that brings a model into memory.
  absl::Duration call_timeout = absl::Minutes(2);
  absl::Duration load_timeout = absl::Minutes(10);
  // Of a stage's first stream from the simulator. Nothing is kept of one that was too slow, so those after it
  // have twice as long.
  absl::Duration stream_timeout = absl::Minutes(10);
  absl::Duration longest_stream_timeout = absl::Hours(24);
  // How often a stage's models are put where they are missing: on a host that has restarted, or is new.
  absl::Duration restore_every = absl::Seconds(2);
};

// A run's budget of retries, so that many items do not press a service that is coming back. Thread-safe.
class RetryBudget {
 public:
  explicit RetryBudget(const RetryPolicy& policy)
      : burst_(policy.retry_burst), per_second_(policy.retries_per_second), left_(burst_) {}

  // Takes one retry, to be made after the duration returned.
  absl::Duration Take(absl::Time now);

 private:
  const double burst_;
  const double per_second_;
  absl::Mutex mutex_;
  double left_ ABSL_GUARDED_BY(mutex_);  // below 0: promised to those who wait
  absl::Time filled_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

// Before try number `attempt` + 2: doubled from first_backoff up to max_backoff, with jitter.
absl::Duration BackoffAfter(const RetryPolicy& policy, int attempt);

// Whether the same call may succeed later: kUnavailable, kDeadlineExceeded, kResourceExhausted, kAborted.
bool IsTransient(const absl::Status& status);
// Whether an item's own content is at fault, so that the same again fails the same: kInvalidArgument,
// kOutOfRange. Not kDataLoss: a copy of the weights that is damaged makes logits that are not finite, too.
bool IsOfTheItem(const absl::Status& status);

// What a stage calls other services through: asks again, with backoff and jitter, for as long as an error is
// transient, and keeps the stage's models in memory at every replica, whether it has lost them or has just
// come up. So what returns is an answer, a deterministic error, or kCancelled once `stop` is requested. A
// call of which an item has an error that is not IsOfTheItem fails by it as a whole: a device's fault is no
// content. Thread-safe.
class RetryingServices {
 public:
  // `status` is why the run cannot go on now; OK when it can again. Called from any calling thread.
  using PauseListener = std::function<void(const absl::Status& status)>;
  using RetryListener = std::function<void(const absl::Status& status)>;

  // `services`, `budget` and `meter` outlive this; `meter` is told what the answers cost.
  RetryingServices(Services* services, const RetryPolicy& policy, RetryBudget* budget, std::stop_token stop,
                   CostMeter* meter, PauseListener on_pause, RetryListener on_retry);

  absl::StatusOr<generation::v1::GenerateResponse> Generate(const generation::v1::GenerateRequest& request);
  absl::StatusOr<generation::v1::ScoreCompletionsResponse> ScoreCompletions(
      const generation::v1::ScoreCompletionsRequest& request);
  absl::StatusOr<generation::v1::TokenizeResponse> Tokenize(const generation::v1::TokenizeRequest& request);
  absl::StatusOr<reward::v1::ScoreResponse> Score(const reward::v1::ScoreRequest& request,
                                                  absl::string_view target = "");
  absl::StatusOr<std::vector<simulator::v1::GeneratePromptsResponse>> GeneratePrompts(
      const simulator::v1::GeneratePromptsRequest& request);
  absl::StatusOr<std::vector<simulator::v1::SimulateDialoguesResponse>> SimulateDialogues(
      const simulator::v1::SimulateDialoguesRequest& request);
  absl::StatusOr<trainer::v1::Job> CreateJob(const trainer::v1::CreateJobRequest& request);
  absl::StatusOr<trainer::v1::Job> GetJob(const trainer::v1::GetJobRequest& request);
  // Watches for at most `duration`.
  absl::Status WatchJob(const trainer::v1::WatchJobRequest& request, absl::Duration duration,
                        const std::function<bool(const trainer::v1::JobEvent&)>& use);
  absl::StatusOr<trainer::v1::Job> CancelJob(const trainer::v1::CancelJobRequest& request);
  absl::StatusOr<trainer::v1::Job> ResumeJob(const trainer::v1::ResumeJobRequest& request);
  absl::StatusOr<judge::v1::CompareResponse> Compare(absl::string_view target,
                                                     const judge::v1::CompareRequest& request);

  // Loads a model and keeps it loaded: from now on it is brought back when its host has lost it, and answers
  // of it with another numerics_id are kFailedPrecondition. kResourceExhausted: it does not fit.
  absl::StatusOr<types::v1::Model> PlaceModel(ModelHost host, const types::v1::LoadModelRequest& request);
  // No model is kept any more; what is being brought back just now is in memory when this returns.
  void ForgetModels();
  std::stop_token stop() const { return stop_; }
  CostMeter& meter() const { return *meter_; }

 private:
  // Calls `call` until it has an answer or a deterministic error.
  template <typename T>
  absl::StatusOr<T> Retry(absl::Duration timeout, bool needs_models,
                          const std::function<absl::StatusOr<T>(const CallOptions&)>& call);
  // The same for a stream of the simulator, with a deadline that fits it.
  template <typename T>
  absl::StatusOr<T> RetryStream(const std::function<absl::StatusOr<T>(const CallOptions&)>& call);
  // Answer of a model placed here: its items' errors that are not their own, and its numerics.
  template <typename T>
  absl::StatusOr<T> Checked(const std::string& model, absl::StatusOr<T> answer);
  // Loads every kept model again; harmless for those in memory.
  absl::Status RestoreModels(const std::stop_token& stop);
  // Does so now and then, also for others that call the hosts on the stage's behalf: simulator and trainer.
  void KeepModels(const std::stop_token& ended);
  // A call at work on a host.
  CostMeter::Busy At(ModelHost host) const;
  // Sleeps before try number `attempt`; kCancelled when stopped.
  absl::Status BackOff(int attempt, const absl::Status& why);
  void Succeeded();

  Services* const services_;
  const RetryPolicy policy_;
  RetryBudget* const budget_;
  const std::stop_token stop_;
  CostMeter* const meter_;
  const PauseListener on_pause_;
  const RetryListener on_retry_;

  absl::Mutex restoring_;  // held while models are brought back
  absl::Mutex mutex_ ABSL_ACQUIRED_AFTER(restoring_);
  std::map<std::pair<ModelHost, std::string>, types::v1::LoadModelRequest> kept_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string, std::less<>> numerics_ ABSL_GUARDED_BY(mutex_);  // model -> numerics_id
  std::chrono::steady_clock::time_point last_answer_ ABSL_GUARDED_BY(mutex_);
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration stream_timeout_ ABSL_GUARDED_BY(mutex_);
  std::jthread keeper_;
};

}  // namespace almost::orchestrator
