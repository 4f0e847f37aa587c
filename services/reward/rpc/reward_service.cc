#include "services/reward/rpc/reward_service.h"

#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"

namespace almost::reward {
namespace {

constexpr int kMaxItems = 64;

// The item as token ids, end-of-text last.
absl::StatusOr<std::vector<int32_t>> ReadItem(const ServedModel& model, const v1::ScoreItem& item) {
  std::vector<Message> messages;
  switch (item.context_case()) {
    case v1::ScoreItem::kPrompt:
      ALMOST_RETURN_IF_ERROR(CheckUtf8("prompt", item.prompt()));
      messages.push_back({"user", item.prompt()});
      break;
    case v1::ScoreItem::kDialogue:
      for (const types::v1::Message& message : item.dialogue().messages()) {
        ALMOST_RETURN_IF_ERROR(CheckUtf8("dialogue", message.content()));
        messages.push_back({message.role(), message.content()});
      }
      if (messages.empty() || messages.back().role != "user") {
        return InvalidField("dialogue", "ended by the user's message",
                            absl::StrCat(messages.size(), " messages"));
      }
      break;
    default:
      return InvalidField("context", "prompt or dialogue", "nothing");
  }
  ALMOST_RETURN_IF_ERROR(CheckUtf8("response", item.response()));
  messages.push_back({"assistant", item.response()});
  ALMOST_ASSIGN_OR_RETURN(EncodedDialogue encoded, EncodeDialogue(model.format, *model.tokenizer, messages));
  ALMOST_RETURN_IF_ERROR(model.engine->CheckSequence(encoded.ids));
  return std::move(encoded.ids);
}

}  // namespace

grpc::Status RewardService::Score(grpc::ServerContext* context, const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) {
  if (request->items_size() < 1 || request->items_size() > kMaxItems) {
    return ToGrpc(
        InvalidField("items", absl::StrCat("1 to ", kMaxItems), absl::StrCat(request->items_size())));
  }
  const auto model = models_.Find(request->model(), request->expected_digest());
  if (!model.ok()) return ToGrpc(model.status());
  const auto start = std::chrono::steady_clock::now();
  auto ticket =
      (*model)->Enter(static_cast<int64_t>(request->ByteSizeLong()), absl::FromChrono(context->deadline()));
  if (!ticket.ok()) return ToGrpc(ticket.status());
  std::vector<std::vector<int32_t>> sequences;
  std::vector<v1::ScoreItemResponse*> wanted;
  const auto fail = [&](v1::ScoreItemResponse& item, const absl::Status& status) {
    *item.mutable_error() = ToProto(status);
    metrics_.Failed(status);
  };
  for (const v1::ScoreItem& item : request->items()) {
    v1::ScoreItemResponse* out = response->add_items();
    absl::StatusOr<std::vector<int32_t>> ids = ReadItem(**model, item);
    if (ids.ok()) {
      sequences.push_back(std::move(*ids));
      wanted.push_back(out);
    } else {
      fail(*out, ids.status());
    }
  }
  if (absl::Now() >= absl::FromChrono(context->deadline())) return ToGrpc(ExpiredBeforeWorkError());
  const engine::ScoringLimits limits = LimitsOf(*context, *ticket);
  const absl::StatusOr<std::vector<float>> scores = (*model)->engine->ScoreSequences(sequences, limits);
  if (!scores.ok()) return ToGrpc(CallStatus(scores.status(), limits.deadline));
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double raw = (*scores)[i];
    if (!std::isfinite(raw)) {
      // Never a score: an error of this item, which the caller sees.
      metrics_.NonFinite();
      fail(*wanted[i], absl::InternalError(absl::StrCat("the reward head's output is ", raw)));
      continue;
    }
    v1::ScoreResult* result = wanted[i]->mutable_result();
    result->set_raw_score(raw);
    result->set_score((raw - (*model)->reward_mean) / (*model)->reward_std);
    result->set_num_tokens(static_cast<int32_t>(sequences[i].size()));
    metrics_.Scored(result->score());
  }
  metrics_.Call(sequences, absl::FromChrono(std::chrono::steady_clock::now() - start));
  response->set_model_digest((*model)->digest());
  response->set_numerics_id((*model)->numerics_id());
  ticket->Answered();
  return grpc::Status::OK;
}

grpc::Status RewardService::ListModels(grpc::ServerContext*, const types::v1::ListModelsRequest* request,
                                       types::v1::ListModelsResponse* response) {
  return Answer(models_.List(*request), response);
}

grpc::Status RewardService::GetModel(grpc::ServerContext*, const types::v1::GetModelRequest* request,
                                     types::v1::Model* response) {
  const auto model = models_.Find(request->name());
  if (!model.ok()) return ToGrpc(model.status());
  *response = (*model)->description;
  return grpc::Status::OK;
}

grpc::Status RewardService::LoadModel(grpc::ServerContext* context,
                                      const types::v1::LoadModelRequest* request,
                                      types::v1::Model* response) {
  return Answer(models_.Load(*request, [context] { return !context->IsCancelled(); }), response);
}

grpc::Status RewardService::UnloadModel(grpc::ServerContext*, const types::v1::UnloadModelRequest* request,
                                        types::v1::UnloadModelResponse*) {
  return ToGrpc(models_.Unload(*request));
}

}  // namespace almost::reward
