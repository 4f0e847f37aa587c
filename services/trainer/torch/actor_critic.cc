#include "services/trainer/torch/actor_critic.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/model/differentiable_kernels.h"

namespace almost::trainer {
namespace {

using torch::Tensor;

OptimizerSpec ValueOptimizer(const OptimizerSpec& policy, double learning_rate) {
  return {.learning_rate = learning_rate,
          .beta1 = policy.beta1,
          .beta2 = policy.beta2,
          .epsilon = policy.epsilon};
}

}  // namespace

ValueHead ValueHead::Initialize(int64_t hidden_size, uint64_t seed, torch::Device device) {
  RandomStream random(DeriveSeed(seed, "value head"));
  Tensor weight = torch::empty({hidden_size, hidden_size}, torch::kFloat64);
  const double bound = 1.0 / std::sqrt(static_cast<double>(hidden_size));
  for (double *value = weight.data_ptr<double>(), *end = value + weight.numel(); value != end; ++value) {
    *value = bound * (2 * random.Unit() - 1);
  }
  const auto zeros = [&](at::IntArrayRef shape) { return torch::zeros(shape, device).requires_grad_(); };
  return {.hidden_weight_DD = weight.to(device, torch::kFloat32).requires_grad_(),
          .hidden_bias_D = zeros({hidden_size}),
          .output_weight_1D = zeros({1, hidden_size}),
          .output_bias_1 = zeros({1})};
}

Tensor ValueHead::operator()(const Tensor& hidden_MD) const {
  const Tensor states_MD = hidden_MD.detach().to(hidden_weight_DD.scalar_type());
  // tanh, as LibTorch has it without MKL, whose bits depend on the processor.
  const Tensor layer_MD = 2 * torch::sigmoid(2 * Linear(states_MD, hidden_weight_DD, hidden_bias_D)) - 1;
  return Linear(layer_MD, output_weight_1D, output_bias_1).squeeze(1);
}

ValueFunction ValueFunction::Replica() const {
  ValueFunction replica = *this;
  if (const auto* head = std::get_if<ValueHead>(&function_)) {
    const auto leaf = [](const Tensor& parameter) { return parameter.detach().requires_grad_(); };
    replica.function_ = ValueHead{leaf(head->hidden_weight_DD), leaf(head->hidden_bias_D),
                                  leaf(head->output_weight_1D), leaf(head->output_bias_1)};
  } else {
    replica.function_ = std::get<Transformer>(function_).Replica();
  }
  return replica;
}

std::map<std::string, Tensor> ValueFunction::Parameters() const {
  if (const auto* head = std::get_if<ValueHead>(&function_)) {
    return {{"hidden.weight", head->hidden_weight_DD},
            {"hidden.bias", head->hidden_bias_D},
            {"output.weight", head->output_weight_1D},
            {"output.bias", head->output_bias_1}};
  }
  return TrainedParameters({}, std::get<Transformer>(function_).parameters());
}

void ValueFunction::Normalize(double mean, double deviation) {
  mean_ = mean;
  deviation_ = deviation;
}

Tensor ValueFunction::operator()(const Tensor& policy_hidden_MD, const PackedSamples& samples,
                                 const Tensor& rows_M) const {
  if (const auto* head = std::get_if<ValueHead>(&function_)) return (*head)(policy_hidden_MD);
  const Transformer& model = std::get<Transformer>(function_);
  const Tensor outputs_M =
      Linear(model.Hidden(samples, rows_M), model.HeadWeight()).squeeze(1).to(torch::kFloat32);
  return (outputs_M - mean_) / deviation_;
}

ActorCritic::ActorCritic(Transformer policy, std::optional<ValueFunction> values,
                         const OptimizerSpec& optimizer, double value_learning_rate, int num_threads,
                         Group& group)
    : policy_(std::move(policy)),
      values_(std::move(values)),
      group_(group),
      policy_optimizer_(optimizer, TrainedParameters(optimizer, policy_.parameters()), group),
      workers_(num_threads) {
  std::vector<int> owners = policy_optimizer_.owners();
  if (values_) {
    value_optimizer_.emplace(ValueOptimizer(optimizer, value_learning_rate), values_->Parameters(), group);
    owners.insert(owners.end(), value_optimizer_->owners().begin(), value_optimizer_->owners().end());
  }
  std::vector<std::vector<Tensor>> leaves(num_threads);
  for (std::vector<Tensor>& own : leaves) {
    policies_.push_back(policy_.Replica());
    for (const auto& [name, leaf] : TrainedParameters(optimizer, policies_.back().parameters())) {
      own.push_back(leaf);
    }
    if (!values_) continue;
    value_functions_.push_back(values_->Replica());
    for (const auto& [name, leaf] : value_functions_.back().Parameters()) own.push_back(leaf);
  }
  gradients_ = std::make_unique<Gradients>(workers_, group_, std::move(leaves), std::move(owners));
}

double ActorCritic::Update(
    size_t count, double factor,
    const std::function<Tensor(const Transformer&, const ValueFunction*, size_t)>& loss) {
  std::vector<Tensor> gradients = gradients_->Sum(count, [&](int worker, size_t i) {
    return loss(policies_[worker], values_ ? &value_functions_[worker] : nullptr, i);
  });
  const auto border = gradients.begin() + static_cast<std::ptrdiff_t>(policy_optimizer_.owners().size());
  if (value_optimizer_) value_optimizer_->Step({border, gradients.end()}, 1.0);
  gradients.erase(border, gradients.end());
  return factor > 0 ? policy_optimizer_.Step(std::move(gradients), factor) : 0.0;
}

void ActorCritic::NormalizeValues(double mean, double deviation) {
  if (values_) values_->Normalize(mean, deviation);
  for (ValueFunction& replica : value_functions_) replica.Normalize(mean, deviation);
}

void ActorCritic::ForEach(size_t count, const std::function<void(size_t)>& work) {
  workers_.Run([&](int worker) {
    const torch::NoGradGuard no_grad;
    for (size_t i = group_.rank() * workers_.size() + worker; i < count; i += num_workers()) work(i);
  });
}

std::map<std::string, Tensor> ActorCritic::Tensors() const {
  std::map<std::string, Tensor> tensors;
  const auto add = [&](absl::string_view owner, const std::map<std::string, Tensor>& more) {
    for (const auto& [name, tensor] : more) tensors[absl::StrCat(owner, ".", name)] = tensor.detach();
  };
  for (const auto& [name, parameter] : policy_.parameters()) {
    if (parameter.requires_grad()) add("model", {{name, parameter}});
  }
  add("optimizer", policy_optimizer_.State());
  if (values_) add("value_function", values_->Parameters());
  if (value_optimizer_) add("value_optimizer", value_optimizer_->State());
  return tensors;
}

}  // namespace almost::trainer
