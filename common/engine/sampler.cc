#include "common/engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "common/base/random.h"

namespace almost::engine {
namespace {

bool AllFinite(std::span<const float> x) {
  uint32_t largest = 0;
  for (const float value : x) largest = std::max(largest, std::bit_cast<uint32_t>(value) & 0x7fffffff);
  return largest < 0x7f800000;
}

// Of a weight in [0, 1]: 32 buckets from each power of two to the next.
size_t Bucket(float weight) { return std::bit_cast<uint32_t>(weight) >> 18; }

}  // namespace

double Sampler::Mass() const {
  // Four sums side by side: one alone would wait for itself.
  double sums[4] = {};
  size_t i = 0;
  for (; i + 4 <= kept_.size(); i += 4) {
    for (size_t lane = 0; lane < 4; ++lane) sums[lane] += weights_[kept_[i + lane]];
  }
  for (; i < kept_.size(); ++i) sums[0] += weights_[kept_[i]];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <typename Amount>
void Sampler::KeepLikeliest(std::span<const float> logits, double target, const Amount& amount) {
  buckets_.assign(Bucket(1.0f) + 1, 0.0);
  for (const int32_t token : kept_) buckets_[Bucket(weights_[token])] += amount(weights_[token]);
  size_t bucket = buckets_.size() - 1;
  double reached = 0;
  while (bucket > 0 && reached + buckets_[bucket] < target) reached += buckets_[bucket--];

  boundary_.clear();
  for (const int32_t token : kept_) {
    if (Bucket(weights_[token]) == bucket) boundary_.push_back(token);
  }
  std::sort(boundary_.begin(), boundary_.end(),
            [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  size_t taken = 0;
  while (taken < boundary_.size() && reached < target) reached += amount(weights_[boundary_[taken++]]);
  boundary_.resize(taken);
  std::sort(boundary_.begin(), boundary_.end());
  auto next = boundary_.begin();
  std::erase_if(kept_, [&](int32_t token) {
    const size_t own = Bucket(weights_[token]);
    if (own != bucket) return own < bucket;
    if (next == boundary_.end() || *next != token) return true;
    ++next;
    return false;
  });
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
    kernels_->Exp(weights_.data(), static_cast<int>(weights_.size()));

    kept_.resize(logits.size());
    std::iota(kept_.begin(), kept_.end(), 0);
    if (params.top_k > 0 && size_t(params.top_k) < kept_.size()) {
      KeepLikeliest(logits, params.top_k, [](float) { return 1.0; });
    }
    if (params.top_p < 1)
      KeepLikeliest(logits, params.top_p * Mass(), [](float weight) { return double{weight}; });
    if (params.min_p > 0) std::erase_if(kept_, [&](int32_t token) { return weights_[token] < params.min_p; });

    const double mass = Mass();
    double left =
        mass * RandomUnit(params.seed, static_cast<uint64_t>(candidate), static_cast<uint64_t>(position));
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
  if (params.logprobs)
    draw.logprobs.model = static_cast<float>(logits[draw.token] - kernels_->LogSumExp(logits));
  return draw;
}

}  // namespace almost::engine
