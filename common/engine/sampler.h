#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "common/engine/engine.h"
#include "common/kernels/kernels.h"

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
  // Of a weight in [0, 1]: 32 buckets from each power of two to the next.
  static size_t Bucket(float weight) { return std::bit_cast<uint32_t>(weight) >> 18; }

  // Leaves in kept_ the fewest of the likeliest tokens whose amounts (a function of the weight) add up to
  // `target`, still in the order of their ids. Without sorting: weights fall into narrow buckets, and only
  // the bucket in which the target is reached is looked at token by token. Of a whole vocabulary only the
  // tokens above a bound that falls until the target is reached: most are far below.
  template <typename Amount>
  void KeepLikeliest(std::span<const float> logits, double target, const Amount& amount);

  // Keeps, of all tokens, those whose weight is at least `bound`.
  void KeepAtLeast(float bound);

  // The sum of the weights of what is kept.
  double Mass() const;

  const Kernels* kernels_ = Kernels::Best();
  std::vector<float> weights_;  // exp((logit - largest) / temperature), by token id; the largest is 1
  bool all_kept_ = false;
  std::vector<int32_t> kept_;   // ascending; of no meaning while all are kept
  std::vector<int32_t> found_;  // room for a whole vocabulary
  std::vector<double> buckets_ = std::vector<double>(Bucket(1.0f) + 1);  // zero between uses
  std::vector<int32_t> boundary_;
};

}  // namespace almost::engine
