#pragma once

#include <memory>
#include <stop_token>

#include "absl/status/statusor.h"
#include "almost/trainer/v1/trainer.pb.h"
#include "common/rpc/replica_pool.h"
#include "prometheus/registry.h"
#include "services/trainer/core/reward_function.h"

namespace almost::trainer {

// Scores rollouts by the reward service that a PPO job names, its model pinned by digest. Calls in batches of
// 64, each with a deadline; a service that is away, or back without its models, is waited for up to five
// minutes, then the error is returned. It never makes up a score. `registry` must outlive the function.
absl::StatusOr<RewardFunction> MakeRewardFunction(const v1::PpoSpec& spec, const ReplicaPoolOptions& options,
                                                  std::stop_token stop, prometheus::Registry& registry);

}  // namespace almost::trainer
