#pragma once

#include <cstddef>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "services/trainer/core/reward_function.h"

namespace almost::trainer {

struct RolloutScores {
  std::vector<double> rewards;
  std::vector<double> guards;  // 0 without a guard
};

// Asks for the scores of an iteration's rollouts on a thread of its own, of those that are there while others
// are still being drawn. What comes of it does not depend on when they came.
class RolloutScorer {
 public:
  // `guard` may be empty. Both outlive this.
  RolloutScorer(const RewardFunction& reward, const RewardFunction& guard, size_t num_rollouts);
  // What has not been asked for yet is not.
  ~RolloutScorer();
  RolloutScorer(const RolloutScorer&) = delete;
  RolloutScorer& operator=(const RolloutScorer&) = delete;

  // Each rollout once, by its place; thread-safe.
  void Add(size_t rollout, RewardInput input);
  // After all have been added: waits for the rest. One finite score a rollout, in their order; fails as a
  // whole, with the first error: a score that could not be had is never a default.
  absl::StatusOr<RolloutScores> Finish();

 private:
  using Pending = std::vector<std::pair<size_t, RewardInput>>;

  void Loop();
  static absl::Status Ask(const RewardFunction& scorer, absl::string_view name, const Pending& rollouts,
                          std::vector<double>& scores);

  const RewardFunction& reward_;
  const RewardFunction& guard_;
  RolloutScores scores_;  // the thread's, until it ends
  absl::Status status_;   // likewise

  absl::Mutex mutex_;
  Pending pending_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace almost::trainer
