#include "services/simulator/rpc/model_calls.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "almost/generation/v1/generation.grpc.pb.h"
#include "almost/reward/v1/reward.grpc.pb.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"

namespace almost::simulator {
namespace {

using generation::v1::GenerationService;
using reward::v1::RewardService;

// Limits of one call of the services.
constexpr size_t kMaxItems = 64;
constexpr size_t kMaxCompletions = 1024;
// For the load that a text adds to its replica; common tokenizers make a token of about so many bytes.
constexpr double kBytesPerToken = 4;

// An item's error that says its text is too long: it is the item's own. Any other ends the request; what a
// stopping service cancelled may succeed elsewhere.
absl::Status ErrorUnlessTooLong(const google::rpc::Status& error) {
  const absl::Status status = FromProto(error);
  if (absl::IsOutOfRange(status)) return absl::OkStatus();
  if (absl::IsCancelled(status)) return absl::UnavailableError(status.message());
  return status;
}

std::vector<Completion> ReadCompletions(const generation::v1::GenerateItemResult& result) {
  std::vector<Completion> completions;
  for (const generation::v1::Completion& completion : result.completions()) {
    completions.push_back({.text = completion.text(),
                           .finished = completion.finish_reason() == generation::v1::FINISH_REASON_STOP,
                           .num_tokens = completion.token_ids_size()});
  }
  return completions;
}

}  // namespace

absl::StatusOr<std::vector<std::optional<std::vector<Completion>>>> ModelCalls::Complete(
    const v1::ModelRef& model, const types::v1::SamplingParams& sampling,
    const std::vector<CompletionRequest>& requests, const std::stop_token& stop) {
  std::vector<std::optional<std::vector<Completion>>> answers;
  while (answers.size() < requests.size()) {
    generation::v1::GenerateRequest call;
    call.set_model(model.name());
    call.set_expected_digest(model.expected_digest());
    size_t completions = 0;
    double cost = 0;
    for (size_t i = answers.size(); i < requests.size() && call.items_size() < static_cast<int>(kMaxItems);
         ++i) {
      const CompletionRequest& request = requests[i];
      completions += request.num_candidates;
      if (completions > kMaxCompletions) break;
      generation::v1::GenerateItem& item = *call.add_items();
      item.mutable_input()->set_text(request.text);
      *item.mutable_sampling() = sampling;
      item.mutable_sampling()->set_seed(request.seed);
      item.mutable_sampling()->set_n(request.num_candidates);
      item.mutable_sampling()->set_first_candidate(0);
      cost += request.text.size() / kBytesPerToken + request.num_candidates * sampling.max_new_tokens();
    }
    ALMOST_ASSIGN_OR_RETURN(const generation::v1::GenerateResponse response,
                            generation_.Call<GenerationService>(&GenerationService::Stub::Generate, call,
                                                                cost, Deadline(), stop));
    if (response.items_size() != call.items_size()) {
      return absl::InternalError(absl::StrCat("the generation service answered ", response.items_size(),
                                              " of ", call.items_size(), " items"));
    }
    ALMOST_RETURN_IF_ERROR(CheckSame(model, response.model_digest(), response.numerics_id()));
    for (const generation::v1::GenerateItemResponse& item : response.items()) {
      if (!item.has_result()) {
        ALMOST_RETURN_IF_ERROR(ErrorUnlessTooLong(item.error()));
        answers.emplace_back(std::nullopt);
        continue;
      }
      const int wanted = requests[answers.size()].num_candidates;
      if (item.result().completions_size() != wanted) {
        return absl::InternalError(absl::StrCat(
            "the generation service gave ", item.result().completions_size(), " of ", wanted, " candidates"));
      }
      answers.emplace_back(ReadCompletions(item.result()));
    }
  }
  return answers;
}

absl::StatusOr<std::vector<std::optional<RewardScore>>> ModelCalls::Score(
    const v1::ModelRef& model, const std::vector<reward::v1::ScoreItem>& items, const std::stop_token& stop) {
  std::vector<std::optional<RewardScore>> scores;
  while (scores.size() < items.size()) {
    reward::v1::ScoreRequest call;
    call.set_model(model.name());
    call.set_expected_digest(model.expected_digest());
    const size_t end = std::min(items.size(), scores.size() + kMaxItems);
    double cost = 0;
    for (size_t i = scores.size(); i < end; ++i) {
      *call.add_items() = items[i];
      cost += items[i].ByteSizeLong() / kBytesPerToken;
    }
    ALMOST_ASSIGN_OR_RETURN(
        const reward::v1::ScoreResponse response,
        reward_.Call<RewardService>(&RewardService::Stub::Score, call, cost, Deadline(), stop));
    if (response.items_size() != call.items_size()) {
      return absl::InternalError(absl::StrCat("the reward service answered ", response.items_size(), " of ",
                                              call.items_size(), " items"));
    }
    ALMOST_RETURN_IF_ERROR(CheckSame(model, response.model_digest(), response.numerics_id()));
    for (const reward::v1::ScoreItemResponse& item : response.items()) {
      if (!item.has_result()) {
        ALMOST_RETURN_IF_ERROR(ErrorUnlessTooLong(item.error()));
        scores.emplace_back(std::nullopt);
        continue;
      }
      if (!std::isfinite(item.result().raw_score())) {
        return absl::InternalError("the reward service gave a score that is not a finite number");
      }
      scores.emplace_back(RewardScore{.raw = item.result().raw_score(), .normalized = item.result().score()});
    }
  }
  return scores;
}

absl::Time ModelCalls::Deadline() const {
  return std::min(absl::FromChrono(client_.deadline()), absl::Now() + call_timeout_);
}

absl::Status ModelCalls::CheckSame(const v1::ModelRef& model, const std::string& digest,
                                   const std::string& numerics_id) {
  const std::string answered_by = absl::StrCat("weights ", digest, " and numerics ", numerics_id);
  absl::MutexLock lock(&mutex_);
  const auto [known, is_new] = answered_by_.emplace(model.name(), answered_by);
  if (is_new || known->second == answered_by) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(model.name(), ": replicas differ: one has ", known->second, ", another ", answered_by));
}

}  // namespace almost::simulator
