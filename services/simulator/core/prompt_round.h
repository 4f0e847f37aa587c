#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/prompt_filter.h"
#include "common/world/world.h"
#include "services/simulator/core/completion.h"

namespace almost::simulator {

// A round of prompt generation by dynamic self-instruct (METHOD.md section 1).
struct PromptRoundOptions {
  std::string instruction;
  std::vector<std::string> seeds;
  std::vector<std::string> pool;  // kept by earlier rounds, in order
  int round = 0;
  int num_attempts = 0;
  int64_t num_wanted = 0;  // over all rounds
  int num_shots = 10;
  bool draw_from_pool = false;
  PromptFilter filter;
  const world::World* held_out_of = nullptr;  // whose held-out questions are dropped
  uint64_t seed = 0;                          // the run's
};

// One prompt that an attempt brought, or, with an empty text, that it brought none.
struct MinedPrompt {
  std::string text;
  std::string drop_reason;  // empty: kept; else a PromptDropReason's name, "held_out" or "too_long"
  int num_tokens = 0;       // of the attempt, on its first prompt; 0 on the others
};

// Every attempt draws its shots from the seeds and from the pool as the last round left it; prompts are
// accepted in the order of the attempts. So a round's prompts are a function of its options and the
// completions, whichever came first.
class PromptRound {
 public:
  // kInvalidArgument names the field: fewer seeds (and pooled prompts) than shots, for instance.
  static absl::StatusOr<std::unique_ptr<PromptRound>> Create(PromptRoundOptions options);

  int num_attempts() const { return options_.num_attempts; }
  // What attempt `attempt` asks. Thread-safe.
  CompletionRequest Request(int attempt) const;
  // Takes the next attempt's completion; nullopt: the request did not fit the model's context. Call in the
  // order of the attempts; one thread.
  std::vector<MinedPrompt> Accept(const std::optional<Completion>& completion);

 private:
  explicit PromptRound(PromptRoundOptions options);

  const PromptRoundOptions options_;
  const uint64_t shots_seed_;
  const uint64_t completion_seed_;
  PromptPool pool_;
};

}  // namespace almost::simulator
