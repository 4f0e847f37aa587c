#include "services/trainer/torch/ppo_loss.h"

#include "services/trainer/torch/losses.h"
#include "services/trainer/torch/token_logprobs.h"

namespace almost::trainer {

using torch::Tensor;

PpoLosses ComputePpoLosses(const Transformer& policy, const ValueFunction* values,
                           const LabeledSamples& samples, const PpoTargets& targets, double clip_range,
                           double value_clip_range, double temperature) {
  const Tensor hidden_MD = policy.Hidden(samples.packed, samples.rows_M);
  const Tensor logprobs_M = TokenLogprobs(hidden_MD, policy.HeadWeight(), samples.targets_M, temperature);
  const Tensor ratio_M = PolicyRatio(logprobs_M, targets.logprobs_M);
  return {.policy_M = ClippedPolicyLosses(ratio_M, targets.advantages_M, clip_range),
          .value_M = values == nullptr
                         ? Tensor()
                         : ClippedValueLosses((*values)(hidden_MD, samples.packed, samples.rows_M),
                                              targets.values_M, targets.returns_M, value_clip_range),
          .clipped_M = (ratio_M.detach() - 1).abs() > clip_range};
}

}  // namespace almost::trainer
