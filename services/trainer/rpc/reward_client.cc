#include "services/trainer/rpc/reward_client.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "almost/reward/v1/reward.grpc.pb.h"
#include "common/base/status_macros.h"

namespace almost::trainer {
namespace {

using reward::v1::RewardService;
using reward::v1::ScoreRequest;
using reward::v1::ScoreResponse;

constexpr size_t kBatch = 64;
constexpr absl::Duration kCallDeadline = absl::Seconds(60);
constexpr absl::Duration kDescribeDeadline = absl::Seconds(10);
constexpr absl::Duration kPatience = absl::Minutes(5);

// Whether the same call may pass once the service, or whoever places its models, has caught up.
bool MayPass(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsResourceExhausted(status) ||
         absl::IsDeadlineExceeded(status) || absl::IsNotFound(status) || absl::IsCancelled(status);
}

// Its device or a model of its failed: no fault of the job's, which may go on when that is mended.
bool IsOfTheService(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsDataLoss(status);
}

}  // namespace

absl::StatusOr<RewardFunction> MakeRewardFunction(const std::string& target, const std::string& model,
                                                  const std::string& digest,
                                                  const ReplicaPoolOptions& options, std::stop_token stop,
                                                  prometheus::Registry& registry) {
  ALMOST_ASSIGN_OR_RETURN(std::unique_ptr<ReplicaPool> created,
                          ReplicaPool::Create(target, options, &registry));
  const std::shared_ptr<ReplicaPool> pool = std::move(created);
  return [pool, model, digest,
          stop](std::span<const RewardInput> inputs) -> absl::StatusOr<std::vector<double>> {
    std::vector<double> scores;
    while (scores.size() < inputs.size()) {
      const auto batch = inputs.subspan(scores.size(), std::min(kBatch, inputs.size() - scores.size()));
      ScoreRequest request;
      request.set_model(model);
      request.set_expected_digest(digest);
      size_t bytes = 0;
      for (const RewardInput& input : batch) {
        reward::v1::ScoreItem* item = request.add_items();
        item->set_prompt(input.prompt);
        item->set_response(input.response);
        bytes += input.prompt.size() + input.response.size();
      }
      const absl::Time give_up = absl::Now() + kPatience;
      absl::StatusOr<ScoreResponse> response = absl::UnavailableError("not asked");
      while (!response.ok()) {
        if (stop.stop_requested()) return absl::CancelledError("the job was asked to stop");
        response = pool->Call<RewardService>(&RewardService::Stub::Score, request, static_cast<double>(bytes),
                                             absl::Now() + kCallDeadline, stop);
        if (response.ok()) break;
        if (IsOfTheService(response.status())) {
          return absl::UnavailableError(absl::StrCat("reward: ", response.status().ToString()));
        }
        if (!MayPass(response.status()) || absl::Now() > give_up)
          return Annotate(response.status(), "reward");
        absl::SleepFor(absl::Milliseconds(200));
      }
      if (response->items_size() != static_cast<int>(batch.size())) {
        return absl::InternalError(
            absl::StrCat("reward: ", response->items_size(), " answers to ", batch.size(), " items"));
      }
      for (const reward::v1::ScoreItemResponse& item : response->items()) {
        if (!item.has_result()) return Annotate(FromProto(item.error()), "reward");
        scores.push_back(item.result().raw_score());
      }
    }
    return scores;
  };
}

absl::StatusOr<Reader> DescribeRewardModel(const std::string& field, const std::string& target,
                                           const std::string& model, const ReplicaPoolOptions& options,
                                           const std::stop_token& stop, prometheus::Registry& registry) {
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<ReplicaPool> pool,
                          ReplicaPool::Create(target, options, &registry));
  types::v1::GetModelRequest request;
  request.set_name(model);
  ALMOST_ASSIGN_OR_RETURN(const types::v1::Model known,
                          pool->Call<RewardService>(&RewardService::Stub::GetModel, request, 1,
                                                    absl::Now() + kDescribeDeadline, stop));
  return Reader{field, known.context_tokens(), known.vocab_size()};
}

}  // namespace almost::trainer
