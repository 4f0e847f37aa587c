#pragma once

#include <cstdint>
#include <string>

// What the simulator asks of a language model, and what comes back. Which model, and with which temperature,
// is for whoever carries the request.
namespace almost::simulator {

// Candidates 0 to num_candidates - 1 of the continuation of `text`.
struct CompletionRequest {
  std::string text;
  uint64_t seed = 0;
  int num_candidates = 1;
};

struct Completion {
  std::string text;
  bool finished = false;  // by a stop string or end-of-text, not by the limit of tokens
  int num_tokens = 0;
};

// Drop and bad reason of what does not fit the model's context.
inline constexpr char kTooLong[] = "too_long";

}  // namespace almost::simulator
