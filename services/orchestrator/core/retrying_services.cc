#include "services/orchestrator/core/retrying_services.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/sleep.h"
#include "common/base/status_macros.h"
#include "common/logging/logging.h"

namespace almost::orchestrator {
namespace {

// A service that loses its models this often in one call is not restarting: it cannot hold them.
constexpr int kMaxRestores = 8;

double Jitter() {
  thread_local std::minstd_rand random{std::random_device{}()};
  return std::uniform_real_distribution<double>(0.5, 1.0)(random);
}

// The first item's error that is not the item's own.
template <typename Response>
absl::Status CheckItems(const Response& answer) {
  for (const auto& item : answer.items()) {
    const absl::Status status(static_cast<absl::StatusCode>(item.error().code()), item.error().message());
    if (!status.ok() && !IsOfTheItem(status)) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Duration BackoffAfter(const RetryPolicy& policy, int attempt) {
  const double doubled = static_cast<double>(1 << std::min(attempt, 16));
  return std::min(policy.max_backoff, policy.first_backoff * doubled) * Jitter();
}

bool IsTransient(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsResourceExhausted(status) || absl::IsAborted(status);
}

bool IsOfTheItem(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsOutOfRange(status);
}

absl::Duration RetryBudget::Take(absl::Time now) {
  const absl::MutexLock lock(&mutex_);
  const absl::Duration since = now - std::exchange(filled_, now);
  // A clock that was set back fills nothing.
  left_ = std::min(burst_, left_ + per_second_ * std::max(0.0, absl::ToDoubleSeconds(since))) - 1;
  return left_ >= 0 ? absl::ZeroDuration() : absl::Seconds(-left_ / per_second_);
}

RetryingServices::RetryingServices(Services* services, const RetryPolicy& policy, RetryBudget* budget,
                                   std::stop_token stop, CostMeter* meter, PauseListener on_pause,
                                   RetryListener on_retry)
    : services_(services),
      policy_(policy),
      budget_(budget),
      stop_(std::move(stop)),
      meter_(meter),
      on_pause_(std::move(on_pause)),
      on_retry_(std::move(on_retry)),
      last_answer_(std::chrono::steady_clock::now()),
      stream_timeout_(policy.stream_timeout),
      keeper_([this](const std::stop_token& ended) { KeepModels(ended); }) {}

absl::Status RetryingServices::BackOff(int attempt, const absl::Status& why) {
  bool pauses = false;
  {
    const absl::MutexLock lock(&mutex_);
    pauses =
        !paused_ && absl::FromChrono(std::chrono::steady_clock::now() - last_answer_) > policy_.pause_after;
    paused_ = paused_ || pauses;
  }
  on_retry_(why);
  if (pauses) on_pause_(why);
  const absl::Duration wait = std::max(BackoffAfter(policy_, attempt), budget_->Take(absl::Now()));
  if (!SleepUnlessStopped(wait, stop_)) return absl::CancelledError("the run was stopped");
  return absl::OkStatus();
}

void RetryingServices::Succeeded() {
  bool resumes = false;
  {
    const absl::MutexLock lock(&mutex_);
    last_answer_ = std::chrono::steady_clock::now();
    resumes = std::exchange(paused_, false);
  }
  if (resumes) on_pause_(absl::OkStatus());
}

template <typename T>
absl::StatusOr<T> RetryingServices::Retry(absl::Duration timeout, bool needs_models,
                                          const std::function<absl::StatusOr<T>(const CallOptions&)>& call) {
  const CostMeter::Busy waiting(meter_, CostMeter::Device::kNone);
  int restores = 0;
  for (int attempt = 0;; ++attempt) {
    if (stop_.stop_requested()) return absl::CancelledError("the run was stopped");
    absl::StatusOr<T> answer = call({timeout, stop_});
    if (stop_.stop_requested() && !answer.ok()) return absl::CancelledError("the run was stopped");
    absl::Status status = answer.status();
    if (absl::IsNotFound(status) && needs_models && restores < kMaxRestores) {
      ++restores;
      if (const absl::Status restored = RestoreModels(stop_); !restored.ok() && !IsTransient(restored)) {
        return restored;
      }
    } else if (!IsTransient(status) && !absl::IsCancelled(status)) {
      Succeeded();
      return answer;
    }
    ALMOST_RETURN_IF_ERROR(BackOff(attempt, status));
  }
}

template <typename T>
absl::StatusOr<T> RetryingServices::RetryStream(
    const std::function<absl::StatusOr<T>(const CallOptions&)>& call) {
  return Retry<T>(policy_.stream_timeout, true, [&](CallOptions options) {
    {
      const absl::MutexLock lock(&mutex_);
      options.timeout = stream_timeout_;
    }
    absl::StatusOr<T> answer = call(options);
    if (absl::IsDeadlineExceeded(answer.status())) {
      // Others may have been too slow at the same time: they double it once.
      const absl::MutexLock lock(&mutex_);
      stream_timeout_ =
          std::max(stream_timeout_, std::min(2 * options.timeout, policy_.longest_stream_timeout));
    }
    return answer;
  });
}

template <typename T>
absl::StatusOr<T> RetryingServices::Checked(const std::string& model, absl::StatusOr<T> answer) {
  if (!answer.ok()) return answer;
  ALMOST_RETURN_IF_ERROR(CheckItems(*answer));
  const absl::MutexLock lock(&mutex_);
  const auto numerics = numerics_.find(model);
  if (numerics != numerics_.end() && numerics->second != answer->numerics_id()) {
    return absl::FailedPreconditionError(
        absl::StrCat(model, " was loaded with numerics ", numerics->second, " and answers with ",
                     answer->numerics_id(), ": a stage does not mix two; resume the run to do it anew"));
  }
  return answer;
}

void RetryingServices::KeepModels(const std::stop_token& ended) {
  absl::Status said;
  while (SleepUnlessStopped(policy_.restore_every, ended)) {
    const absl::Status status = RestoreModels(ended);
    if (ended.stop_requested()) return;
    // A call that needs the model fails by it; a job of the trainer only waits, so it is said here.
    if (!status.ok() && status != said) log::Warning("models cannot be kept", {{"error", status.ToString()}});
    said = status;
  }
}

void RetryingServices::ForgetModels() {
  const absl::MutexLock none_is_restored(&restoring_);
  const absl::MutexLock lock(&mutex_);
  kept_.clear();
}

absl::Status RetryingServices::RestoreModels(const std::stop_token& stop) {
  const absl::MutexLock restoring(&restoring_);
  std::map<std::pair<ModelHost, std::string>, types::v1::LoadModelRequest> kept;
  {
    const absl::MutexLock lock(&mutex_);
    kept = kept_;
  }
  for (const auto& [key, request] : kept) {
    ALMOST_RETURN_IF_ERROR(services_->LoadModel({policy_.load_timeout, stop}, key.first, request).status());
  }
  return absl::OkStatus();
}

CostMeter::Busy RetryingServices::At(ModelHost host) const {
  const bool generation = host == ModelHost::kGeneration;
  return {meter_, generation ? CostMeter::Device::kGeneration : CostMeter::Device::kReward,
          services_->num_replicas(host)};
}

absl::StatusOr<generation::v1::GenerateResponse> RetryingServices::Generate(
    const generation::v1::GenerateRequest& request) {
  auto answer =
      Retry<generation::v1::GenerateResponse>(policy_.call_timeout, true, [&](const CallOptions& options) {
        const CostMeter::Busy busy = At(ModelHost::kGeneration);
        return Checked(request.model(), services_->Generate(options, request));
      });
  if (!answer.ok()) return answer;
  v1::Cost cost;
  for (const generation::v1::GenerateItemResponse& item : answer->items()) {
    cost.set_prompt_tokens(cost.prompt_tokens() + item.result().num_prompt_tokens());
    for (const generation::v1::Completion& completion : item.result().completions()) {
      cost.set_generated_tokens(cost.generated_tokens() + completion.token_ids_size());
    }
  }
  meter_->Add(cost);
  return answer;
}

absl::StatusOr<generation::v1::ScoreCompletionsResponse> RetryingServices::ScoreCompletions(
    const generation::v1::ScoreCompletionsRequest& request) {
  auto answer = Retry<generation::v1::ScoreCompletionsResponse>(
      policy_.call_timeout, true, [&](const CallOptions& options) {
        const CostMeter::Busy busy = At(ModelHost::kGeneration);
        return Checked(request.model(), services_->ScoreCompletions(options, request));
      });
  if (!answer.ok()) return answer;
  v1::Cost cost;
  for (const generation::v1::CompletionScoreResponse& item : answer->items()) {
    cost.set_prompt_tokens(cost.prompt_tokens() + item.result().logprobs_size());
  }
  meter_->Add(cost);
  return answer;
}

absl::StatusOr<generation::v1::TokenizeResponse> RetryingServices::Tokenize(
    const generation::v1::TokenizeRequest& request) {
  return Retry<generation::v1::TokenizeResponse>(policy_.call_timeout, true, [&](const CallOptions& options) {
    return services_->Tokenize(options, request);
  });
}

absl::StatusOr<reward::v1::ScoreResponse> RetryingServices::Score(const reward::v1::ScoreRequest& request,
                                                                  absl::string_view target) {
  auto answer = Retry<reward::v1::ScoreResponse>(policy_.call_timeout, true, [&](const CallOptions& options) {
    const CostMeter::Busy busy = At(ModelHost::kReward);
    return Checked(request.model(), services_->Score(options, request, target));
  });
  if (!answer.ok()) return answer;
  v1::Cost cost;
  cost.set_scored_items(std::count_if(answer->items().begin(), answer->items().end(),
                                      [](const auto& item) { return item.has_result(); }));
  meter_->Add(cost);
  return answer;
}

absl::StatusOr<std::vector<simulator::v1::GeneratePromptsResponse>> RetryingServices::GeneratePrompts(
    const simulator::v1::GeneratePromptsRequest& request) {
  auto mined =
      RetryStream<std::vector<simulator::v1::GeneratePromptsResponse>>([&](const CallOptions& options) {
        const CostMeter::Busy busy = At(ModelHost::kGeneration);
        return services_->GeneratePrompts(options, request);
      });
  if (!mined.ok()) return mined;
  v1::Cost cost;
  for (const auto& prompt : *mined) cost.set_generated_tokens(cost.generated_tokens() + prompt.num_tokens());
  meter_->Add(cost);
  return mined;
}

absl::StatusOr<std::vector<simulator::v1::SimulateDialoguesResponse>> RetryingServices::SimulateDialogues(
    const simulator::v1::SimulateDialoguesRequest& request) {
  auto dialogues =
      RetryStream<std::vector<simulator::v1::SimulateDialoguesResponse>>([&](const CallOptions& options) {
        const CostMeter::Busy generating = At(ModelHost::kGeneration);
        const CostMeter::Busy scoring = At(ModelHost::kReward);
        return services_->SimulateDialogues(options, request);
      });
  if (!dialogues.ok()) return dialogues;
  v1::Cost cost;
  for (const auto& dialogue : *dialogues) {
    for (const simulator::v1::AssistantTurn& turn : dialogue.turns()) {
      for (const simulator::v1::CandidateAnswer& candidate : turn.candidates()) {
        cost.set_generated_tokens(cost.generated_tokens() + candidate.num_tokens());
        if (candidate.bad_reason().empty()) cost.set_scored_items(cost.scored_items() + 1);
      }
    }
  }
  meter_->Add(cost);
  return dialogues;
}

absl::StatusOr<trainer::v1::Job> RetryingServices::CreateJob(const trainer::v1::CreateJobRequest& request) {
  return Retry<trainer::v1::Job>(policy_.call_timeout, false, [&](const CallOptions& options) {
    return services_->CreateJob(options, request);
  });
}

absl::StatusOr<trainer::v1::Job> RetryingServices::GetJob(const trainer::v1::GetJobRequest& request) {
  return Retry<trainer::v1::Job>(policy_.call_timeout, false, [&](const CallOptions& options) {
    return services_->GetJob(options, request);
  });
}

absl::Status RetryingServices::WatchJob(const trainer::v1::WatchJobRequest& request, absl::Duration duration,
                                        const std::function<bool(const trainer::v1::JobEvent&)>& use) {
  trainer::v1::WatchJobRequest from = request;
  return Retry<bool>(duration, false,
                     [&](const CallOptions& options) -> absl::StatusOr<bool> {
                       ALMOST_RETURN_IF_ERROR(
                           services_->WatchJob(options, from, [&](const trainer::v1::JobEvent& event) {
                             from.set_after_sequence(std::max(from.after_sequence(), event.sequence()));
                             return use(event);
                           }));
                       return true;
                     })
      .status();
}

absl::StatusOr<trainer::v1::Job> RetryingServices::CancelJob(const trainer::v1::CancelJobRequest& request) {
  return Retry<trainer::v1::Job>(policy_.call_timeout, false, [&](const CallOptions& options) {
    return services_->CancelJob(options, request);
  });
}

absl::StatusOr<trainer::v1::Job> RetryingServices::ResumeJob(const trainer::v1::ResumeJobRequest& request) {
  return Retry<trainer::v1::Job>(policy_.call_timeout, false, [&](const CallOptions& options) {
    return services_->ResumeJob(options, request);
  });
}

absl::StatusOr<judge::v1::CompareResponse> RetryingServices::Compare(
    absl::string_view target, const judge::v1::CompareRequest& request) {
  auto answer = Retry<judge::v1::CompareResponse>(
      policy_.call_timeout, false,
      [&](const CallOptions& options) -> absl::StatusOr<judge::v1::CompareResponse> {
        ALMOST_ASSIGN_OR_RETURN(judge::v1::CompareResponse judged,
                                services_->Compare(options, target, request));
        ALMOST_RETURN_IF_ERROR(CheckItems(judged));
        return judged;
      });
  if (!answer.ok()) return answer;
  v1::Cost cost;
  cost.set_judged_items(answer->items_size());
  meter_->Add(cost);
  return answer;
}

absl::StatusOr<types::v1::Model> RetryingServices::PlaceModel(ModelHost host,
                                                              const types::v1::LoadModelRequest& request) {
  // A full memory does not empty itself: to the caller it is an answer.
  absl::Status full;
  ALMOST_ASSIGN_OR_RETURN(
      types::v1::Model model,
      Retry<types::v1::Model>(policy_.load_timeout, false,
                              [&](const CallOptions& options) -> absl::StatusOr<types::v1::Model> {
                                auto loaded = services_->LoadModel(options, host, request);
                                if (!absl::IsResourceExhausted(loaded.status())) return loaded;
                                full = loaded.status();
                                return types::v1::Model();
                              }));
  ALMOST_RETURN_IF_ERROR(full);
  types::v1::LoadModelRequest pinned = request;
  pinned.set_expected_digest(model.digest());
  const absl::MutexLock lock(&mutex_);
  kept_[{host, request.name()}] = std::move(pinned);
  numerics_[request.name()] = model.numerics_id();
  return model;
}

}  // namespace almost::orchestrator
