#include "services/orchestrator/core/item_runner.h"

#include <algorithm>
#include <cstddef>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/logging/trace.h"

namespace almost::orchestrator {
namespace {

constexpr int64_t kResultsPage = 64;
constexpr int64_t kRecoveredPage = 10'000;
// Intents are journaled so far ahead of the work that it never waits for the disk.
constexpr size_t kIntentsPerWorker = 16;
// Results that wait for the disk; with more, the work waits for it.
constexpr size_t kMaxUnjournaled = 1024;

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

absl::StatusOr<std::vector<int64_t>> ItemRunner::Recover() {
  std::vector<int64_t> done;
  for (int64_t first = 0;;) {
    ALMOST_ASSIGN_OR_RETURN(
        const std::vector<ItemRecord> page,
        journal_->GetItems(context_->run_id(), stage_id_, first, kRecoveredPage, /*results=*/false));
    if (page.empty()) break;
    first = page.back().item + 1;
    const absl::MutexLock lock(&mutex_);
    for (const ItemRecord& item : page) {
      if (item.state != ItemState::kDone || item.dropped) continue;
      ended_.resize(std::max(ended_.size(), static_cast<size_t>(item.item) + 1));
      ended_[static_cast<size_t>(item.item)] = true;
      ++num_done_;
      done.push_back(item.item);
    }
  }
  return done;
}

bool ItemRunner::IsLeft(int64_t item, int turn) const {
  const auto place = static_cast<size_t>(item);
  return (place >= ended_.size() || !ended_[place]) && stage_->TurnOf(item) == turn;
}

bool ItemRunner::HasLeft(int64_t num_items, int turn) const {
  const absl::MutexLock lock(&mutex_);
  for (int64_t item = 0; item < num_items; ++item) {
    if (IsLeft(item, turn)) return true;
  }
  return false;
}

absl::Status ItemRunner::Run(int64_t num_items, int turn) {
  size_t num_threads = 0;
  {
    const absl::MutexLock lock(&mutex_);
    ended_.resize(std::max(ended_.size(), static_cast<size_t>(num_items)));
    todo_.clear();
    next_ = num_intended_ = 0;
    for (int64_t position = 0; position < num_items; ++position) {
      const int64_t item = stage_->ItemAt(position, num_items);
      if (IsLeft(item, turn)) todo_.push_back(item);
    }
    num_threads = std::min(todo_.size(), static_cast<size_t>(options_.concurrent_items));
    num_workers_ = static_cast<int>(num_threads);
  }
  std::vector<std::jthread> threads;
  for (size_t i = 0; i < num_threads; ++i) {
    threads.emplace_back([this, num_items, trace = CurrentTrace()] {
      const TraceScope scope(trace);
      Work();
      const absl::MutexLock lock(&mutex_);
      --num_workers_;
    });
  }
  if (const absl::Status status = JournalGroups(num_items); !status.ok()) Fail(status);
  threads.clear();
  const absl::MutexLock lock(&mutex_);
  return failure_;
}

void ItemRunner::Fail(absl::Status status) {
  {
    const absl::MutexLock lock(&mutex_);
    if (failure_.ok()) failure_ = std::move(status);
  }
  stop_.request_stop();
}

void ItemRunner::Work() {
  while (true) {
    int64_t item = 0;
    {
      const absl::MutexLock lock(&mutex_);
      const auto may_go_on = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return !failure_.ok() || next_ == todo_.size() ||
               (next_ < num_intended_ && finished_.size() < kMaxUnjournaled);
      };
      mutex_.Await(absl::Condition(&may_go_on));
      if (!failure_.ok() || next_ == todo_.size()) return;
      item = todo_[next_++];
    }
    absl::StatusOr<std::string> result = RunItem(item);
    if (absl::IsCancelled(result.status())) return Fail(result.status());
    listener_.ended(result.status());
    if (!result.ok() && !IsOfTheItem(result.status())) return Fail(result.status());
    const absl::MutexLock lock(&mutex_);
    finished_.push_back({item, std::move(result)});
  }
}

absl::StatusOr<std::string> ItemRunner::RunItem(int64_t item) {
  if (stop_.stop_requested()) return absl::CancelledError("the run was stopped");
  if (stage_->only_waits()) return stage_->RunItem(*context_, item);
  auto slot = [this] {
    const CostMeter::Busy waiting(&context_->services().meter(), CostMeter::Device::kNone);
    return options_.slots->Acquire(context_->run_id(), options_.priority, stop_.get_token());
  }();
  ALMOST_RETURN_IF_ERROR(slot.status());
  return stage_->RunItem(*context_, item);
}

absl::Status ItemRunner::JournalGroups(int64_t num_items) {
  const std::string& run = context_->run_id();
  const auto window = static_cast<size_t>(options_.concurrent_items) * kIntentsPerWorker;
  while (true) {
    std::vector<Finished> group;
    std::vector<int64_t> intents;
    JournalBatch batch;
    bool has_event = false;
    absl::Status too_many;
    {
      const absl::MutexLock lock(&mutex_);
      const auto wants_intents = [this, window]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return failure_.ok() && num_intended_ < todo_.size() && num_intended_ < next_ + window / 2;
      };
      const auto has_work = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return !finished_.empty() || wants_intents() || num_workers_ == 0;
      };
      mutex_.Await(absl::Condition(&has_work));
      group = std::exchange(finished_, {});
      if (wants_intents()) {
        const size_t end = std::min(next_ + window, todo_.size());
        intents.assign(todo_.begin() + static_cast<std::ptrdiff_t>(num_intended_),
                       todo_.begin() + static_cast<std::ptrdiff_t>(end));
      }
      if (group.empty() && intents.empty()) return absl::OkStatus();  // no worker is left
      for (const Finished& each : group) {
        if (each.result.ok()) {
          ++num_done_;
        } else if (num_set_aside_++ == 0) {
          first_set_aside_ = Annotate(each.result.status(), absl::StrCat("item ", each.item));
        }
      }
      if (!group.empty()) has_event = listener_.progress(num_done_, num_set_aside_, num_items, batch);
      too_many = CheckSetAside(num_items);
    }
    std::vector<int64_t> items;
    for (Finished& each : group) {
      items.push_back(each.item);
      if (each.result.ok()) {
        batch.FinishItem(run, stage_id_, each.item, *std::move(each.result));
      } else {
        batch.SetItemAside(run, stage_id_, each.item, each.result.status());
      }
    }
    for (const int64_t item : intents) {
      batch.StartItem(run, stage_id_, item, absl::StrCat(run, "/", stage_id_, "/", item));
    }
    ALMOST_RETURN_IF_ERROR(journal_->Commit(batch));
    {
      const absl::MutexLock lock(&mutex_);
      for (const int64_t item : items) ended_[static_cast<size_t>(item)] = true;
      num_intended_ += intents.size();
    }
    if (!items.empty()) listener_.committed(items, has_event);
    if (!too_many.ok()) Fail(too_many);
  }
}

absl::Status ItemRunner::CheckSetAside(int64_t num_items) const {
  if (static_cast<double>(num_set_aside_) <= options_.max_set_aside_share * static_cast<double>(num_items)) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      num_set_aside_, " of ", num_items, " items were set aside; the first: ", first_set_aside_.message()));
}

absl::Status JournaledResults::ForEachFrom(int64_t first, const Use& use) const {
  int64_t next = first;
  while (true) {
    ALMOST_ASSIGN_OR_RETURN(const std::vector<ItemRecord> page,
                            journal_->GetItems(run_, stage_, next, kResultsPage, true));
    if (page.empty()) return absl::OkStatus();
    for (const ItemRecord& item : page) {
      next = item.item + 1;
      if (item.state == ItemState::kStarted) continue;
      if (item.dropped) {
        return absl::DataLossError(
            absl::StrCat("the journal has no result of item ", item.item, " of ", run_, "/", stage_));
      }
      const absl::StatusOr<std::string> result =
          item.state == ItemState::kSetAside ? absl::StatusOr<std::string>(item.error) : item.result;
      ALMOST_RETURN_IF_ERROR(use(item.item, result));
    }
  }
}

}  // namespace almost::orchestrator
