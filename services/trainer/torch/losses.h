#pragma once

#include <torch/torch.h>

// Losses by element, in nats; the caller sums them and divides by the count of the whole batch, so that
// micro-batches and threads change nothing. Shapes: P pairs, M tokens; any floating dtype.
namespace almost::trainer {

// -log sigmoid(chosen - rejected - margin), [P]. Ouyang et al. 2022 (arXiv 2203.02155), eq. 1, of which the
// mean over all pairs is taken; with margins Touvron et al. 2023 (arXiv 2307.09288), eq. 2.
torch::Tensor PairwiseRankingLosses(const torch::Tensor& chosen_P, const torch::Tensor& rejected_P,
                                    const torch::Tensor& margin_P);

// (chosen + rejected)², [P]: draws scores towards mean 0, of which a ranking says nothing. Eisenstein et al.
// 2023 (arXiv 2312.09244), section 3.
torch::Tensor CenteringLosses(const torch::Tensor& chosen_P, const torch::Tensor& rejected_P);

// -log sigmoid(beta · ((chosen - reference_chosen) - (rejected - reference_rejected))), of summed
// log-probabilities, [P]. Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.
torch::Tensor DpoLosses(const torch::Tensor& chosen_P, const torch::Tensor& rejected_P,
                        const torch::Tensor& reference_chosen_P, const torch::Tensor& reference_rejected_P,
                        double beta);

// exp(logprobs - old_logprobs), the difference clamped to ±20 first.
torch::Tensor PolicyRatio(const torch::Tensor& logprobs_M, const torch::Tensor& old_logprobs_M);

// -min(ratio · A, clip(ratio, 1 ± range) · A), [M]. Schulman et al. 2017 (arXiv 1707.06347), eq. 7.
torch::Tensor ClippedPolicyLosses(const torch::Tensor& ratio_M, const torch::Tensor& advantages_M,
                                  double clip_range);

// ½ · max((value - return)², (clipped value - return)²), the value clipped to ± range around the old one,
// [M]. As the PPO implementations have it; the paper's loss is the unclipped one.
torch::Tensor ClippedValueLosses(const torch::Tensor& values_M, const torch::Tensor& old_values_M,
                                 const torch::Tensor& returns_M, double clip_range);

}  // namespace almost::trainer
