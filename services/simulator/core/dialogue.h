#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/text/prompt_filter.h"
#include "common/text/prompt_format.h"
#include "common/text/response_filter.h"
#include "common/world/world.h"
#include "services/simulator/core/completion.h"

namespace almost::simulator {

// How dialogues are played.
struct DialogueOptions {
  PromptFormat format = PromptFormat::Paper();
  std::vector<Demonstrations> demonstrations;  // dialogue i takes file i modulo their number; none: no shots
  int shots = 0;
  int num_candidates = 4;
  int max_turns = 2;  // the assistant's
  ResponseFilter response_filter;
  PromptFilter user_filter;                   // form of the user's later turns
  const world::World* held_out_of = nullptr;  // no later turn asks a question of this world's held-out third
  uint64_t seed = 0;                          // the run's

  // kInvalidArgument names the field; kFailedPrecondition: a file with fewer demonstrations than shots.
  absl::Status Validate() const;
};

// A reward model's output, and the same normalised as its manifest says.
struct RewardScore {
  double raw = 0;
  double normalized = 0;
};

struct Candidate {
  std::string text;
  std::string bad_reason;  // empty: suitable; else a BadReason's name or "too_long"
  int num_tokens = 0;
  std::optional<RewardScore> score;  // none: too long for the reward model
};

struct AssistantTurn {
  uint64_t seed = 0;  // of the request that drew them; candidate c is number c of it
  std::vector<Candidate> candidates;
  int chosen = -1;  // -1: none is suitable
};

// One dialogue of reward-model-guided self-play (METHOD.md section 5), as a machine that says what it waits
// for and is given it:
//
//   answers -> scores -> question -> answers -> … -> nothing
//
// A vanilla model with demonstrations plays the assistant: of its candidates, the suitable one with the
// highest raw score is kept, on a tie the first. A vanilla model plays the user from the second turn on. The
// dialogue ends after max_turns, or before a turn in which the user says nothing suitable, no candidate is
// suitable, or the text would exceed the context. What is drawn depends on the run's seed, the prompt's id
// and the turn. Not thread-safe; `options` must be valid and outlive it.
class Dialogue {
 public:
  enum class WaitsFor { kAnswers, kScores, kQuestion, kNothing };

  Dialogue(const DialogueOptions& options, int64_t prompt_id, std::string prompt);

  WaitsFor waits_for() const { return waits_for_; }

  // kAnswers: what the assistant is asked; kQuestion: what the user is asked.
  CompletionRequest Request() const;
  // nullopt: the request does not fit the model's context. The candidates come in their order.
  void TakeAnswers(const std::optional<std::vector<Completion>>& answers);
  void TakeQuestion(const std::optional<Completion>& question);

  // kScores: every candidate of turns().back() is an answer to messages(); one score each, none for a
  // candidate that is too long for the reward model.
  void TakeScores(const std::vector<std::optional<RewardScore>>& scores);

  int64_t prompt_id() const { return prompt_id_; }
  // The dialogue so far, user first; once it waits for nothing, ended by the assistant (unless it is
  // dropped).
  const std::vector<Message>& messages() const { return messages_; }
  // Every turn with all its candidates; where the last one has none chosen, messages() leaves it out.
  const std::vector<AssistantTurn>& turns() const { return turns_; }
  // Why nothing of it can be used: "no_suitable_answer" or "too_long". Empty: it can.
  const std::string& drop_reason() const { return drop_reason_; }

 private:
  // Of what is asked of that player now.
  uint64_t TurnSeed(absl::string_view player) const;
  // Ends it with the turns so far, or for `reason` where there are none.
  void End(const char* reason);

  const DialogueOptions& options_;
  const int64_t prompt_id_;
  const uint64_t seed_;
  WaitsFor waits_for_ = WaitsFor::kAnswers;
  std::vector<Message> messages_;
  std::vector<AssistantTurn> turns_;
  std::string drop_reason_;
};

}  // namespace almost::simulator
