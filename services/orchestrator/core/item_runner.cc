#include "services/orchestrator/core/item_runner.h"

#include <algorithm>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/logging/trace.h"

namespace almost::orchestrator {
namespace {

constexpr int64_t kResultsPage = 64;

// An error of the item's own content: the same again would fail the same.
bool IsOfTheItem(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsOutOfRange(status);
}

}  // namespace

ItemRunner::ItemRunner(Journal* journal, Stage* stage, StageContext* context, std::stop_source stop,
                       const Options& options, Listener listener)
    : journal_(journal),
      stage_(stage),
      context_(context),
      stop_(std::move(stop)),
      options_(options),
      listener_(std::move(listener)),
      stage_id_(stage->id()) {}

absl::Status ItemRunner::Recover() {
  ALMOST_ASSIGN_OR_RETURN(
      const std::vector<ItemRecord> items,
      journal_->GetItems(context_->run_id(), stage_id_, 0, std::numeric_limits<int64_t>::max(), false));
  const absl::MutexLock lock(&mutex_);
  for (const ItemRecord& item : items) {
    if (item.state != ItemState::kDone) continue;
    ended_.resize(std::max(ended_.size(), static_cast<size_t>(item.item) + 1));
    ended_[static_cast<size_t>(item.item)] = true;
    ++num_done_;
  }
  return absl::OkStatus();
}

absl::Status ItemRunner::Run(int64_t num_items) {
  std::vector<int64_t> todo;
  {
    const absl::MutexLock lock(&mutex_);
    ended_.resize(std::max(ended_.size(), static_cast<size_t>(num_items)));
    for (int64_t item = 0; item < num_items; ++item) {
      if (!ended_[static_cast<size_t>(item)]) todo.push_back(item);
    }
  }
  absl::Mutex mutex;
  size_t next = 0;
  absl::Status failure;
  const auto work = [&, trace = CurrentTrace()] {
    const TraceScope scope(trace);
    while (true) {
      int64_t item = 0;
      {
        const absl::MutexLock lock(&mutex);
        if (!failure.ok() || next == todo.size()) return;
        item = todo[next++];
      }
      absl::Status status =
          stop_.stop_requested() ? absl::CancelledError("the run was stopped") : RunItem(item, num_items);
      if (status.ok()) continue;
      const absl::MutexLock lock(&mutex);
      if (failure.ok()) failure = std::move(status);
      stop_.request_stop();
    }
  };
  {
    const size_t num_threads = std::min(todo.size(), static_cast<size_t>(options_.concurrent_items));
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < num_threads; ++i) threads.emplace_back(work);
  }
  return failure;
}

absl::Status ItemRunner::RunItem(int64_t item, int64_t num_items) {
  const std::string& run = context_->run_id();
  JournalBatch intent;
  intent.StartItem(run, stage_id_, item, absl::StrCat(run, "/", stage_id_, "/", item));
  ALMOST_RETURN_IF_ERROR(journal_->Commit(intent));

  absl::StatusOr<std::string> result = stage_->RunItem(*context_, item);
  if (absl::IsCancelled(result.status())) return result.status();
  listener_.ended(result.status());
  if (!result.ok() && !IsOfTheItem(result.status())) return result.status();

  JournalBatch batch;
  bool has_event = false;
  {
    const absl::MutexLock lock(&mutex_);
    ended_[static_cast<size_t>(item)] = true;
    if (result.ok()) {
      ++num_done_;
    } else {
      if (num_set_aside_++ == 0) first_set_aside_ = Annotate(result.status(), absl::StrCat("item ", item));
    }
    has_event = listener_.progress(num_done_, num_set_aside_, num_items, batch);
  }
  if (result.ok()) {
    batch.FinishItem(run, stage_id_, item, *std::move(result));
  } else {
    batch.SetItemAside(run, stage_id_, item, result.status());
  }
  ALMOST_RETURN_IF_ERROR(journal_->Commit(batch));
  if (has_event) listener_.committed();
  return CheckSetAside(num_items);
}

absl::Status ItemRunner::CheckSetAside(int64_t num_items) {
  const absl::MutexLock lock(&mutex_);
  if (static_cast<double>(num_set_aside_) <= options_.max_set_aside_share * static_cast<double>(num_items)) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      num_set_aside_, " of ", num_items, " items were set aside; the first: ", first_set_aside_.message()));
}

absl::Status JournaledResults::ForEach(
    const std::function<absl::Status(int64_t, const absl::StatusOr<std::string>&)>& use) const {
  int64_t next = 0;
  while (true) {
    ALMOST_ASSIGN_OR_RETURN(const std::vector<ItemRecord> page,
                            journal_->GetItems(run_, stage_, next, kResultsPage, true));
    if (page.empty()) return absl::OkStatus();
    for (const ItemRecord& item : page) {
      next = item.item + 1;
      if (item.state == ItemState::kStarted) continue;
      const absl::StatusOr<std::string> result =
          item.state == ItemState::kSetAside ? absl::StatusOr<std::string>(item.error) : item.result;
      ALMOST_RETURN_IF_ERROR(use(item.item, result));
    }
  }
}

}  // namespace almost::orchestrator
