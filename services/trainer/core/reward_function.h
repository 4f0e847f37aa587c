#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace almost::trainer {

// A prompt and its answer as the reward model is to read them.
struct RewardInput {
  std::string prompt;
  std::string response;
};

// The reward service: one raw score an input, in order, which depends on the input alone, not on which others
// come with it. An error is an error of the step, never a score.
using RewardFunction = std::function<absl::StatusOr<std::vector<double>>(std::span<const RewardInput>)>;

// A model that reads prompts with their answers.
struct Reader {
  std::string field;  // of the spec, that names it
  int context_tokens = 0;
  int vocab_size = 0;  // of the policy's size: it counts the same tokens
};

}  // namespace almost::trainer
