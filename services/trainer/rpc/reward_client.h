#pragma once

#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"
#include "common/rpc/replica_pool.h"
#include "prometheus/registry.h"
#include "services/trainer/core/reward_function.h"

namespace almost::trainer {

// Scores rollouts by a model of the reward service at `target`, pinned by digest where that is not empty.
// Calls in batches of 64, each with a deadline; a service that is away, or back without its models, is waited
// for up to five minutes, then the error is returned. It never makes up a score. `registry` must outlive the
// function.
absl::StatusOr<RewardFunction> MakeRewardFunction(const std::string& target, const std::string& model,
                                                  const std::string& digest,
                                                  const ReplicaPoolOptions& options, std::stop_token stop,
                                                  prometheus::Registry& registry);

// What the model named in `field` can read, if the service says so at once: an error is no reason to fail.
absl::StatusOr<Reader> DescribeRewardModel(const std::string& field, const std::string& target,
                                           const std::string& model, const ReplicaPoolOptions& options,
                                           const std::stop_token& stop, prometheus::Registry& registry);

}  // namespace almost::trainer
