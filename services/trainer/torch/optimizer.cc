#include "services/trainer/torch/optimizer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "services/trainer/torch/gradients.h"

namespace almost::trainer {
namespace {

using torch::Tensor;

constexpr double kMuonMomentum = 0.95;

}  // namespace

std::map<std::string, Tensor> TrainedParameters(const OptimizerSpec& spec,
                                                const std::map<std::string, Tensor>& parameters) {
  std::map<std::string, Tensor> trained;
  for (const auto& [name, parameter] : parameters) {
    const bool frozen = std::any_of(spec.frozen.begin(), spec.frozen.end(), [&](const std::string& prefix) {
      return absl::StartsWith(name, prefix);
    });
    if (frozen) {
      parameter.set_requires_grad(false);
    } else if (parameter.requires_grad()) {
      trained[name] = parameter;
    }
  }
  return trained;
}

Optimizer::Optimizer(const OptimizerSpec& spec, std::map<std::string, Tensor> parameters, Group& group)
    : spec_(spec), group_(group) {
  std::vector<Tensor> tensors;
  for (const auto& [name, leaf] : parameters) tensors.push_back(leaf);
  owners_ = ShareOut(tensors, group_.size());
  for (auto& [name, leaf] : parameters) {
    Slot slot{.name = name, .parameter = leaf.detach()};
    const bool here = owners_[slots_.size()] == group_.rank();
    const torch::Device device = here ? leaf.device() : torch::Device(torch::kMeta);
    slot.muon = spec.muon_learning_rate > 0 && leaf.dim() == 2 && absl::StrContains(name, ".layers.");
    slot.master = slot.parameter;
    if (leaf.element_size() < 4) {
      slot.master = here ? slot.parameter.to(torch::kFloat32)
                         : torch::empty(leaf.sizes(), torch::dtype(torch::kFloat32).device(device));
    }
    const auto options = slot.master.options().device(device);
    slot.momentum = torch::zeros_like(slot.master, options);
    if (!slot.muon) {
      slot.variance = torch::zeros_like(slot.master, options);
      slot.step = torch::zeros({}, torch::dtype(torch::kFloat32).device(device));
    }
    slots_.push_back(std::move(slot));
  }
}

double Optimizer::Step(std::vector<Tensor> gradients, double factor) {
  const torch::NoGradGuard no_grad;
  std::vector<size_t> own, decayed, others;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (owners_[i] == group_.rank()) own.push_back(i);
  }
  std::vector<double> norms(slots_.size());
  std::vector<Tensor> of_own;  // brought here at once: on a GPU each transfer waits for what was begun
  for (const size_t i : own) of_own.push_back(gradients[i].norm());
  if (!own.empty()) {
    const Tensor here = torch::stack(of_own).to(torch::kCPU, torch::kFloat64);
    for (size_t i = 0; i < own.size(); ++i) norms[own[i]] = here.data_ptr<double>()[i];
  }
  group_.Merge(norms);
  double squares = 0;
  for (const double norm : norms) squares += std::pow(norm, 2);
  const double norm = std::sqrt(squares);
  const double shrink = spec_.max_grad_norm / (norm + 1e-6);  // as torch.nn.utils.clip_grad_norm_
  for (const size_t i : own) {
    if (spec_.max_grad_norm > 0 && shrink < 1) gradients[i].mul_(shrink);
    if (slots_[i].muon) {
      StepMuon(slots_[i], gradients[i], factor);
    } else {
      (slots_[i].master.dim() > 1 ? decayed : others).push_back(i);
    }
  }
  StepAdamW(decayed, gradients, spec_.learning_rate * factor, spec_.weight_decay);
  StepAdamW(others, gradients, spec_.learning_rate * factor, 0.0);
  for (const size_t i : own) {
    if (!slots_[i].master.is_same(slots_[i].parameter)) slots_[i].parameter.copy_(slots_[i].master);
  }
  for (int rank = 0; rank < group_.size(); ++rank) {
    std::vector<Tensor> theirs;
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (owners_[i] == rank) theirs.push_back(slots_[i].parameter);
    }
    group_.Broadcast(theirs, rank);
  }
  return norm;
}

void Optimizer::StepAdamW(const std::vector<size_t>& slots, const std::vector<Tensor>& gradients,
                          double learning_rate, double weight_decay) {
  if (slots.empty()) return;
  std::vector<Tensor> parameters, grads, momenta, variances, steps;
  for (const size_t i : slots) {
    parameters.push_back(slots_[i].master);
    grads.push_back(gradients[i].contiguous());
    momenta.push_back(slots_[i].momentum);
    variances.push_back(slots_[i].variance);
    steps.push_back(slots_[i].step.add_(1));
  }
  at::_fused_adamw_(parameters, grads, momenta, variances, {}, steps, learning_rate, spec_.beta1, spec_.beta2,
                    weight_decay, spec_.epsilon, /*amsgrad=*/false, /*maximize=*/false);
}

void Optimizer::StepMuon(Slot& slot, const Tensor& gradient, double factor) {
  // Nesterov momentum as an exponential mean.
  slot.momentum.lerp_(gradient, 1.0 - kMuonMomentum);
  const Tensor direction = Orthogonalize(gradient.lerp(slot.momentum, kMuonMomentum));
  const double learning_rate = spec_.muon_learning_rate * factor;
  const double rows = static_cast<double>(gradient.size(0)), columns = static_cast<double>(gradient.size(1));
  slot.master.mul_(1.0 - learning_rate * spec_.muon_weight_decay)
      .add_(direction, -learning_rate * std::sqrt(std::max(1.0, rows / columns)));
}

std::map<std::string, Tensor> Optimizer::State() const {
  std::map<std::string, Tensor> state;
  for (const Slot& slot : slots_) {
    state[absl::StrCat("momentum.", slot.name)] = slot.momentum;
    if (!slot.master.is_same(slot.parameter)) state[absl::StrCat("master.", slot.name)] = slot.master;
    if (slot.muon) continue;
    state[absl::StrCat("variance.", slot.name)] = slot.variance;
    state[absl::StrCat("step.", slot.name)] = slot.step;
  }
  return state;
}

Tensor Orthogonalize(const Tensor& matrix) {
  const bool tall = matrix.size(0) > matrix.size(1);
  Tensor x = tall ? matrix.t() : matrix;
  x = x / (x.norm() + 1e-7);
  for (int i = 0; i < 5; ++i) {
    const Tensor a = torch::mm(x, x.t());
    x = 3.4445 * x + torch::mm(-4.7750 * a + 2.0315 * torch::mm(a, a), x);
  }
  return tall ? x.t() : x;
}

}  // namespace almost::trainer
