#pragma once

#include <torch/torch.h>

#include <map>
#include <string>
#include <vector>

#include "services/trainer/core/job_spec.h"
#include "services/trainer/torch/group.h"

namespace almost::trainer {

// Those of `parameters`, by name, that training changes: they require gradients and are not the spec's frozen
// ones, which stop to.
std::map<std::string, torch::Tensor> TrainedParameters(
    const OptimizerSpec& spec, const std::map<std::string, torch::Tensor>& parameters);

// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) and, where asked for, Muon (Jordan et al. 2024,
// kellerjordan.github.io/posts/muon) on the matrices inside the layers. Norms and biases are not decayed.
// Each rank of the group keeps the moments of the parameters it owns alone and steps those (Rajbhandari et
// al. 2020, ZeRO stage 1, arXiv 1910.02054; by whole parameters here, so that the arithmetic is one
// process's). Of 16-bit parameters it steps a float32 copy, and they are that copy rounded. Not thread-safe.
class Optimizer {
 public:
  // `parameters` by name; their data change in Step. The group outlives this.
  Optimizer(const OptimizerSpec& spec, std::map<std::string, torch::Tensor> parameters, Group& group);

  // The rank of each parameter, in the order of their names.
  const std::vector<int>& owners() const { return owners_; }

  // One step along the gradients, one a parameter in the order of their names (of this rank's; they are
  // clobbered), at the learning rates times `factor`. Returns the global norm of all before clipping.
  double Step(std::vector<torch::Tensor> gradients, double factor);

  // First and second moments, the step count and the copies: what a checkpoint holds. The tensors are the
  // live ones; what another rank keeps is on the meta device.
  std::map<std::string, torch::Tensor> State() const;

 private:
  struct Slot {
    std::string name;
    torch::Tensor parameter;
    torch::Tensor master;  // what is stepped: the parameter itself, or its float32 copy
    bool muon;
    torch::Tensor momentum;  // first moment
    torch::Tensor variance;  // second moment; not of Muon's
    torch::Tensor step;      // float32 scalar, as the fused kernel counts; not of Muon's
  };

  void StepAdamW(const std::vector<size_t>& slots, const std::vector<torch::Tensor>& gradients,
                 double learning_rate, double weight_decay);
  void StepMuon(Slot& slot, const torch::Tensor& gradient, double factor);

  OptimizerSpec spec_;
  Group& group_;
  std::vector<Slot> slots_;
  std::vector<int> owners_;  // of the slots
};

// Five Newton-Schulz iterations towards the nearest semi-orthogonal matrix: singular values end near 1.
torch::Tensor Orthogonalize(const torch::Tensor& matrix);

}  // namespace almost::trainer
