#include "services/trainer/torch/labeled_samples.h"

#include "services/trainer/torch/token_logprobs.h"

namespace almost::trainer {

using torch::Tensor;

LabeledSamples LabeledSamples::Pack(std::span<const Sample* const> samples, torch::Device device) {
  std::vector<std::vector<int32_t>> ids;
  std::vector<int64_t> prompts, rows, targets, owners;
  for (const Sample* sample : samples) {
    ids.push_back(sample->ids);
    prompts.push_back(sample->num_prompt_tokens());
  }
  PackedSamples packed = PackedSamples::Pack(ids, device, prompts);
  for (size_t s = 0; s < samples.size(); ++s) {
    for (size_t t = 1; t < ids[s].size(); ++t) {
      if (!samples[s]->is_target[t]) continue;
      rows.push_back(packed.offsets[s] - packed.prefix_tokens[s] + static_cast<int64_t>(t) - 1);
      targets.push_back(ids[s][t]);
      owners.push_back(static_cast<int64_t>(s));
    }
  }
  const auto there = [&](const std::vector<int64_t>& values) {
    return torch::tensor(values, torch::kInt64).to(device);
  };
  return {.packed = std::move(packed),
          .rows_M = there(rows),
          .targets_M = there(targets),
          .sample_M = there(owners)};
}

Tensor LabeledSamples::Logprobs(const Transformer& model, double temperature) const {
  return TokenLogprobs(model.Hidden(packed, rows_M), model.HeadWeight(), targets_M, temperature);
}

Tensor LabeledSamples::SumBySample(const Tensor& values_M) const {
  return torch::zeros({packed.num_samples()}, values_M.options()).index_add(0, sample_M, values_M);
}

}  // namespace almost::trainer
