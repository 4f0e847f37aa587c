#pragma once

#include <cstdint>
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
  // numbers. Greedy takes the smallest id among equals; nucleus and top-k keep smaller ids first among
  // equals.
  Draw operator()(std::span<const float> logits, const SamplingParams& params, int candidate, int position);

 private:
  std::vector<float> weights_;  // exp(logit / temperature - largest), by token id
  std::vector<int32_t> kept_;
};

}  // namespace almost::engine
