#include "services/trainer/torch/learner.h"

#include "absl/strings/str_cat.h"

namespace almost::trainer {

using torch::Tensor;

namespace {

std::vector<Transformer> Replicas(const Transformer& model, int count) {
  std::vector<Transformer> replicas;
  for (int i = 0; i < count; ++i) replicas.push_back(model.Replica());
  return replicas;
}

std::vector<std::vector<Tensor>> Leaves(const OptimizerSpec& optimizer,
                                        const std::vector<Transformer>& replicas) {
  std::vector<std::vector<Tensor>> leaves;
  for (const Transformer& replica : replicas) {
    std::vector<Tensor>& own = leaves.emplace_back();
    for (const auto& [name, leaf] : TrainedParameters(optimizer, replica.parameters())) own.push_back(leaf);
  }
  return leaves;
}

}  // namespace

Learner::Learner(Transformer model, const OptimizerSpec& optimizer, int num_threads, Group& group)
    : model_(std::move(model)),
      group_(group),
      replicas_(Replicas(model_, num_threads)),
      optimizer_(optimizer, TrainedParameters(optimizer, model_.parameters()), group),
      workers_(num_threads),
      gradients_(workers_, group, Leaves(optimizer, replicas_), optimizer_.owners()) {}

double Learner::Update(size_t count, double learning_rate_factor,
                       const std::function<Tensor(const Transformer&, size_t)>& loss) {
  std::vector<Tensor> gradients =
      gradients_.Sum(count, [&](int worker, size_t i) { return loss(replicas_[worker], i); });
  return optimizer_.Step(std::move(gradients), learning_rate_factor);
}

void Learner::ForEach(size_t count, const std::function<void(size_t)>& work) {
  workers_.Run([&](int worker) {
    const torch::NoGradGuard no_grad;
    for (size_t i = group_.rank() * workers_.size() + worker; i < count; i += num_workers()) work(i);
  });
}

std::map<std::string, Tensor> Learner::Tensors() const {
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, parameter] : model_.parameters()) {
    if (parameter.requires_grad()) tensors[absl::StrCat("model.", name)] = parameter.detach();
  }
  for (auto& [name, tensor] : optimizer_.State()) tensors[absl::StrCat("optimizer.", name)] = tensor;
  return tensors;
}

}  // namespace almost::trainer
