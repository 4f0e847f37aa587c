#include "services/simulator/core/dialogue.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "common/world/question.h"

namespace almost::simulator {
namespace {

absl::Status AtLeastOne(absl::string_view field, int value) {
  if (value >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": must be at least 1, is ", value));
}

// Of the suitable candidates, the first with the highest raw score; -1: none is suitable.
int Best(const std::vector<Candidate>& candidates) {
  int best = -1;
  for (int i = 0; i < static_cast<int>(candidates.size()); ++i) {
    if (!candidates[i].bad_reason.empty()) continue;
    if (best < 0 || candidates[i].score->raw > candidates[best].score->raw) best = i;
  }
  return best;
}

}  // namespace

absl::Status DialogueOptions::Validate() const {
  ALMOST_RETURN_IF_ERROR(AtLeastOne("num_candidates", num_candidates));
  ALMOST_RETURN_IF_ERROR(AtLeastOne("max_turns", max_turns));
  if (shots < 0 || (shots > 0 && demonstrations.empty())) {
    return absl::InvalidArgumentError(
        absl::StrCat("shots: must be 0 without demonstrations and never negative, is ", shots));
  }
  for (size_t i = 0; i < demonstrations.size(); ++i) {
    const size_t held = demonstrations[i].examples.size();
    if (held < static_cast<size_t>(shots)) {
      return absl::FailedPreconditionError(
          absl::StrCat("shots: ", shots, " asked for, but demonstrations[", i, "] holds ", held));
    }
  }
  return absl::OkStatus();
}

Dialogue::Dialogue(const DialogueOptions& options, int64_t prompt_id, std::string prompt)
    : options_(options),
      prompt_id_(prompt_id),
      seed_(DeriveSeed(DeriveSeed(options.seed, "dialogues"), static_cast<uint64_t>(prompt_id))) {
  messages_.push_back({.role = "user", .content = std::move(prompt)});
}

CompletionRequest Dialogue::Request() const {
  static const auto& no_demonstrations = *new Demonstrations;
  const bool assistant = waits_for_ == WaitsFor::kAnswers;
  const size_t num_files = options_.demonstrations.size();
  PromptFormat format = options_.format;
  if (num_files == 0) format.has_instruction = false;
  const Demonstrations& demonstrations =
      num_files == 0 ? no_demonstrations
                     : options_.demonstrations[static_cast<uint64_t>(prompt_id_) % num_files];
  absl::StatusOr<std::string> text =
      assistant ? FewShotPrompt(format, demonstrations, options_.shots, messages_)
                : FewShotUserPrompt(format, demonstrations, options_.shots, messages_);
  return {.text = *std::move(text),
          .seed = TurnSeed(assistant ? "assistant" : "user"),
          .num_candidates = assistant ? options_.num_candidates : 1};
}

uint64_t Dialogue::TurnSeed(absl::string_view player) const {
  return DeriveSeed(DeriveSeed(seed_, turns_.size()), player);
}

void Dialogue::TakeAnswers(const std::optional<std::vector<Completion>>& answers) {
  if (!answers.has_value()) return End(kTooLong);
  const uint64_t seed = TurnSeed("assistant");
  AssistantTurn& turn = turns_.emplace_back();
  turn.seed = seed;
  for (const Completion& answer : *answers) {
    Candidate& candidate = turn.candidates.emplace_back();
    candidate.text = options_.response_filter.Extract(answer.text);
    candidate.num_tokens = answer.num_tokens;
    if (const auto bad = options_.response_filter.Check(candidate.text, answer.finished)) {
      candidate.bad_reason = std::string(Name(*bad));
    }
  }
  waits_for_ = WaitsFor::kScores;
}

void Dialogue::TakeScores(const std::vector<std::optional<RewardScore>>& scores) {
  AssistantTurn& turn = turns_.back();
  for (size_t i = 0; i < turn.candidates.size(); ++i) {
    Candidate& candidate = turn.candidates[i];
    candidate.score = scores[i];
    if (!candidate.score.has_value()) candidate.bad_reason = kTooLong;
  }
  turn.chosen = Best(turn.candidates);
  if (turn.chosen < 0) return End("no_suitable_answer");
  messages_.push_back({.role = "assistant", .content = turn.candidates[turn.chosen].text});
  waits_for_ =
      static_cast<int>(turns_.size()) < options_.max_turns ? WaitsFor::kQuestion : WaitsFor::kNothing;
}

void Dialogue::TakeQuestion(const std::optional<Completion>& question) {
  waits_for_ = WaitsFor::kNothing;
  if (!question.has_value() || !question->finished) return;
  std::string text = options_.response_filter.Extract(question->text);
  if (options_.user_filter.CheckForm(text).has_value()) return;
  if (options_.held_out_of != nullptr && world::IsHeldOut(*options_.held_out_of, text)) return;
  messages_.push_back({.role = "user", .content = std::move(text)});
  waits_for_ = WaitsFor::kAnswers;
}

void Dialogue::End(const char* reason) {
  waits_for_ = WaitsFor::kNothing;
  if (messages_.size() == 1) {
    drop_reason_ = reason;
  } else {
    messages_.pop_back();  // the question that could not be answered
  }
}

}  // namespace almost::simulator
