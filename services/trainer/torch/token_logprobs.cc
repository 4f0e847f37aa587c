#include "services/trainer/torch/token_logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "common/kernels/kernels.h"
#include "common/model/differentiable_kernels.h"

namespace almost::trainer {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kLogitsAtOnce = int64_t{1} << 22;  // 16 MiB in float32
// Logits that the kernels keep for the backward pass: 64 MiB. The others are computed again.
constexpr int64_t kKeptLogits = int64_t{1} << 24;

int64_t RowsAtOnce(const Tensor& head_VD) { return std::max<int64_t>(1, kLogitsAtOnce / head_VD.size(0)); }

torch::ScalarType Wide(const Tensor& tensor) {
  return torch::promoteTypes(tensor.scalar_type(), torch::kFloat32);
}

// log softmax of `rows` tokens from `begin` on, [rows, V].
Tensor LogSoftmax(const Tensor& hidden_MD, const Tensor& head_VD, int64_t begin, int64_t rows,
                  double temperature) {
  Tensor logits = Product(hidden_MD.narrow(0, begin, rows), head_VD.t());
  logits = logits.to(Wide(logits));
  if (temperature != 1.0) logits.div_(temperature);
  return torch::log_softmax(logits, 1);
}

class Function : public torch::autograd::Function<Function> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& hidden_MD, const Tensor& head_VD,
                        const Tensor& targets_M, double temperature) {
    const int64_t m = hidden_MD.size(0), at_once = RowsAtOnce(head_VD);
    std::vector<Tensor> parts;
    Tensor kept;  // the distributions, where they fit at once
    for (int64_t begin = 0; begin < m; begin += at_once) {
      const int64_t rows = std::min(at_once, m - begin);
      const Tensor logprobs = LogSoftmax(hidden_MD, head_VD, begin, rows, temperature);
      parts.push_back(logprobs.gather(1, targets_M.narrow(0, begin, rows).unsqueeze(1)).squeeze(1));
      if (rows == m) kept = logprobs;
    }
    context->save_for_backward({hidden_MD, head_VD, targets_M, kept});
    context->saved_data["temperature"] = temperature;
    return parts.empty() ? torch::zeros({0}, hidden_MD.options().dtype(Wide(hidden_MD))) : torch::cat(parts);
  }

  // d log p_target / d logits = onehot(target) - p.
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &hidden_MD = saved[0], &head_VD = saved[1], &targets_M = saved[2], &kept = saved[3];
    const double temperature = context->saved_data["temperature"].toDouble();
    const int64_t m = hidden_MD.size(0), at_once = RowsAtOnce(head_VD);
    Tensor hidden_grad_MD = torch::empty_like(hidden_MD);
    Tensor head_grad_VD;  // wide where it is a sum over parts; none where the head is not trained
    if (context->needs_input_grad(1)) {
      head_grad_VD = torch::zeros(head_VD.sizes(), head_VD.options().dtype(Wide(head_VD)));
    }
    for (int64_t begin = 0; begin < m; begin += at_once) {
      const int64_t rows = std::min(at_once, m - begin);
      Tensor logits_grad =
          kept.defined() ? kept.exp() : LogSoftmax(hidden_MD, head_VD, begin, rows, temperature).exp_();
      const Tensor grad_R1 = (grads[0].narrow(0, begin, rows) / temperature).unsqueeze(1);
      logits_grad.mul_(-grad_R1);
      logits_grad.scatter_add_(1, targets_M.narrow(0, begin, rows).unsqueeze(1), grad_R1);
      logits_grad = logits_grad.to(head_VD.scalar_type());
      hidden_grad_MD.narrow(0, begin, rows).copy_(Product(logits_grad, head_VD));
      if (!head_grad_VD.defined()) continue;
      if (head_grad_VD.scalar_type() == head_VD.scalar_type()) {
        head_grad_VD.addmm_(logits_grad.t(), hidden_MD.narrow(0, begin, rows));
      } else {
        head_grad_VD.add_(Product(logits_grad.t(), hidden_MD.narrow(0, begin, rows)));
      }
    }
    if (head_grad_VD.defined()) head_grad_VD = head_grad_VD.to(head_VD.scalar_type());
    return {hidden_grad_MD, head_grad_VD, Tensor(), Tensor()};
  }
};

// The same on the kernels: over parts of the vocabulary, so that the head is gone through once, and row by
// row, so that a row's bits are its own.
class KernelFunction : public torch::autograd::Function<KernelFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& hidden_in, const Tensor& head_VD,
                        const Tensor& targets_M, double temperature) {
    const Kernels& kernels = *Kernels::Best();
    const Tensor hidden_MD = hidden_in.contiguous();
    const int64_t m = hidden_MD.size(0);
    const int64_t* targets = targets_M.data_ptr<int64_t>();
    Tensor log_sums_M = torch::full({m}, -std::numeric_limits<double>::infinity(), torch::kFloat64);
    Tensor logprobs_M = torch::empty({m}, hidden_MD.options());
    double* log_sums = log_sums_M.data_ptr<double>();
    float* found = logprobs_M.data_ptr<float>();
    variable_list saved = {hidden_MD, head_VD, targets_M, log_sums_M};
    const bool differentiated = hidden_in.requires_grad() || head_VD.requires_grad();
    int64_t kept = 0;
    for (int64_t begin = 0; begin < head_VD.size(0); begin += kPart) {
      const Tensor logits = Logits(hidden_MD, head_VD, begin, temperature);
      const int64_t count = logits.size(1);
      for (int64_t row = 0; row < m; ++row) {
        const float* of_row = logits.data_ptr<float>() + row * count;
        if (targets[row] >= begin && targets[row] < begin + count) found[row] = of_row[targets[row] - begin];
        const double part = kernels.LogSumExp({of_row, static_cast<size_t>(count)});
        const double larger = std::max(part, log_sums[row]), smaller = std::min(part, log_sums[row]);
        log_sums[row] = larger + std::log1p(std::exp(smaller - larger));
      }
      kept += logits.numel();
      if (differentiated && kept <= kKeptLogits) saved.push_back(logits);
    }
    for (int64_t row = 0; row < m; ++row) found[row] = static_cast<float>(found[row] - log_sums[row]);
    context->save_for_backward(std::move(saved));
    context->saved_data["temperature"] = temperature;
    return logprobs_M;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const Kernels& kernels = *Kernels::Best();
    const variable_list saved = context->get_saved_variables();
    const Tensor &hidden_MD = saved[0], &head_VD = saved[1];
    const int64_t m = hidden_MD.size(0);
    const int64_t* targets = saved[2].data_ptr<int64_t>();
    const double* log_sums = saved[3].data_ptr<double>();
    const double temperature = context->saved_data["temperature"].toDouble();
    const Tensor grad_M = (grads[0] / temperature).contiguous();
    Tensor hidden_grad_MD = torch::zeros_like(hidden_MD), part_MD = torch::empty_like(hidden_MD);
    Tensor head_grad_VD;
    if (context->needs_input_grad(1)) head_grad_VD = torch::empty_like(head_VD);
    size_t next = 4;  // of what was saved
    for (int64_t begin = 0; begin < head_VD.size(0); begin += kPart, ++next) {
      const Tensor logits =
          next < saved.size() ? saved[next] : Logits(hidden_MD, head_VD, begin, temperature);
      const int64_t count = logits.size(1);
      Tensor of_logits = torch::empty_like(logits);
      for (int64_t row = 0; row < m; ++row) {
        const float* of_row = logits.data_ptr<float>() + row * count;
        float* grad_row = of_logits.data_ptr<float>() + row * count;
        const auto log_sum = static_cast<float>(log_sums[row]);
        const float grad = grad_M.data_ptr<float>()[row];
        for (int64_t i = 0; i < count; ++i) grad_row[i] = of_row[i] - log_sum;
        kernels.Exp(grad_row, static_cast<int>(count));
        for (int64_t i = 0; i < count; ++i) grad_row[i] *= -grad;
        if (targets[row] >= begin && targets[row] < begin + count) grad_row[targets[row] - begin] += grad;
      }
      // A sum of sums: one chain over a large vocabulary would add up its roundings.
      MatMulInto(part_MD, of_logits, head_VD.narrow(0, begin, count), /*accumulate=*/false);
      hidden_grad_MD.add_(part_MD);
      if (!head_grad_VD.defined()) continue;
      MatMulInto(head_grad_VD.narrow(0, begin, count), of_logits.t().contiguous(), hidden_MD, false);
    }
    return {hidden_grad_MD, head_grad_VD, Tensor(), Tensor()};
  }

 private:
  // Of the vocabulary. Where parts end does not depend on M, or a row's bits would.
  static constexpr int64_t kPart = 2304;

  // Of the part that begins there, [M, its size].
  static Tensor Logits(const Tensor& hidden_MD, const Tensor& head_VD, int64_t begin, double temperature) {
    const Tensor head = head_VD.narrow(0, begin, std::min(kPart, head_VD.size(0) - begin)).contiguous();
    Tensor logits = torch::empty({hidden_MD.size(0), head.size(0)}, hidden_MD.options());
    MatMulInto(logits, hidden_MD, head.t(), /*accumulate=*/false);
    if (temperature != 1.0) logits.div_(temperature);
    return logits;
  }
};

}  // namespace

Tensor TokenLogprobs(const Tensor& hidden_MD, const Tensor& head_VD, const Tensor& targets_M,
                     double temperature) {
  return RunsOnKernels(hidden_MD) ? KernelFunction::apply(hidden_MD, head_VD, targets_M, temperature)
                                  : Function::apply(hidden_MD, head_VD, targets_M, temperature);
}

Tensor TokenEntropies(const Tensor& hidden_MD, const Tensor& head_VD, double temperature) {
  const torch::NoGradGuard no_grad;
  const int64_t m = hidden_MD.size(0);
  std::vector<Tensor> parts = {torch::zeros({0}, hidden_MD.options().dtype(Wide(hidden_MD)))};
  for (int64_t begin = 0; begin < m; begin += RowsAtOnce(head_VD)) {
    const int64_t rows = std::min(RowsAtOnce(head_VD), m - begin);
    const Tensor logprobs = LogSoftmax(hidden_MD, head_VD, begin, rows, temperature);
    parts.push_back(-(logprobs.exp() * logprobs).sum(1));
  }
  return torch::cat(parts);
}

}  // namespace almost::trainer
