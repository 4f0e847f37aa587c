#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "services/trainer/core/job_spec.h"

// The arithmetic of PPO outside the losses. A rollout's arrays hold one element for each generated token (its
// end-of-text included), and none for prompts, tool outputs or padding: so state is carried over what is left
// out, and nothing left out enters a mean. Log-probabilities in nats.
namespace almost::trainer {

// Estimators of KL(policy ‖ reference) from one token drawn from the policy (Schulman 2020,
// joschu.net/blog/kl-approx.html). K1 is unbiased and what a reward is reduced by; K3 is unbiased, never
// negative, and of lower variance: what is reported. Neither's gradient is the gradient of the KL.
double KlK1(double logprob, double reference);
double KlK2(double logprob, double reference);
double KlK3(double logprob, double reference);

// -kl_coefficient · k1 of each token, and the score on the last one (Ouyang et al. 2022, eq. 2, by token).
std::vector<double> TokenRewards(std::span<const double> logprobs, std::span<const double> reference,
                                 double kl_coefficient, double score);

// What a rollout is worth before its KL: the score by `mean` and `deviation` (0: as it is), within ± the
// spec's reward_clip; missing_stop_reward in its place where it did not stop by itself; less its length.
double RolloutReward(const PpoSpec& spec, double score, double mean, double deviation, bool stopped,
                     size_t num_tokens);

struct Advantages {
  std::vector<double> advantages;
  std::vector<double> returns;  // advantages + values: what the value function learns
};

// Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16) over one rollout; the
// value past its end is zero.
Advantages EstimateAdvantages(std::span<const double> rewards, std::span<const double> values, double gamma,
                              double lambda);

// One advantage for all tokens of each answer of a group, those to one prompt: its reward less the group's
// mean, divided by the group's (population) deviation where `scale` (Shao et al. 2024, arXiv 2402.03300,
// section 4.1.2; without, Liu et al. 2025, arXiv 2503.20783); less its KL, in nats, by the group's mean and
// times the coefficient. So the score function's gradient of both is the objective's own. Equal rewards and
// equal KL give zeros. Ours differs from the paper in the KL, a k3 loss there whose gradient is another's.
std::vector<double> GroupAdvantages(std::span<const double> rewards, std::span<const double> kls,
                                    double kl_coefficient, bool scale);

// To mean 0 and (population) deviation 1 over all tokens of an iteration; constant input becomes zeros.
void Whiten(std::span<std::vector<double>> rollouts);

// The coefficient after an iteration with that KL per rollout: proportional control towards the target with
// the error clipped to ±0.2 and a gain of 0.1 (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).
double AdaptKlCoefficient(double coefficient, double kl, double target);

// 1 - Var(returns - values) / Var(returns): 1 is a perfect value function, 0 one that says the mean. 0 where
// the returns do not vary.
double ExplainedVariance(std::span<const double> values, std::span<const double> returns);

// Pearson's r; 0 where either does not vary.
double Correlation(std::span<const double> x, std::span<const double> y);

}  // namespace almost::trainer
