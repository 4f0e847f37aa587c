#include "common/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/base/random.h"
#include "common/engine/kernels.h"

namespace almost::engine {

Sampler::Draw Sampler::operator()(std::span<const float> logits, const SamplingParams& params, int candidate,
                                  int position) {
  const int32_t likeliest =
      static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  Draw draw{likeliest, {0, 0}};
  if (params.temperature > 0) {
    const float inverse = static_cast<float>(1.0 / params.temperature);
    const float largest = logits[likeliest];
    weights_.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) weights_[i] = (logits[i] - largest) * inverse;
    Exp(weights_.data(), static_cast<int>(weights_.size()));

    const bool truncated = params.top_p < 1 || params.top_k > 0 || params.min_p > 0;
    double mass = 0;
    for (const float weight : weights_) mass += weight;
    kept_.clear();
    if (truncated) {
      // No nucleus reaches down to a token below (1 - top_p) / V of the mass: all such together do not make
      // up 1 - top_p.
      const double floor =
          std::max((1 - params.top_p) / static_cast<double>(logits.size()) * mass, params.min_p);
      for (size_t i = 0; i < weights_.size(); ++i) {
        if (weights_[i] >= floor) kept_.push_back(static_cast<int32_t>(i));
      }
      std::sort(kept_.begin(), kept_.end(), [this](int32_t a, int32_t b) {
        return weights_[a] != weights_[b] ? weights_[a] > weights_[b] : a < b;
      });
      if (params.top_k > 0 && kept_.size() > size_t(params.top_k)) {
        kept_.resize(params.top_k);
        // Nucleus and min-p see the distribution that top-k left.
        mass = 0;
        for (const int32_t token : kept_) mass += weights_[token];
      }
      double reached = 0;
      size_t count = 0;
      while (count < kept_.size() && (count == 0 || reached < params.top_p * mass))
        reached += weights_[kept_[count++]];
      kept_.resize(count);
      mass = reached;
    } else {
      kept_.resize(logits.size());
      std::iota(kept_.begin(), kept_.end(), 0);
    }
    double left =
        RandomUnit(params.seed, static_cast<uint64_t>(candidate), static_cast<uint64_t>(position)) * mass;
    draw.token = kept_.back();
    for (const int32_t token : kept_) {
      if (left < weights_[token]) {
        draw.token = token;
        break;
      }
      left -= weights_[token];
    }
    if (params.logprobs) draw.logprobs.sampled = static_cast<float>(std::log(weights_[draw.token] / mass));
  }
  if (params.logprobs) draw.logprobs.model = static_cast<float>(logits[draw.token] - LogSumExp(logits));
  return draw;
}

}  // namespace almost::engine
