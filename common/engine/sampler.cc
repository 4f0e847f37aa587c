#include "common/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/base/random.h"

namespace almost::engine {

double Sampler::Mass() const {
  if (all_kept_) return kernels_->Sum(weights_);
  // Four sums side by side: one alone would wait for itself.
  double sums[4] = {};
  size_t i = 0;
  for (; i + 4 <= kept_.size(); i += 4) {
    for (size_t lane = 0; lane < 4; ++lane) sums[lane] += weights_[kept_[i + lane]];
  }
  for (; i < kept_.size(); ++i) sums[0] += weights_[kept_[i]];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

void Sampler::KeepAtLeast(float bound) {
  found_.resize(std::max(found_.size(), weights_.size()));
  kept_.assign(found_.begin(), found_.begin() + kernels_->AtLeast(weights_, bound, found_.data()));
}

template <typename Amount>
void Sampler::KeepLikeliest(std::span<const float> logits, double target, const Amount& amount) {
  size_t bucket = 0;
  double reached = 0;
  for (float bound = all_kept_ ? 0x1p-6f : 0;; bound = bound > 0x1p-30f ? bound * 0x1p-6f : 0) {
    if (all_kept_) KeepAtLeast(bound);
    for (const int32_t token : kept_) buckets_[Bucket(weights_[token])] += amount(weights_[token]);
    bucket = buckets_.size() - 1;
    reached = 0;
    const size_t last = Bucket(bound);
    while (bucket > last && reached + buckets_[bucket] < target) reached += buckets_[bucket--];
    const bool enough = bound == 0 || reached + buckets_[bucket] >= target;
    // Thousands of buckets, of which a small vocabulary fills a few.
    for (const int32_t token : kept_) buckets_[Bucket(weights_[token])] = 0;
    if (enough) break;
  }
  all_kept_ = false;

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
  const float largest = kernels_->Largest(logits);
  if (std::isnan(largest)) return std::nullopt;
  Draw draw{0, {0, 0}};
  if (params.temperature == 0) {
    draw.token = static_cast<int32_t>(std::find(logits.begin(), logits.end(), largest) - logits.begin());
  } else {
    weights_.resize(logits.size());
    kernels_->Weights(logits, largest, static_cast<float>(1.0 / params.temperature), weights_.data());

    all_kept_ = true;
    if (params.top_k > 0 && size_t(params.top_k) < logits.size()) {
      KeepLikeliest(logits, params.top_k, [](float) { return 1.0; });
    }
    if (params.top_p < 1)
      KeepLikeliest(logits, params.top_p * Mass(), [](float weight) { return double{weight}; });
    if (params.min_p > 0) {
      // The largest has weight 1, so that one is left.
      const float least = std::nextafter(static_cast<float>(params.min_p), 0.0f);
      if (std::exchange(all_kept_, false)) KeepAtLeast(least);
      std::erase_if(kept_, [&](int32_t token) { return weights_[token] < params.min_p; });
    }

    const double mass = Mass();
    double left =
        mass * RandomUnit(params.seed, static_cast<uint64_t>(candidate), static_cast<uint64_t>(position));
    const int32_t count = static_cast<int32_t>(all_kept_ ? weights_.size() : kept_.size());
    for (int32_t i = 0; i < count; ++i) {
      draw.token = all_kept_ ? i : kept_[i];
      if (left < weights_[draw.token]) break;
      left -= weights_[draw.token];
    }
    if (params.logprobs) draw.logprobs.sampled = static_cast<float>(std::log(weights_[draw.token] / mass));
  }
  if (params.logprobs)
    draw.logprobs.model = static_cast<float>(logits[draw.token] - kernels_->LogSumExp(logits));
  return draw;
}

}  // namespace almost::engine
