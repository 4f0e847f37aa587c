#include "services/simulator/rpc/simulator_service.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "common/world/question.h"
#include "services/simulator/core/dialogue.h"
#include "services/simulator/core/prompt_round.h"
#include "services/simulator/rpc/in_order.h"
#include "services/simulator/rpc/model_calls.h"

namespace almost::simulator {
namespace {

constexpr int kMaxAttempts = 4096;
constexpr int kMaxDialogues = 1024;
constexpr int kMaxCandidates = 64;
constexpr int kMaxTurns = 8;
constexpr int kBatchCompletions = 64;  // as many as one call takes

using WaitsFor = Dialogue::WaitsFor;

absl::Status CheckRange(absl::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("in [", low, ", ", high, "]"), absl::StrCat(value));
}

absl::Status CheckModel(absl::string_view field, const v1::ModelRef& model) {
  if (!model.name().empty()) return absl::OkStatus();
  return InvalidField(absl::StrCat(field, ".name"), "models/{id}", "nothing");
}

absl::StatusOr<PromptFilter> ReadFilter(const v1::GeneratePromptsRequest& request) {
  const v1::PromptFilter& proto = request.filter();
  PromptFilter filter;
  switch (proto.preset()) {
    case v1::PromptFilter::PRESET_UNSPECIFIED:
    case v1::PromptFilter::PRESET_PAPER:
      filter = PromptFilter::Paper();
      break;
    case v1::PromptFilter::PRESET_WORLD:
      filter = PromptFilter::World();
      break;
    default:
      return InvalidField("filter.preset", "a known preset", absl::StrCat(proto.preset()));
  }
  filter.takes_every_line = request.take_all_lines();
  if (proto.has_max_rouge_l()) {
    if (!(proto.max_rouge_l() > 0)) {
      return InvalidField("filter.max_rouge_l", "above 0", absl::StrCat(proto.max_rouge_l()));
    }
    filter.max_rouge_l = proto.max_rouge_l() < 1 ? proto.max_rouge_l() : 0;
  }
  if (proto.has_max_repeats()) {
    ALMOST_RETURN_IF_ERROR(CheckRange("filter.max_repeats", proto.max_repeats(), 1, 1 << 30));
    filter.max_repeats = proto.max_repeats();
  }
  if (proto.has_max_opening_share()) {
    if (!(proto.max_opening_share() > 0 && proto.max_opening_share() <= 1)) {
      return InvalidField("filter.max_opening_share", "in (0, 1]", absl::StrCat(proto.max_opening_share()));
    }
    filter.max_opening_share = proto.max_opening_share();
  }
  return filter;
}

// The world whose held-out questions are to be dropped; nullptr: none are.
absl::StatusOr<const world::World*> HeldOutOf(absl::string_view field, bool drop, const std::string& name) {
  const world::World* world = world::World::Named(name);
  if (world == nullptr) return InvalidField(field, "\"tiny\" or \"large\"", name);
  return drop ? world : nullptr;
}

absl::StatusOr<PromptRoundOptions> ReadRequest(const v1::GeneratePromptsRequest& request) {
  ALMOST_RETURN_IF_ERROR(CheckModel("model", request.model()));
  ALMOST_RETURN_IF_ERROR(CheckRange("num_attempts", request.num_attempts(), 1, kMaxAttempts));
  PromptRoundOptions options;
  ALMOST_ASSIGN_OR_RETURN(options.filter, ReadFilter(request));
  options.instruction = request.instruction();
  options.seeds.assign(request.seeds().begin(), request.seeds().end());
  options.pool.assign(request.pool().begin(), request.pool().end());
  options.round = request.round();
  options.num_attempts = request.num_attempts();
  options.num_wanted = request.num_wanted();
  if (request.has_num_shots()) options.num_shots = request.num_shots();
  options.draw_from_pool = request.draw_from_pool();
  ALMOST_ASSIGN_OR_RETURN(
      options.held_out_of,
      HeldOutOf("filter.world", request.filter().drop_world_held_out(), request.filter().world()));
  options.seed = request.sampling().seed();
  return options;
}

absl::StatusOr<DialogueOptions> ReadRequest(const v1::SimulateDialoguesRequest& request) {
  ALMOST_RETURN_IF_ERROR(CheckModel("assistant", request.assistant()));
  ALMOST_RETURN_IF_ERROR(CheckModel("reward_model", request.reward_model()));
  ALMOST_RETURN_IF_ERROR(CheckRange("seeds", request.seeds_size(), 1, kMaxDialogues));
  for (const v1::DialogueSeed& seed : request.seeds()) {
    if (seed.prompt_id() < 0)
      return InvalidField("seeds.prompt_id", "at least 0", absl::StrCat(seed.prompt_id()));
    if (seed.prompt().empty()) return InvalidField("seeds.prompt", "not empty", "nothing");
  }
  DialogueOptions options;
  if (request.has_num_candidates()) options.num_candidates = request.num_candidates();
  if (request.has_max_turns()) options.max_turns = request.max_turns();
  ALMOST_RETURN_IF_ERROR(CheckRange("num_candidates", options.num_candidates, 1, kMaxCandidates));
  ALMOST_RETURN_IF_ERROR(CheckRange("max_turns", options.max_turns, 1, kMaxTurns));
  if (options.max_turns > 1) ALMOST_RETURN_IF_ERROR(CheckModel("user", request.user()));
  for (int i = 0; i < request.demonstrations_size(); ++i) {
    absl::StatusOr<Demonstrations> file = Demonstrations::Parse(request.demonstrations(i).text());
    if (!file.ok()) return Annotate(file.status(), absl::StrCat("demonstrations[", i, "]"));
    options.demonstrations.push_back(*std::move(file));
  }
  options.shots = request.shots();
  const auto filter = ResponseFilter::Named(request.response_filter(), request.prompt_format());
  if (!filter.has_value()) {
    return InvalidField("response_filter", "\"paper\", \"world\" or \"none\"", request.response_filter());
  }
  options.response_filter = *filter;
  const bool world = request.response_filter() == "world" ||
                     (request.response_filter() == "none" && request.prompt_format() == "world");
  options.user_filter = world ? PromptFilter::World() : PromptFilter::Paper();
  ALMOST_ASSIGN_OR_RETURN(options.format, PromptFormat::Named(request.prompt_format()));
  ALMOST_ASSIGN_OR_RETURN(options.held_out_of,
                          HeldOutOf("world", request.drop_world_held_out(), request.world()));
  options.seed = request.sampling().seed();
  ALMOST_RETURN_IF_ERROR(options.Validate());
  return options;
}

// Plays dialogues together, until none waits for anything.
class Players {
 public:
  Players(const v1::SimulateDialoguesRequest& request, types::v1::SamplingParams sampling, ModelCalls& calls,
          Metrics& metrics)
      : request_(request), sampling_(std::move(sampling)), calls_(calls), metrics_(metrics) {}

  absl::Status Play(std::vector<Dialogue>& dialogues, const std::stop_token& stop) const {
    while (std::ranges::any_of(
        dialogues, [](const Dialogue& dialogue) { return dialogue.waits_for() != WaitsFor::kNothing; })) {
      const absl::Time start = absl::Now();
      ALMOST_RETURN_IF_ERROR(Ask(dialogues, stop));
      ALMOST_RETURN_IF_ERROR(Answer(dialogues, stop));
      ALMOST_RETURN_IF_ERROR(Score(dialogues, stop));
      metrics_.Turn(absl::Now() - start);
    }
    return absl::OkStatus();
  }

 private:
  static std::vector<Dialogue*> Waiting(std::vector<Dialogue>& dialogues, WaitsFor what) {
    std::vector<Dialogue*> waiting;
    for (Dialogue& dialogue : dialogues) {
      if (dialogue.waits_for() == what) waiting.push_back(&dialogue);
    }
    return waiting;
  }

  static std::vector<CompletionRequest> Requests(const std::vector<Dialogue*>& dialogues) {
    std::vector<CompletionRequest> requests;
    for (const Dialogue* dialogue : dialogues) requests.push_back(dialogue->Request());
    return requests;
  }

  absl::Status Ask(std::vector<Dialogue>& dialogues, const std::stop_token& stop) const {
    const std::vector<Dialogue*> waiting = Waiting(dialogues, WaitsFor::kQuestion);
    ALMOST_ASSIGN_OR_RETURN(const auto questions,
                            calls_.Complete(request_.user(), sampling_, Requests(waiting), stop));
    for (size_t i = 0; i < waiting.size(); ++i) {
      waiting[i]->TakeQuestion(questions[i].has_value() ? std::optional(questions[i]->front())
                                                        : std::nullopt);
    }
    return absl::OkStatus();
  }

  absl::Status Answer(std::vector<Dialogue>& dialogues, const std::stop_token& stop) const {
    const std::vector<Dialogue*> waiting = Waiting(dialogues, WaitsFor::kAnswers);
    ALMOST_ASSIGN_OR_RETURN(const auto answers,
                            calls_.Complete(request_.assistant(), sampling_, Requests(waiting), stop));
    for (size_t i = 0; i < waiting.size(); ++i) waiting[i]->TakeAnswers(answers[i]);
    return absl::OkStatus();
  }

  absl::Status Score(std::vector<Dialogue>& dialogues, const std::stop_token& stop) const {
    const std::vector<Dialogue*> waiting = Waiting(dialogues, WaitsFor::kScores);
    std::vector<reward::v1::ScoreItem> items;
    for (const Dialogue* dialogue : waiting) {
      for (const Candidate& candidate : dialogue->turns().back().candidates) {
        reward::v1::ScoreItem& item = items.emplace_back();
        for (const Message& message : dialogue->messages()) {
          types::v1::Message& proto = *item.mutable_dialogue()->add_messages();
          proto.set_role(message.role);
          proto.set_content(message.content);
        }
        item.set_response(candidate.text);
      }
    }
    ALMOST_ASSIGN_OR_RETURN(const auto scores, calls_.Score(request_.reward_model(), items, stop));
    auto next = scores.begin();
    for (Dialogue* dialogue : waiting) {
      const auto end = next + static_cast<int64_t>(dialogue->turns().back().candidates.size());
      dialogue->TakeScores({next, end});
      next = end;
    }
    return absl::OkStatus();
  }

  const v1::SimulateDialoguesRequest& request_;
  const types::v1::SamplingParams sampling_;
  ModelCalls& calls_;
  Metrics& metrics_;
};

v1::SimulateDialoguesResponse ToProto(const Dialogue& dialogue) {
  v1::SimulateDialoguesResponse response;
  response.set_prompt_id(dialogue.prompt_id());
  for (const Message& message : dialogue.messages()) {
    types::v1::Message& proto = *response.add_messages();
    proto.set_role(message.role);
    proto.set_content(message.content);
  }
  for (const AssistantTurn& turn : dialogue.turns()) {
    v1::AssistantTurn& proto = *response.add_turns();
    proto.set_chosen(turn.chosen);
    proto.set_seed(turn.seed);
    for (const Candidate& candidate : turn.candidates) {
      v1::CandidateAnswer& answer = *proto.add_candidates();
      answer.set_text(candidate.text);
      answer.set_bad_reason(candidate.bad_reason);
      answer.set_num_tokens(candidate.num_tokens);
      if (!candidate.score.has_value()) continue;
      answer.set_raw_score(candidate.score->raw);
      answer.set_score(candidate.score->normalized);
    }
  }
  response.set_drop_reason(dialogue.drop_reason());
  return response;
}

template <typename Response>
absl::Status Send(grpc::ServerWriter<Response>& writer, const Response& response) {
  if (writer.Write(response)) return absl::OkStatus();
  return absl::CancelledError("the client has gone");
}

}  // namespace

grpc::Status SimulatorService::GeneratePrompts(grpc::ServerContext* context,
                                               const v1::GeneratePromptsRequest* request,
                                               grpc::ServerWriter<v1::GeneratePromptsResponse>* writer) {
  absl::StatusOr<PromptRoundOptions> options = ReadRequest(*request);
  if (!options.ok()) return ToGrpc(options.status());
  const absl::StatusOr<std::unique_ptr<PromptRound>> round = PromptRound::Create(*std::move(options));
  if (!round.ok()) return ToGrpc(round.status());
  ModelCalls calls(generation_, reward_, *context, call_timeout_);
  using Answers = std::vector<std::optional<std::vector<Completion>>>;
  const int num_attempts = (*round)->num_attempts();
  const int num_batches = (num_attempts + kBatchCompletions - 1) / kBatchCompletions;
  int attempt = 0;
  return ToGrpc(InOrder<Answers>(
      num_batches, calls_in_flight_, [context] { return context->IsCancelled(); },
      [&](int batch, const std::stop_token& stop) {
        const int begin = batch * kBatchCompletions;
        std::vector<CompletionRequest> requests;
        for (int i = begin; i < std::min(num_attempts, begin + kBatchCompletions); ++i) {
          requests.push_back((*round)->Request(i));
        }
        return calls.Complete(request->model(), request->sampling(), requests, stop);
      },
      [&](const Answers& answers) {
        for (const auto& answer : answers) {
          const auto completion = answer.has_value() ? std::optional(answer->front()) : std::nullopt;
          for (const MinedPrompt& prompt : (*round)->Accept(completion)) {
            v1::GeneratePromptsResponse response;
            response.set_attempt(attempt);
            response.set_prompt(prompt.text);
            response.set_drop_reason(prompt.drop_reason);
            response.set_num_tokens(prompt.num_tokens);
            ALMOST_RETURN_IF_ERROR(Send(*writer, response));
            metrics_.Mined(prompt);
          }
          ++attempt;
        }
        return absl::OkStatus();
      }));
}

grpc::Status SimulatorService::SimulateDialogues(grpc::ServerContext* context,
                                                 const v1::SimulateDialoguesRequest* request,
                                                 grpc::ServerWriter<v1::SimulateDialoguesResponse>* writer) {
  const absl::StatusOr<DialogueOptions> options = ReadRequest(*request);
  if (!options.ok()) return ToGrpc(options.status());
  types::v1::SamplingParams sampling = request->sampling();
  if (sampling.stop().empty()) {
    sampling.mutable_stop()->Assign(options->format.stop.begin(), options->format.stop.end());
  }
  ModelCalls calls(generation_, reward_, *context, call_timeout_);
  const Players players(*request, std::move(sampling), calls, metrics_);
  const int batch_size = std::max(1, kBatchCompletions / options->num_candidates);
  const int num_batches = (request->seeds_size() + batch_size - 1) / batch_size;
  return ToGrpc(InOrder<std::vector<Dialogue>>(
      num_batches, calls_in_flight_, [context] { return context->IsCancelled(); },
      [&](int batch, const std::stop_token& stop) -> absl::StatusOr<std::vector<Dialogue>> {
        const int begin = batch * batch_size;
        std::vector<Dialogue> dialogues;
        for (int i = begin; i < std::min(request->seeds_size(), begin + batch_size); ++i) {
          dialogues.emplace_back(*options, request->seeds(i).prompt_id(), request->seeds(i).prompt());
        }
        ALMOST_RETURN_IF_ERROR(players.Play(dialogues, stop));
        return dialogues;
      },
      [&](const std::vector<Dialogue>& dialogues) {
        for (const Dialogue& dialogue : dialogues) {
          ALMOST_RETURN_IF_ERROR(Send(*writer, ToProto(dialogue)));
          metrics_.Played(dialogue);
        }
        return absl::OkStatus();
      }));
}

}  // namespace almost::simulator
