#include "services/trainer/torch/losses.h"

#include <numbers>

namespace almost::trainer {

using torch::Tensor;

Tensor PairwiseRankingLosses(const Tensor& chosen_P, const Tensor& rejected_P, const Tensor& margin_P) {
  return -torch::log_sigmoid(chosen_P - rejected_P - margin_P);
}

Tensor CenteringLosses(const Tensor& chosen_P, const Tensor& rejected_P) {
  return (chosen_P + rejected_P).square();
}

Tensor DpoLosses(const Tensor& chosen_P, const Tensor& rejected_P, const Tensor& reference_chosen_P,
                 const Tensor& reference_rejected_P, double beta) {
  return -torch::log_sigmoid(beta * ((chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P)));
}

Tensor PolicyRatio(const Tensor& logprobs_M, const Tensor& old_logprobs_M) {
  // As a power of two, for exp is MKL's, and its bits depend on the processor.
  return torch::exp2((logprobs_M - old_logprobs_M).clamp(-20.0, 20.0) / std::numbers::ln2);
}

Tensor ClippedPolicyLosses(const Tensor& ratio_M, const Tensor& advantages_M, double clip_range) {
  return -torch::min(ratio_M * advantages_M,
                     ratio_M.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages_M);
}

Tensor ClippedValueLosses(const Tensor& values_M, const Tensor& old_values_M, const Tensor& returns_M,
                          double clip_range) {
  const Tensor clipped_M = old_values_M + (values_M - old_values_M).clamp(-clip_range, clip_range);
  return 0.5 * torch::max((values_M - returns_M).square(), (clipped_M - returns_M).square());
}

}  // namespace almost::trainer
