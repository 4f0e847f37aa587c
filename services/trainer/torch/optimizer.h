#pragma once

#include <torch/torch.h>

#include <map>
#include <string>
#include <vector>

#include "services/trainer/core/job_spec.h"

namespace almost::trainer {

// Those of `parameters`, by name, that training changes: not the spec's frozen ones, which stop asking for
// gradients.
std::map<std::string, torch::Tensor> TrainedParameters(
    const OptimizerSpec& spec, const std::map<std::string, torch::Tensor>& parameters);

// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) and, where asked for, Muon (Jordan et al. 2024,
// kellerjordan.github.io/posts/muon) on the matrices inside the layers. Norms and biases are not decayed.
// Not thread-safe.
class Optimizer {
 public:
  // `parameters` by name; their data change in Step.
  Optimizer(const OptimizerSpec& spec, std::map<std::string, torch::Tensor> parameters);

  // One step along the gradients, one a parameter in the order of their names (they are clobbered), at the
  // learning rates times `factor`. Returns their global norm before clipping.
  double Step(std::vector<torch::Tensor> gradients, double factor);

  // First and second moments and the step count: what a checkpoint holds. The tensors are the live ones.
  std::map<std::string, torch::Tensor> State() const;

 private:
  struct Slot {
    std::string name;
    torch::Tensor parameter;
    bool muon;
    torch::Tensor momentum;  // first moment
    torch::Tensor variance;  // second moment; not of Muon's
    torch::Tensor step;      // float32 scalar, as the fused kernel counts; not of Muon's
  };

  void StepAdamW(const std::vector<size_t>& slots, const std::vector<torch::Tensor>& gradients,
                 double learning_rate, double weight_decay);
  void StepMuon(Slot& slot, const torch::Tensor& gradient, double factor);

  OptimizerSpec spec_;
  std::vector<Slot> slots_;
};

// Five Newton-Schulz iterations towards the nearest semi-orthogonal matrix: singular values end near 1.
torch::Tensor Orthogonalize(const torch::Tensor& matrix);

}  // namespace almost::trainer
