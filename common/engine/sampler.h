#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "common/engine/engine.h"

namespace almost::engine {

// Draws tokens from logits. Not thread-safe (it keeps scratch space); one a thread.
class Sampler {
 public:
  struct Draw {
    int32_t token;
    TokenLogprobs logprobs;  // zero unless asked for
  };

  // The token at `position` of candidate `candidate`: a function of the logits, the parameters and those two
  // numbers. top-k, then top-p of what it left, then min-p; among equal logits the smaller id is the
  // likelier, for greedy choice too. Probabilities are added in double, in that order. nullopt: a logit is
  // not finite.
  std::optional<Draw> operator()(std::span<const float> logits, const SamplingParams& params, int candidate,
                                 int position);

 private:
  // Fills kept_ with the tokens that truncation leaves, likeliest first, and returns the sum of their
  // weights.
  double Truncate(std::span<const float> logits, const SamplingParams& params);

  std::vector<float> weights_;  // exp((logit - largest) / temperature), by token id
  std::vector<int32_t> kept_;
};

}  // namespace almost::engine
