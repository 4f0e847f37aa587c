#include "common/engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "common/base/random.h"
#include "common/engine/kernels.h"

namespace almost::engine {
namespace {

bool AllFinite(std::span<const float> x) {
  uint32_t largest = 0;
  for (const float value : x) largest = std::max(largest, std::bit_cast<uint32_t>(value) & 0x7fffffff);
  return largest < 0x7f800000;
}

}  // namespace

double Sampler::Truncate(std::span<const float> logits, const SamplingParams& params) {
  const size_t count = logits.size();
  double mass = 0;
  for (const float weight : weights_) mass += weight;
  // Where top-k does not cut first, no nucleus reaches down to (1 - top_p) / V of the mass: all tokens below
  // that together do not make up 1 - top_p. Half of it, for rounding.
  const bool top_k = params.top_k > 0 && size_t(params.top_k) < count;
  const double floor =
      top_k ? 0 : std::max(0.5 * (1 - params.top_p) / static_cast<double>(count) * mass, params.min_p);
  kept_.clear();
  for (size_t i = 0; i < count; ++i) {
    if (weights_[i] >= floor) kept_.push_back(static_cast<int32_t>(i));
  }
  const auto likelier = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  size_t sorted = 0;
  // Sorts no further than it has to: the next tokens in order are selected, then sorted among themselves.
  const auto sort_to = [&](size_t end) {
    end = std::min(end, kept_.size());
    if (end <= sorted) return;
    const auto begin = kept_.begin();
    if (end < kept_.size()) std::nth_element(begin + sorted, begin + end, kept_.end(), likelier);
    std::sort(begin + sorted, begin + end, likelier);
    sorted = end;
  };
  if (top_k) {
    sort_to(params.top_k);
    kept_.resize(sorted);
    mass = 0;
    for (const int32_t token : kept_) mass += weights_[token];
  }
  double reached = 0;
  size_t nucleus = 0;
  while (nucleus < kept_.size() && (nucleus == 0 || reached < params.top_p * mass)) {
    if (nucleus == sorted) sort_to(std::max<size_t>(64, 4 * sorted));
    const float weight = weights_[kept_[nucleus]];
    if (weight < params.min_p) break;  // the likeliest's weight is 1
    reached += weight;
    ++nucleus;
  }
  kept_.resize(nucleus);
  return reached;
}

std::optional<Sampler::Draw> Sampler::operator()(std::span<const float> logits, const SamplingParams& params,
                                                 int candidate, int position) {
  if (!AllFinite(logits)) return std::nullopt;
  const auto largest = std::max_element(logits.begin(), logits.end());
  Draw draw{static_cast<int32_t>(largest - logits.begin()), {0, 0}};
  if (params.temperature > 0) {
    const float inverse = static_cast<float>(1.0 / params.temperature);
    weights_.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) weights_[i] = (logits[i] - *largest) * inverse;
    Exp(weights_.data(), static_cast<int>(weights_.size()));

    const double unit =
        RandomUnit(params.seed, static_cast<uint64_t>(candidate), static_cast<uint64_t>(position));
    double mass = 0;
    if (params.top_p < 1 || params.top_k > 0 || params.min_p > 0) {
      mass = Truncate(logits, params);
      double left = unit * mass;
      draw.token = kept_.back();
      for (const int32_t token : kept_) {
        if (left < weights_[token]) {
          draw.token = token;
          break;
        }
        left -= weights_[token];
      }
    } else {
      for (const float weight : weights_) mass += weight;
      double left = unit * mass;
      for (size_t token = 0; token < weights_.size(); ++token) {
        if (left < weights_[token]) {
          draw.token = static_cast<int32_t>(token);
          break;
        }
        left -= weights_[token];
      }
    }
    if (params.logprobs) draw.logprobs.sampled = static_cast<float>(std::log(weights_[draw.token] / mass));
  }
  if (params.logprobs) draw.logprobs.model = static_cast<float>(logits[draw.token] - LogSumExp(logits));
  return draw;
}

}  // namespace almost::engine
