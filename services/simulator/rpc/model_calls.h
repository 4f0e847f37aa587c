#pragma once

#include <map>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "almost/reward/v1/reward.pb.h"
#include "almost/simulator/v1/simulator.pb.h"
#include "almost/types/v1/content.pb.h"
#include "common/rpc/replica_pool.h"
#include "services/simulator/core/completion.h"
#include "services/simulator/core/dialogue.h"

namespace almost::simulator {

// What one client's request asks of the generation and reward services. Items are sent in calls of at most
// 64; every call ends by the client's deadline, or `call_timeout` after it began, or when it is asked to
// stop. All answers of one model must come from the same weights and the same numerics: kFailedPrecondition
// otherwise, since a replica with others would change what is drawn. Thread-safe.
class ModelCalls {
 public:
  // All must outlive it.
  ModelCalls(ReplicaPool& generation, ReplicaPool& reward, const grpc::ServerContext& client,
             absl::Duration call_timeout)
      : generation_(generation), reward_(reward), client_(client), call_timeout_(call_timeout) {}

  // One entry per request; nullopt: it does not fit the model's context. `sampling` holds for all but for
  // seed and candidates, which are the requests' own. An item's error of another kind fails the call.
  absl::StatusOr<std::vector<std::optional<std::vector<Completion>>>> Complete(
      const v1::ModelRef& model, const types::v1::SamplingParams& sampling,
      const std::vector<CompletionRequest>& requests, const std::stop_token& stop);

  // One entry per item; nullopt: too long for the model's context.
  absl::StatusOr<std::vector<std::optional<RewardScore>>> Score(
      const v1::ModelRef& model, const std::vector<reward::v1::ScoreItem>& items,
      const std::stop_token& stop);

 private:
  absl::Time Deadline() const;
  // Notes which weights and numerics answer to a name.
  absl::Status CheckSame(const v1::ModelRef& model, const std::string& digest,
                         const std::string& numerics_id);

  ReplicaPool& generation_;
  ReplicaPool& reward_;
  const grpc::ServerContext& client_;
  const absl::Duration call_timeout_;
  absl::Mutex mutex_;
  std::map<std::string, std::string> answered_by_ ABSL_GUARDED_BY(mutex_);  // name -> digest and numerics
};

}  // namespace almost::simulator
