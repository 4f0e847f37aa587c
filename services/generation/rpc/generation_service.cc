#include "services/generation/rpc/generation_service.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "services/generation/core/completion_text.h"

namespace almost::generation {
namespace {

constexpr int kMaxItems = 64;
constexpr int kMaxCandidates = 64;
constexpr int kMaxCompletions = 1024;  // of one call
constexpr int kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;

absl::Status CheckItems(int count) {
  if (count >= 1 && count <= kMaxItems) return absl::OkStatus();
  return InvalidField("items", absl::StrCat("1 to ", kMaxItems), absl::StrCat(count));
}

// The ranges that the proto promises and the engine does not check itself.
absl::StatusOr<engine::GenerationRequest> ReadSampling(const types::v1::SamplingParams& p) {
  engine::GenerationRequest request;
  request.sampling.temperature = p.has_temperature() ? p.temperature() : 1.0;
  request.sampling.top_p = p.has_top_p() ? p.top_p() : 1.0;
  request.sampling.top_k = p.top_k();
  request.sampling.min_p = p.min_p();
  request.sampling.max_new_tokens = p.has_max_new_tokens() ? p.max_new_tokens() : 16;
  request.sampling.seed = p.seed();
  request.sampling.logprobs = p.logprobs();
  request.num_candidates = p.has_n() ? p.n() : 1;
  request.first_candidate = p.first_candidate();
  if (!(request.sampling.temperature >= 0 && request.sampling.temperature <= 10)) {
    return InvalidField("sampling.temperature", "in [0, 10]", absl::StrCat(request.sampling.temperature));
  }
  if (request.num_candidates < 1 || request.num_candidates > kMaxCandidates) {
    return InvalidField("sampling.n", absl::StrCat("in [1, ", kMaxCandidates, "]"), absl::StrCat(p.n()));
  }
  if (p.stop_size() > kMaxStops) {
    return InvalidField("sampling.stop", absl::StrCat("at most ", kMaxStops), absl::StrCat(p.stop_size()));
  }
  for (const std::string& stop : p.stop()) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return InvalidField("sampling.stop", absl::StrCat("strings of 1 to ", kMaxStopBytes, " bytes"),
                          absl::StrCat(stop.size(), " bytes"));
    }
  }
  return request;
}

v1::FinishReason ToProtoReason(engine::FinishReason reason) {
  return reason == engine::FinishReason::kStop ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH;
}

using SteadyClock = std::chrono::steady_clock;

// One item on its way through the engine. The engine's thread calls into it; the handler waits for it.
struct Item {
  std::vector<CompletionText> texts;  // by candidate, counted from first_candidate
  int num_prompt_tokens = 0;
  int num_candidates = 0;
  int first_candidate = 0;
  SteadyClock::time_point arrival;
  std::vector<SteadyClock::time_point> last_token;  // by candidate; at first the arrival
  uint64_t engine_id = 0;
  absl::StatusOr<std::vector<engine::Candidate>> result = absl::UnknownError("not done");
  bool done = false;
};

// The items of one call. Thread-safe where the engine's thread and the handler meet.
class Batch {
 public:
  using OnToken = std::function<void(Item&, int candidate, int32_t token, const engine::TokenLogprobs&)>;

  Batch(std::shared_ptr<const ServedModel> model, Metrics& metrics, const grpc::ServerContext& context)
      : model_(std::move(model)),
        metrics_(metrics.Of(model_->description.name())),
        deadline_(absl::FromChrono(context.deadline())) {}

  // Hands one item to the engine; its outcome is waited for with the others. `on_token` runs on the engine's
  // thread, with the batch locked.
  void Start(const v1::GenerateItem& proto, const types::v1::SamplingParams& sampling,
             OnToken on_token = nullptr) {
    Item& item = *items_.emplace_back(std::make_unique<Item>());
    const absl::Status status = Submit(item, proto, sampling, std::move(on_token));
    if (status.ok()) return;
    absl::MutexLock lock(&mutex_);
    item.result = status;
    item.done = true;
    if (absl::IsResourceExhausted(status)) queue_full_ = status;
  }

  // Waits for all items; `meanwhile` runs now and then, unlocked. Not OK: the call as a whole has failed, and
  // nothing of it is left in the engine.
  absl::Status Wait(const grpc::ServerContext& context, const LoadGate::Ticket& ticket,
                    const std::function<bool()>& meanwhile = nullptr) {
    absl::Status status;
    {
      absl::MutexLock lock(&mutex_);
      status = queue_full_;
    }
    bool cancelled = false;
    absl::Time next_look = absl::Now() + ticket.TimeBetweenLooks();
    for (;;) {
      bool gone = meanwhile && !meanwhile();
      if (const absl::Time now = absl::Now(); now >= next_look) {
        gone = gone || context.IsCancelled();
        next_look = now + ticket.TimeBetweenLooks();
      }
      if ((gone || !status.ok()) && !cancelled) {
        if (status.ok()) status = absl::CancelledError("the client has gone");
        for (const auto& item : items_) model_->engine->Cancel(item->engine_id);
        cancelled = true;
      }
      absl::MutexLock lock(&mutex_);
      const auto over = [this] {
        mutex_.AssertHeld();
        return changed_ || AllDone();
      };
      mutex_.AwaitWithDeadline(absl::Condition(&over), next_look);
      changed_ = false;
      if (AllDone()) {
        const bool late =
            absl::Now() >= deadline_ || (absl::IsCancelled(status) && EndsByDeadline(deadline_));
        if (late && NothingComputed()) status = ExpiredBeforeWorkError();
        break;
      }
    }
    if (meanwhile) meanwhile();
    return status;
  }

  std::vector<std::unique_ptr<Item>>& items() { return items_; }
  absl::Mutex& mutex() { return mutex_; }

 private:
  bool AllDone() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    for (const auto& item : items_) {
      if (!item->done) return false;
    }
    return true;
  }

  bool NothingComputed() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    for (const auto& item : items_) {
      if (!item->result.status().GetPayload(std::string(engine::kNothingComputed))) return false;
    }
    return true;
  }

  absl::Status Submit(Item& item, const v1::GenerateItem& proto, const types::v1::SamplingParams& sampling,
                      OnToken on_token) {
    ALMOST_ASSIGN_OR_RETURN(engine::GenerationRequest request, ReadSampling(sampling));
    ALMOST_ASSIGN_OR_RETURN(request.prompt_ids, ReadInput(*model_, proto.input()));
    request.stop_token_ids = model_->end_ids;
    request.deadline = deadline_;
    item.num_prompt_tokens = static_cast<int>(request.prompt_ids.size());
    item.num_candidates = request.num_candidates;
    item.first_candidate = request.first_candidate;
    item.arrival = SteadyClock::now();
    item.last_token.resize(request.num_candidates, item.arrival);
    const std::vector<std::string> stop(sampling.stop().begin(), sampling.stop().end());
    item.texts.assign(request.num_candidates, CompletionText(*model_->tokenizer, stop));
    request.on_token = [this, &item, on_token = std::move(on_token)](int candidate, int32_t token,
                                                                     const engine::TokenLogprobs& logprobs) {
      absl::MutexLock lock(&mutex_);
      const int c = candidate - item.first_candidate;
      const SteadyClock::time_point now = SteadyClock::now();
      if (item.last_token[c] == item.arrival) {
        metrics_->FirstToken(absl::FromChrono(now - item.arrival));
      } else {
        metrics_->NextToken(absl::FromChrono(now - item.last_token[c]));
      }
      item.last_token[c] = now;
      const bool stopped = item.texts[c].Append(token);
      if (on_token) on_token(item, candidate, token, logprobs);
      changed_ = changed_ || on_token;
      return stopped ? engine::Continue::kStop : engine::Continue::kYes;
    };
    request.on_done = [this, &item](absl::StatusOr<std::vector<engine::Candidate>> result) {
      absl::MutexLock lock(&mutex_);
      for (CompletionText& text : item.texts) text.Finish();
      if (result.ok()) {
        const absl::Duration since_arrival = absl::FromChrono(SteadyClock::now() - item.arrival);
        for (const engine::Candidate& candidate : *result) {
          metrics_->Finished(item.num_prompt_tokens, candidate, since_arrival);
        }
      }
      item.result = std::move(result);
      item.done = true;
    };
    ALMOST_ASSIGN_OR_RETURN(item.engine_id, model_->engine->Submit(std::move(request)));
    return absl::OkStatus();
  }

  const std::shared_ptr<const ServedModel> model_;
  const std::shared_ptr<ModelMetrics> metrics_;
  const absl::Time deadline_;
  std::vector<std::unique_ptr<Item>> items_;
  absl::Mutex mutex_;
  bool changed_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status queue_full_ ABSL_GUARDED_BY(mutex_);
};

// Of an item, for LoadGate: about as many as its tokens, prompt and completions together.
int64_t Work(const v1::GenerateItem& item, const types::v1::SamplingParams& sampling) {
  const int64_t completions = sampling.has_n() ? std::clamp(sampling.n(), 1, kMaxCandidates) : 1;
  const int64_t new_tokens =
      sampling.has_max_new_tokens() ? std::clamp(sampling.max_new_tokens(), 1, 1 << 20) : 16;
  return static_cast<int64_t>(item.input().ByteSizeLong()) / 4 + completions * new_tokens;
}

void AddLogprobs(const engine::TokenLogprobs& logprobs, auto& message) {
  message.add_logprobs(logprobs.model);
  message.add_sampled_logprobs(logprobs.sampled);
}

}  // namespace

grpc::Status GenerationService::Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                                         v1::GenerateResponse* response) {
  if (const absl::Status status = CheckItems(request->items_size()); !status.ok()) return ToGrpc(status);
  const auto model = models_.Find(request->model(), request->expected_digest());
  if (!model.ok()) return ToGrpc(model.status());
  const auto sampling = [&](const v1::GenerateItem& item) -> const types::v1::SamplingParams& {
    return item.has_sampling() ? item.sampling() : request->sampling();
  };
  int64_t completions = 0, work = 0;
  for (const v1::GenerateItem& item : request->items()) {
    completions += sampling(item).has_n() ? sampling(item).n() : 1;
    work += Work(item, sampling(item));
  }
  if (completions > kMaxCompletions) {
    return ToGrpc(InvalidField("sampling.n", absl::StrCat("at most ", kMaxCompletions, " over all items"),
                               absl::StrCat(completions)));
  }
  auto ticket = (*model)->Enter(work, absl::FromChrono(context->deadline()));
  if (!ticket.ok()) return ToGrpc(ticket.status());
  Batch batch(*model, metrics_, *context);
  for (const v1::GenerateItem& item : request->items()) batch.Start(item, sampling(item));
  if (const absl::Status status = batch.Wait(*context, *ticket); !status.ok()) return ToGrpc(status);

  response->set_model_digest((*model)->digest());
  response->set_numerics_id((*model)->numerics_id());
  for (const auto& item : batch.items()) {
    v1::GenerateItemResponse* out = response->add_items();
    if (!item->result.ok()) {
      if (absl::IsDeadlineExceeded(item->result.status())) return ToGrpc(item->result.status());
      if (absl::IsOutOfRange(item->result.status())) metrics_.TooLarge();
      *out->mutable_error() = ToProto(item->result.status());
      continue;
    }
    out->mutable_result()->set_num_prompt_tokens(item->num_prompt_tokens);
    for (const engine::Candidate& candidate : *item->result) {
      v1::Completion* completion = out->mutable_result()->add_completions();
      completion->set_index(candidate.index);
      completion->set_text(item->texts[candidate.index - item->first_candidate].text());
      completion->set_finish_reason(ToProtoReason(candidate.finish_reason));
      completion->mutable_token_ids()->Add(candidate.token_ids.begin(), candidate.token_ids.end());
      for (size_t t = 0; t < candidate.token_ids.size() && t < candidate.logprobs.size(); ++t) {
        AddLogprobs(candidate.logprobs[t], *completion);
      }
    }
  }
  ticket->Answered();
  return grpc::Status::OK;
}

grpc::Status GenerationService::StreamGenerate(grpc::ServerContext* context,
                                               const v1::StreamGenerateRequest* request,
                                               grpc::ServerWriter<v1::StreamGenerateResponse>* writer) {
  const auto model = models_.Find(request->model(), request->expected_digest());
  if (!model.ok()) return ToGrpc(model.status());
  auto ticket = (*model)->Enter(Work(request->item(), request->item().sampling()),
                                absl::FromChrono(context->deadline()));
  if (!ticket.ok()) return ToGrpc(ticket.status());
  Batch batch(*model, metrics_, *context);
  // A piece for each token that settles text; bounded by max_new_tokens, so a slow reader holds back nobody.
  std::deque<v1::StreamGenerateResponse> pieces;
  std::map<int, v1::StreamGenerateResponse> unsettled;  // tokens whose text is still withheld
  const types::v1::SamplingParams& sampling = request->item().sampling();
  batch.Start(request->item(), sampling,
              [&](Item& item, int candidate, int32_t token, const engine::TokenLogprobs& logprobs) {
                v1::StreamGenerateResponse& piece = unsettled[candidate];
                piece.set_index(candidate);
                piece.add_token_ids(token);
                if (sampling.logprobs()) AddLogprobs(logprobs, piece);
                piece.set_text(item.texts[candidate - item.first_candidate].TakeSettled());
                if (piece.text().empty()) return;
                pieces.push_back(std::move(piece));
                unsettled.erase(candidate);
              });
  bool first = true;
  const auto write = [&](v1::StreamGenerateResponse& piece) {
    if (std::exchange(first, false)) piece.set_model_digest((*model)->digest());
    return writer->Write(piece);
  };
  const absl::Status status = batch.Wait(*context, *ticket, [&] {
    std::deque<v1::StreamGenerateResponse> ready;
    {
      absl::MutexLock lock(&batch.mutex());
      ready.swap(pieces);
    }
    for (v1::StreamGenerateResponse& piece : ready) {
      if (!write(piece)) return false;
    }
    return true;
  });
  if (!status.ok()) return ToGrpc(status);
  Item& item = *batch.items()[0];
  if (!item.result.ok()) return ToGrpc(item.result.status());
  for (const engine::Candidate& candidate : *item.result) {
    v1::StreamGenerateResponse& last = unsettled[candidate.index];
    last.set_index(candidate.index);
    last.set_text(item.texts[candidate.index - item.first_candidate].TakeSettled());
    last.set_finish_reason(ToProtoReason(candidate.finish_reason));
    write(last);
  }
  ticket->Answered();
  return grpc::Status::OK;
}

grpc::Status GenerationService::ScoreCompletions(grpc::ServerContext* context,
                                                 const v1::ScoreCompletionsRequest* request,
                                                 v1::ScoreCompletionsResponse* response) {
  if (const absl::Status status = CheckItems(request->items_size()); !status.ok()) return ToGrpc(status);
  const auto model = models_.Find(request->model(), request->expected_digest());
  if (!model.ok()) return ToGrpc(model.status());
  auto ticket = (*model)->Enter(static_cast<int64_t>(request->ByteSizeLong()) / 4,
                                absl::FromChrono(context->deadline()));
  if (!ticket.ok()) return ToGrpc(ticket.status());
  const auto read = [&](const v1::CompletionToScore& item) -> absl::StatusOr<engine::CompletionScoreRequest> {
    engine::CompletionScoreRequest score;
    ALMOST_ASSIGN_OR_RETURN(score.prompt_ids, ReadInput(**model, item.input()));
    switch (item.completion_case()) {
      case v1::CompletionToScore::kCompletionText:
        ALMOST_RETURN_IF_ERROR(CheckUtf8("completion_text", item.completion_text()));
        score.completion_ids =
            (*model)->tokenizer->Encode(item.completion_text(), /*add_special_tokens=*/false);
        break;
      case v1::CompletionToScore::kCompletionIds:
        score.completion_ids.assign(item.completion_ids().ids().begin(), item.completion_ids().ids().end());
        break;
      default:
        return InvalidField("completion", "completion_text or completion_ids", "nothing");
    }
    ALMOST_RETURN_IF_ERROR((*model)->engine->CheckCompletion(score));
    return score;
  };
  std::vector<engine::CompletionScoreRequest> scores;
  std::vector<v1::CompletionScore*> results;
  for (const v1::CompletionToScore& item : request->items()) {
    v1::CompletionScoreResponse* out = response->add_items();
    absl::StatusOr<engine::CompletionScoreRequest> score = read(item);
    if (!score.ok()) {
      if (absl::IsOutOfRange(score.status())) metrics_.TooLarge();
      *out->mutable_error() = ToProto(score.status());
      continue;
    }
    results.push_back(out->mutable_result());
    scores.push_back(std::move(*score));
  }
  const engine::ScoringLimits limits = LimitsOf(*context, *ticket);
  const auto logprobs = (*model)->engine->ScoreCompletions(scores, limits);
  if (!logprobs.ok()) return ToGrpc(CallStatus(logprobs.status(), limits.deadline));
  for (size_t i = 0; i < results.size(); ++i) {
    results[i]->mutable_token_ids()->Add(scores[i].completion_ids.begin(), scores[i].completion_ids.end());
    double sum = 0;
    for (const float logprob : (*logprobs)[i]) {
      results[i]->add_logprobs(logprob);
      sum += logprob;
    }
    results[i]->set_sum_logprob(sum);
  }
  response->set_model_digest((*model)->digest());
  response->set_numerics_id((*model)->numerics_id());
  ticket->Answered();
  return grpc::Status::OK;
}

grpc::Status GenerationService::Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                                         v1::TokenizeResponse* response) {
  if (const absl::Status status = CheckItems(request->inputs_size()); !status.ok()) return ToGrpc(status);
  const auto model = models_.Find(request->model());
  if (!model.ok()) return ToGrpc(model.status());
  for (const types::v1::Input& input : request->inputs()) {
    const auto ids = ReadInput(**model, input);
    if (!ids.ok()) return ToGrpc(ids.status());
    v1::TokenizedInput* out = response->add_inputs();
    out->mutable_token_ids()->Add(ids->begin(), ids->end());
    out->set_text((*model)->tokenizer->Decode(*ids, /*skip_special_tokens=*/true));
  }
  return grpc::Status::OK;
}

grpc::Status GenerationService::ListModels(grpc::ServerContext*, const types::v1::ListModelsRequest* request,
                                           types::v1::ListModelsResponse* response) {
  return Answer(models_.List(*request), response);
}

grpc::Status GenerationService::GetModel(grpc::ServerContext*, const types::v1::GetModelRequest* request,
                                         types::v1::Model* response) {
  const auto model = models_.Find(request->name());
  if (!model.ok()) return ToGrpc(model.status());
  *response = (*model)->description;
  return grpc::Status::OK;
}

grpc::Status GenerationService::LoadModel(grpc::ServerContext* context,
                                          const types::v1::LoadModelRequest* request,
                                          types::v1::Model* response) {
  return Answer(models_.Load(*request, [context] { return !context->IsCancelled(); }), response);
}

grpc::Status GenerationService::UnloadModel(grpc::ServerContext*,
                                            const types::v1::UnloadModelRequest* request,
                                            types::v1::UnloadModelResponse*) {
  return ToGrpc(models_.Unload(*request));
}

}  // namespace almost::generation
