#include "services/trainer/core/rollout_scorer.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace almost::trainer {

RolloutScorer::RolloutScorer(const RewardFunction& reward, const RewardFunction& guard, size_t num_rollouts)
    : reward_(reward),
      guard_(guard),
      scores_{std::vector<double>(num_rollouts), std::vector<double>(num_rollouts)},
      thread_([this] { Loop(); }) {}

RolloutScorer::~RolloutScorer() {
  if (!thread_.joinable()) return;
  {
    const absl::MutexLock lock(&mutex_);
    pending_.clear();
    closed_ = true;
  }
  thread_.join();
}

void RolloutScorer::Add(size_t rollout, RewardInput input) {
  const absl::MutexLock lock(&mutex_);
  pending_.emplace_back(rollout, std::move(input));
}

absl::StatusOr<RolloutScores> RolloutScorer::Finish() {
  {
    const absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  thread_.join();
  if (!status_.ok()) return status_;
  return std::move(scores_);
}

void RolloutScorer::Loop() {
  while (true) {
    Pending taken;
    {
      const absl::MutexLock lock(&mutex_);
      const auto ready = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return closed_ || !pending_.empty(); };
      mutex_.Await(absl::Condition(&ready));
      if (pending_.empty()) return;
      taken.swap(pending_);
    }
    if (status_.ok()) status_ = Ask(reward_, "reward", taken, scores_.rewards);
    if (status_.ok() && guard_) status_ = Ask(guard_, "guard", taken, scores_.guards);
  }
}

absl::Status RolloutScorer::Ask(const RewardFunction& scorer, absl::string_view name, const Pending& rollouts,
                                std::vector<double>& scores) {
  std::vector<RewardInput> inputs;
  for (const auto& [place, input] : rollouts) inputs.push_back(input);
  const absl::StatusOr<std::vector<double>> found = scorer(inputs);
  if (!found.ok()) return Annotate(found.status(), name);
  if (found->size() != rollouts.size()) {
    return absl::InternalError(
        absl::StrCat(name, ": ", found->size(), " scores for ", rollouts.size(), " rollouts"));
  }
  for (size_t i = 0; i < rollouts.size(); ++i) {
    const size_t place = rollouts[i].first;
    if (!std::isfinite((*found)[i])) {
      return absl::InternalError(absl::StrCat(name, ": the score of rollout ", place, " is not finite"));
    }
    scores[place] = (*found)[i];
  }
  return absl::OkStatus();
}

}  // namespace almost::trainer
