#include "services/trainer/torch/learner.h"

#include "absl/strings/str_cat.h"

namespace almost::trainer {

using torch::Tensor;

Learner::Learner(Llama model, const OptimizerSpec& optimizer, int num_threads)
    : model_(std::move(model)),
      optimizer_(optimizer, TrainedParameters(optimizer, model_.parameters())),
      workers_(num_threads) {
  for (int worker = 0; worker < num_threads; ++worker) {
    replicas_.push_back(model_.Replica());
    std::vector<Tensor>& leaves = leaves_.emplace_back();
    for (const auto& [name, parameter] : TrainedParameters(optimizer, replicas_.back().parameters())) {
      leaves.push_back(parameter);
    }
  }
}

double Learner::Update(size_t count, double learning_rate_factor,
                       const std::function<Tensor(const Llama&, size_t)>& loss) {
  std::vector<Tensor> gradients = SumGradients(
      workers_, leaves_, count, [&](int worker, size_t i) { return loss(replicas_[worker], i); });
  return optimizer_.Step(std::move(gradients), learning_rate_factor);
}

void Learner::ForEach(size_t count, const std::function<void(size_t)>& work) {
  workers_.Run([&](int worker) {
    const torch::NoGradGuard no_grad;
    for (size_t i = worker; i < count; i += workers_.size()) work(i);
  });
}

std::map<std::string, Tensor> Learner::Tensors() const {
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, parameter] : model_.parameters()) {
    tensors[absl::StrCat("model.", name)] = parameter.detach();
  }
  for (auto& [name, tensor] : optimizer_.State()) tensors[absl::StrCat("optimizer.", name)] = tensor;
  return tensors;
}

}  // namespace almost::trainer
