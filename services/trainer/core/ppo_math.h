#pragma once

#include <span>
#include <vector>

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

struct Advantages {
  std::vector<double> advantages;
  std::vector<double> returns;  // advantages + values: what the value function learns
};

// Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16) over one rollout; the
// value past its end is zero.
Advantages EstimateAdvantages(std::span<const double> rewards, std::span<const double> values, double gamma,
                              double lambda);

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
