#include "services/trainer/core/ppo_math.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

namespace almost::trainer {
namespace {

double Mean(std::span<const double> x) {
  return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

double Variance(std::span<const double> x) {
  const double mean = Mean(x);
  double squares = 0;
  for (const double value : x) squares += (value - mean) * (value - mean);
  return squares / static_cast<double>(x.size());
}

}  // namespace

double KlK1(double logprob, double reference) { return logprob - reference; }

double KlK2(double logprob, double reference) { return 0.5 * (logprob - reference) * (logprob - reference); }

double KlK3(double logprob, double reference) {
  return std::expm1(reference - logprob) + (logprob - reference);
}

std::vector<double> TokenRewards(std::span<const double> logprobs, std::span<const double> reference,
                                 double kl_coefficient, double score) {
  std::vector<double> rewards(logprobs.size());
  for (size_t t = 0; t < rewards.size(); ++t) rewards[t] = -kl_coefficient * KlK1(logprobs[t], reference[t]);
  if (!rewards.empty()) rewards.back() += score;
  return rewards;
}

double RolloutReward(const PpoSpec& spec, double score, double mean, double deviation, bool stopped,
                     size_t num_tokens) {
  double reward = deviation > 0 ? (score - mean) / deviation : score;
  if (spec.reward_clip > 0) reward = std::clamp(reward, -spec.reward_clip, spec.reward_clip);
  if (!stopped && spec.missing_stop_reward) reward = *spec.missing_stop_reward;
  return reward - spec.length_penalty * static_cast<double>(num_tokens);
}

Advantages EstimateAdvantages(std::span<const double> rewards, std::span<const double> values, double gamma,
                              double lambda) {
  Advantages out{std::vector<double>(rewards.size()), std::vector<double>(rewards.size())};
  double advantage = 0, next_value = 0;
  for (size_t t = rewards.size(); t-- > 0;) {
    const double delta = rewards[t] + gamma * next_value - values[t];
    advantage = delta + gamma * lambda * advantage;
    out.advantages[t] = advantage;
    out.returns[t] = advantage + values[t];
    next_value = values[t];
  }
  return out;
}

std::vector<double> GroupAdvantages(std::span<const double> rewards, std::span<const double> kls,
                                    double kl_coefficient, bool scale) {
  const double mean = Mean(rewards), mean_kl = Mean(kls);
  const double factor = scale ? 1.0 / (std::sqrt(Variance(rewards)) + 1e-8) : 1.0;
  std::vector<double> advantages(rewards.size());
  for (size_t i = 0; i < advantages.size(); ++i) {
    advantages[i] = factor * (rewards[i] - mean) - kl_coefficient * (kls[i] - mean_kl);
  }
  return advantages;
}

void Whiten(std::span<std::vector<double>> rollouts) {
  std::vector<double> all;
  for (const std::vector<double>& rollout : rollouts) all.insert(all.end(), rollout.begin(), rollout.end());
  if (all.empty()) return;
  const double mean = Mean(all), scale = 1.0 / (std::sqrt(Variance(all)) + 1e-8);
  for (std::vector<double>& rollout : rollouts) {
    for (double& value : rollout) value = (value - mean) * scale;
  }
}

double AdaptKlCoefficient(double coefficient, double kl, double target) {
  return coefficient * (1.0 + 0.1 * std::clamp(kl / target - 1.0, -0.2, 0.2));
}

double ExplainedVariance(std::span<const double> values, std::span<const double> returns) {
  if (returns.empty()) return 0.0;
  std::vector<double> residuals(returns.begin(), returns.end());
  for (size_t i = 0; i < residuals.size(); ++i) residuals[i] -= values[i];
  const double variance = Variance(returns);
  return variance > 0 ? 1.0 - Variance(residuals) / variance : 0.0;
}

double Correlation(std::span<const double> x, std::span<const double> y) {
  if (x.empty()) return 0.0;
  const double mean_x = Mean(x), mean_y = Mean(y), variances = Variance(x) * Variance(y);
  double covariance = 0;
  for (size_t i = 0; i < x.size(); ++i) covariance += (x[i] - mean_x) * (y[i] - mean_y);
  return variances > 0 ? covariance / static_cast<double>(x.size()) / std::sqrt(variances) : 0.0;
}

}  // namespace almost::trainer
