#pragma once

#include <functional>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/storage/artifact_store.h"
#include "services/orchestrator/core/cost_meter.h"
#include "services/orchestrator/core/retrying_services.h"

namespace almost::orchestrator {

// The store as a stage uses it: what S3 cannot do now (kUnavailable, after S3Client's own tries) is done
// again until it can, so that an outage pauses the run and does not end it; or kCancelled once `stop` is
// requested.
// Thread-safe.
class RetryingStore : public ArtifactStore {
 public:
  // As RetryingServices: what is pointed to outlives this, and the listeners are told likewise.
  RetryingStore(ArtifactStore* store, const RetryPolicy& policy, std::stop_token stop, CostMeter* meter,
                RetryingServices::PauseListener on_pause, RetryingServices::RetryListener on_retry)
      : store_(store),
        policy_(policy),
        stop_(std::move(stop)),
        meter_(meter),
        on_pause_(std::move(on_pause)),
        on_retry_(std::move(on_retry)) {}

  absl::StatusOr<Artifact> Publish(const ArtifactDraft& draft) override;
  absl::StatusOr<LocalFolder> Scratch() override { return store_->Scratch(); }
  Env* env() const override { return store_->env(); }
  absl::StatusOr<Artifact> Get(absl::string_view digest) override;
  absl::StatusOr<LocalFolder> Path(absl::string_view digest) override;
  absl::StatusOr<std::string> ReadFile(absl::string_view digest, absl::string_view path) override;
  absl::StatusOr<std::vector<std::string>> List() override;
  absl::Status Link(absl::string_view run, absl::string_view stage, absl::string_view name,
                    absl::string_view digest) override;
  absl::Status WriteRunFile(absl::string_view run, absl::string_view path,
                            absl::string_view contents) override;
  absl::StatusOr<std::string> ReadRunFile(absl::string_view run, absl::string_view path) override;
  absl::Status RemoveRun(absl::string_view run) override;
  // No stage sweeps: once.
  absl::StatusOr<std::vector<Stored>> ListObjects() override { return store_->ListObjects(); }
  absl::StatusOr<absl::Time> PublishedAt(absl::string_view sha256) override {
    return store_->PublishedAt(sha256);
  }
  bool IsHeld(absl::string_view digest) override { return store_->IsHeld(digest); }
  absl::Status RemoveArtifact(absl::string_view digest) override { return store_->RemoveArtifact(digest); }
  absl::Status RemoveObject(absl::string_view sha256) override { return store_->RemoveObject(sha256); }

 private:
  // `Answer` is a Status or a StatusOr.
  template <typename Answer>
  Answer Retry(const std::function<Answer()>& call);
  // Counts the calls that wait for the store; the first and the last one's word go to on_pause_.
  void SetAway(bool away, const absl::Status& why);

  ArtifactStore* const store_;
  const RetryPolicy policy_;
  const std::stop_token stop_;
  CostMeter* const meter_;
  const RetryingServices::PauseListener on_pause_;
  const RetryingServices::RetryListener on_retry_;
  absl::Mutex mutex_;
  int num_away_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace almost::orchestrator
