#include "services/orchestrator/core/run_execution_context.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace almost::orchestrator {

absl::StatusOr<std::vector<int64_t>> RunExecution::Feed::Next(size_t num_seen) {
  const CostMeter::Busy waiting(run_->meters_[index_ + 1].get(), CostMeter::Device::kNone);
  const absl::MutexLock lock(&run_->mutex_);
  const AtWork& followed = run_->at_work_[index_];
  const auto settled = [&]() ABSL_SHARED_LOCKS_REQUIRED(run_->mutex_) {
    return followed.ended_items.size() > num_seen || followed.all_ended || run_->halted_;
  };
  run_->mutex_.Await(absl::Condition(&settled));
  if (run_->halted_) return absl::CancelledError("the run was stopped");
  return std::vector<int64_t>(followed.ended_items.begin() + static_cast<std::ptrdiff_t>(num_seen),
                              followed.ended_items.end());
}

absl::StatusOr<std::string> RunExecution::Feed::Result(int64_t item) {
  const std::string stage(run_->stages_[index_]->id());
  ALMOST_ASSIGN_OR_RETURN(const std::vector<ItemRecord> found,
                          run_->environment_.journal->GetItems(run_id_, stage, item, 1, /*results=*/true));
  if (found.size() != 1 || found[0].item != item || found[0].state == ItemState::kStarted ||
      found[0].dropped) {
    return absl::DataLossError(
        absl::StrCat("the journal has no result of item ", item, " of ", run_id_, "/", stage));
  }
  if (found[0].state == ItemState::kSetAside) return found[0].error;
  return found[0].result;
}

RunExecution::Context::Context(RunExecution* run, size_t index, bool following, std::stop_token stop)
    : run_(run),
      index_(index),
      run_id_([run] {
        const absl::MutexLock lock(&run->mutex_);
        return run->record_.id;
      }()),
      services_(
          run->environment_.services, run->environment_.retry, &run->retries_, stop,
          run->meters_[index].get(), [this](const absl::Status& why) { SetPaused(why); },
          [this](const absl::Status& why) { Retried(why); }),
      store_(
          run->environment_.store, run->environment_.retry, std::move(stop), run->meters_[index].get(),
          [this](const absl::Status& why) { SetPaused(why); },
          [this](const absl::Status& why) { Retried(why); }) {
  if (following) feed_.emplace(run, index - 1, run_id_);
}

void RunExecution::Context::Retried(const absl::Status& why) {
  run_->environment_.observer->Retried(run_->stages_[index_]->id(), why);
}

absl::StatusOr<std::string> RunExecution::Context::VanillaDigest(absl::string_view id) const {
  const absl::MutexLock lock(&run_->mutex_);
  for (size_t i = 0; i <= index_; ++i) {
    for (const ModelNeed& need : run_->stages_[i]->models()) {
      const auto bits = run_->progress_[i].models.find(need.role);
      if (need.recipe_model == id && bits != run_->progress_[i].models.end()) return bits->second.digest;
    }
  }
  return absl::NotFoundError(absl::StrCat("model ", id, " has not been in memory"));
}

absl::StatusOr<Artifact> RunExecution::Context::Input(absl::string_view stage, absl::string_view name) const {
  const std::map<std::string, std::string> artifacts = run_->Artifacts();
  const auto artifact = artifacts.find(absl::StrCat(stage, "/", name));
  if (artifact == artifacts.end()) {
    return absl::NotFoundError(absl::StrCat("stage ", stage, " has not published \"", name, "\""));
  }
  return store_.Get(artifact->second);
}

std::vector<v1::Stage> RunExecution::Context::Stages() const {
  const absl::MutexLock lock(&run_->mutex_);
  std::vector<v1::Stage> stages;
  for (size_t i = 0; i < run_->stages_.size(); ++i) stages.push_back(run_->Shown(i));
  return stages;
}

void RunExecution::Context::Report(const std::map<std::string, double>& figures, int64_t items_done,
                                   int64_t items_total) {
  reports_ = true;
  run_->SetItems(index_, items_done, 0, items_total);
  {
    const absl::MutexLock lock(&run_->mutex_);
    v1::Stage& shown = run_->progress_[index_].shown;
    for (const auto& [name, value] : figures) (*shown.mutable_figures())[name] = value;
  }
  JournalBatch batch;
  if (!run_->AddProgressEvent(batch, index_)) return;
  // Shown, not needed: should the journal fail, the item's own record will say so.
  if (run_->environment_.journal->Commit(batch).ok()) run_->EventCommitted();
}

}  // namespace almost::orchestrator
