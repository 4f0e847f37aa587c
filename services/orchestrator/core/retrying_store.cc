#include "services/orchestrator/core/retrying_store.h"

#include <chrono>
#include <optional>

#include "common/base/sleep.h"

namespace almost::orchestrator {
namespace {

const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& answer) {
  return answer.status();
}

}  // namespace

template <typename Answer>
Answer RetryingStore::Retry(const std::function<Answer()>& call) {
  const auto start = std::chrono::steady_clock::now();
  std::optional<CostMeter::Busy> waiting;
  bool away = false;
  for (int attempt = 0;; ++attempt) {
    Answer answer = call();
    const absl::Status status = StatusOf(answer);
    if (!absl::IsUnavailable(status)) {
      if (away) SetAway(false, absl::OkStatus());
      return answer;
    }
    on_retry_(status);
    if (!waiting.has_value()) waiting.emplace(meter_, CostMeter::Device::kNone);
    if (!away && absl::FromChrono(std::chrono::steady_clock::now() - start) > policy_.pause_after) {
      away = true;
      SetAway(true, status);
    }
    if (!SleepUnlessStopped(BackoffAfter(policy_, attempt), stop_)) {
      return absl::CancelledError("the run was stopped");
    }
  }
}

void RetryingStore::SetAway(bool away, const absl::Status& why) {
  const absl::MutexLock lock(&mutex_);
  const int before = num_away_;
  num_away_ += away ? 1 : -1;
  if (before == 0 || num_away_ == 0) on_pause_(why);
}

absl::StatusOr<Artifact> RetryingStore::Publish(const ArtifactDraft& draft) {
  return Retry<absl::StatusOr<Artifact>>([&] { return store_->Publish(draft); });
}

absl::StatusOr<Artifact> RetryingStore::Get(absl::string_view digest) {
  return Retry<absl::StatusOr<Artifact>>([&] { return store_->Get(digest); });
}

absl::StatusOr<LocalFolder> RetryingStore::Path(absl::string_view digest) {
  return Retry<absl::StatusOr<LocalFolder>>([&] { return store_->Path(digest); });
}

absl::StatusOr<std::string> RetryingStore::ReadFile(absl::string_view digest, absl::string_view path) {
  return Retry<absl::StatusOr<std::string>>([&] { return store_->ReadFile(digest, path); });
}

absl::StatusOr<std::vector<std::string>> RetryingStore::List() {
  return Retry<absl::StatusOr<std::vector<std::string>>>([&] { return store_->List(); });
}

absl::Status RetryingStore::Link(absl::string_view run, absl::string_view stage, absl::string_view name,
                                 absl::string_view digest) {
  return Retry<absl::Status>([&] { return store_->Link(run, stage, name, digest); });
}

absl::Status RetryingStore::WriteRunFile(absl::string_view run, absl::string_view path,
                                         absl::string_view contents) {
  return Retry<absl::Status>([&] { return store_->WriteRunFile(run, path, contents); });
}

absl::StatusOr<std::string> RetryingStore::ReadRunFile(absl::string_view run, absl::string_view path) {
  return Retry<absl::StatusOr<std::string>>([&] { return store_->ReadRunFile(run, path); });
}

absl::Status RetryingStore::RemoveRun(absl::string_view run) {
  return Retry<absl::Status>([&] { return store_->RemoveRun(run); });
}

}  // namespace almost::orchestrator
