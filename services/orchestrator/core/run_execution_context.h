#pragma once

#include <atomic>
#include <cstddef>
#include <map>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "services/orchestrator/core/retrying_services.h"
#include "services/orchestrator/core/retrying_store.h"
#include "services/orchestrator/core/run_execution.h"

// A run as its stages see it; RunExecution's own.
namespace almost::orchestrator {

// The items of the stage at `index`, for the one after it.
class RunExecution::Feed : public FollowedItems {
 public:
  Feed(RunExecution* run, size_t index, std::string run_id)
      : run_(run), index_(index), run_id_(std::move(run_id)) {}

  absl::StatusOr<std::vector<int64_t>> Next(size_t num_seen) override;
  absl::StatusOr<std::string> Result(int64_t item) override;

 private:
  RunExecution* const run_;
  const size_t index_;
  const std::string run_id_;
};

// Of the stage at `index`, for one attempt at it. Its calls of services and store end when `stop` is
// requested.
class RunExecution::Context : public StageContext {
 public:
  Context(RunExecution* run, size_t index, bool following, std::stop_token stop);

  const std::string& run_id() const override { return run_id_; }
  const v1::Recipe& recipe() const override { return run_->recipe_; }
  int priority() const override { return run_->settings_.priority(); }
  RetryingServices& services() override { return services_; }
  ArtifactStore& store() const override { return store_; }
  const PlacedModel& model(absl::string_view role) const override { return models_.find(role)->second; }
  absl::StatusOr<Artifact> Input(absl::string_view stage, absl::string_view name) const override;
  absl::StatusOr<std::string> VanillaDigest(absl::string_view id) const override;
  std::map<std::string, std::string> Artifacts() const override { return run_->Artifacts(); }
  FollowedItems* followed() override { return feed_.has_value() ? &*feed_ : nullptr; }
  std::vector<v1::Stage> Stages() const override;
  void Report(const std::map<std::string, double>& figures, int64_t items_done, int64_t items_total) override;

  // Whether the stage counts its own progress.
  bool reports() const { return reports_; }
  void SetModel(const std::string& role, PlacedModel model) { models_[role] = std::move(model); }

 private:
  void SetPaused(const absl::Status& why) { run_->SetPaused(why); }
  void Retried(const absl::Status& why);

  RunExecution* const run_;
  const size_t index_;
  const std::string run_id_;
  RetryingServices services_;
  mutable RetryingStore store_;
  std::optional<Feed> feed_;
  std::map<std::string, PlacedModel, std::less<>> models_;
  std::atomic<bool> reports_{false};
};

}  // namespace almost::orchestrator
