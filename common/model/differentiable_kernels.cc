#include "common/model/differentiable_kernels.h"

#include <ATen/cpu/Utils.h>

#include <algorithm>
#include <cmath>

#include "common/kernels/kernels.h"

namespace almost {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Numbers of a weight that are packed at once: the second-level cache streams them, memory hardly grows.
constexpr int64_t kPackedAtOnce = int64_t{1} << 21;
// Rows of one call, so that a block of their inputs stays in the second-level cache.
constexpr int64_t kRowsAtOnce = 256;
// Of inputs and outputs that are cut: whole groups of panels, and of the kernels' own blocks of inputs.
constexpr int64_t kCut = 768;
// Queries, and keys, that attention takes at once.
constexpr int64_t kBlock = 64;

float* Data(const Tensor& tensor) { return tensor.data_ptr<float>(); }

const Kernels& BestKernels() { return *Kernels::Best(); }

struct Matrix {
  float* data;
  int64_t stride;  // from row to row
  Matrix From(int64_t row) const { return {data + row * stride, stride}; }
};

void Multiply(Matrix out, Matrix x, int64_t rows, const PackedMatrix& w, bool accumulate) {
  for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
    BestKernels().MatMul(x.From(row).data, x.stride, static_cast<int>(std::min(kRowsAtOnce, rows - row)), w,
                         0, w.num_panels(), accumulate, out.From(row).data, out.stride);
  }
}

Matrix RowsOf(const Tensor& tensor) { return {Data(tensor), tensor.size(0) > 1 ? tensor.stride(0) : 0}; }

Tensor ContiguousRows(const Tensor& tensor) {
  return tensor.stride(-1) == 1 || tensor.size(-1) == 1 ? tensor : tensor.contiguous();
}

// Gradient with respect to a weight of x · wᵀ.
Tensor WeightGradient(const Tensor& grad_MO, const Tensor& x_MI) {
  Tensor sum_OI = torch::empty({grad_MO.size(1), x_MI.size(1)}, x_MI.options());
  MatMulInto(sum_OI, grad_MO.t().contiguous(), x_MI, /*accumulate=*/false);
  return sum_OI;
}

// Gradients of silu(gate) · up, of which `of_product` is the gradient; it may be where of_gate goes. With s =
// sigmoid(gate): silu = gate · s, and its derivative is s · (1 + gate · (1 - s)).
void SiluMulGradient(const float* gate, const float* up, const float* of_product, int64_t count,
                     float* of_gate, float* of_up) {
  std::vector<float> sigmoid(count);
  float* s = sigmoid.data();
  for (int64_t i = 0; i < count; ++i) s[i] = -gate[i];
  BestKernels().Exp(s, static_cast<int>(count));
  for (int64_t i = 0; i < count; ++i) s[i] = 1.0f / (1.0f + s[i]);
  for (int64_t i = 0; i < count; ++i) {
    const float grad = of_product[i];
    of_up[i] = grad * (gate[i] * s[i]);
    of_gate[i] = grad * up[i] * s[i] * (1.0f + gate[i] * (1.0f - s[i]));
  }
}

class StackedLinearFunction : public torch::autograd::Function<StackedLinearFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, at::TensorList weights,
                        at::TensorList biases) {
    int64_t outputs = 0;
    for (const Tensor& weight : weights) outputs += weight.size(0);
    Tensor y = torch::empty({x.size(0), outputs}, x.options());
    int64_t at = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      Tensor part = y.narrow(1, at, weights[i].size(0));
      if (!biases.empty()) part.copy_(biases[i].expand_as(part));
      MatMulInto(part, x, weights[i].t(), /*accumulate=*/!biases.empty());
      at += weights[i].size(0);
    }
    variable_list saved = weights.vec();
    saved.push_back(x);
    context->save_for_backward(std::move(saved));
    context->saved_data["has_biases"] = !biases.empty();
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    variable_list weights = context->get_saved_variables();
    const Tensor x = weights.back();
    weights.pop_back();
    const size_t count = weights.size();
    const bool has_biases = context->saved_data["has_biases"].toBool();
    const Tensor grad = ContiguousRows(grads[0]);
    variable_list found(1 + count * (has_biases ? 2 : 1));
    if (context->needs_input_grad(0)) found[0] = torch::empty_like(x, torch::MemoryFormat::Contiguous);
    int64_t at = 0;
    for (size_t i = 0; i < count; ++i) {
      const Tensor part = grad.narrow(1, at, weights[i].size(0));
      at += weights[i].size(0);
      if (found[0].defined()) MatMulInto(found[0], part, weights[i], /*accumulate=*/i > 0);
      if (context->needs_input_grad(1 + i)) found[1 + i] = WeightGradient(part, x);
      if (has_biases && context->needs_input_grad(1 + count + i)) found[1 + count + i] = part.sum(0);
    }
    return found;
  }
};

class SiluGatedMlpFunction : public torch::autograd::Function<SiluGatedMlpFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& gate, const Tensor& up,
                        const Tensor& down) {
    const int64_t f = gate.size(0);
    const Tensor gate_up = torch::empty({x.size(0), 2 * f}, x.options());
    MatMulInto(gate_up.narrow(1, 0, f), x, gate.t(), false);
    MatMulInto(gate_up.narrow(1, f, f), x, up.t(), false);
    Tensor y = torch::empty({x.size(0), down.size(0)}, x.options());
    MatMulInto(y, Activation(gate_up), down.t(), false);
    context->save_for_backward({x, gate, up, down, gate_up});
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &gate = saved[1], &up = saved[2], &down = saved[3], &gate_up = saved[4];
    const Tensor grad = ContiguousRows(grads[0]);
    const int64_t m = x.size(0), f = gate.size(0);
    variable_list found(4);
    if (context->needs_input_grad(3)) found[3] = WeightGradient(grad, Activation(gate_up));
    Tensor of_both = torch::empty({m, 2 * f}, x.options());
    MatMulInto(of_both.narrow(1, 0, f), grad, down, false);
    const float* both = Data(gate_up);
    float* of = Data(of_both);
    for (int64_t row = 0; row < m; ++row, both += 2 * f, of += 2 * f) {
      SiluMulGradient(both, both + f, of, f, of, of + f);
    }
    const Tensor of_gate = of_both.narrow(1, 0, f), of_up = of_both.narrow(1, f, f);
    if (context->needs_input_grad(0)) {
      found[0] = torch::empty_like(x, torch::MemoryFormat::Contiguous);
      MatMulInto(found[0], of_gate, gate, false);
      MatMulInto(found[0], of_up, up, true);
    }
    if (context->needs_input_grad(1)) found[1] = WeightGradient(of_gate, x);
    if (context->needs_input_grad(2)) found[2] = WeightGradient(of_up, x);
    return found;
  }

 private:
  static Tensor Activation(const Tensor& gate_up) {
    const int64_t m = gate_up.size(0), f = gate_up.size(1) / 2;
    Tensor activation = torch::empty({m, f}, gate_up.options());
    const float* both = Data(gate_up);
    float* to = Data(activation);
    for (int64_t row = 0; row < m; ++row, both += 2 * f, to += f) {
      BestKernels().SiluMul(both, both + f, static_cast<int>(f), to);
    }
    return activation;
  }
};

class SiluMulFunction : public torch::autograd::Function<SiluMulFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& gate_in, const Tensor& up_in) {
    const Tensor gate = gate_in.contiguous(), up = up_in.contiguous();
    Tensor y = torch::empty_like(gate);
    BestKernels().SiluMul(Data(gate), Data(up), static_cast<int>(gate.numel()), Data(y));
    context->save_for_backward({gate, up});
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const Tensor grad = grads[0].contiguous();
    Tensor of_gate = torch::empty_like(grad), of_up = torch::empty_like(grad);
    SiluMulGradient(Data(saved[0]), Data(saved[1]), Data(grad), grad.numel(), Data(of_gate), Data(of_up));
    return {of_gate, of_up};
  }
};

class GeluFunction : public torch::autograd::Function<GeluFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x_in, bool by_tanh) {
    const Tensor x = x_in.contiguous();
    Tensor y = torch::empty_like(x);
    const auto count = static_cast<int>(x.numel());
    by_tanh ? BestKernels().GeluTanh(Data(x), count, Data(y)) : BestKernels().Gelu(Data(x), count, Data(y));
    context->save_for_backward({x});
    context->saved_data["by_tanh"] = by_tanh;
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const char* approximate = context->saved_data["by_tanh"].toBool() ? "tanh" : "none";
    return {at::gelu_backward(grads[0], context->get_saved_variables()[0], approximate), Tensor()};
  }
};

class RmsNormFunction : public torch::autograd::Function<RmsNormFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x_in, const Tensor& weight, double eps) {
    const Tensor x = x_in.contiguous();
    Tensor y = torch::empty_like(x);
    const int64_t d = x.size(-1), m = d == 0 ? 0 : x.numel() / d;
    const float *from = Data(x), *weights = Data(weight);
    float* to = Data(y);
    for (int64_t row = 0; row < m; ++row, from += d, to += d) {
      BestKernels().RmsNorm(from, weights, static_cast<float>(eps), static_cast<int>(d), to);
    }
    context->save_for_backward({x, weight});
    context->saved_data["eps"] = eps;
    return y;
  }

  // With r = 1 / sqrt(mean(x²) + eps) and g the gradient times weight: dx = r · (g - x · r² · mean(g · x)).
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], grad = grads[0].contiguous();
    const auto eps = static_cast<float>(context->saved_data["eps"].toDouble());
    const int64_t d = x.size(-1), m = d == 0 ? 0 : x.numel() / d;
    const auto width = static_cast<int>(d);
    Tensor of_x = torch::empty_like(x);
    std::vector<double> of_weight(d);
    std::vector<float> weighted(d);
    const float *xs = Data(x), *gs = Data(grad), *ws = Data(weight);
    float* out = Data(of_x);
    for (int64_t row = 0; row < m; ++row, xs += d, gs += d, out += d) {
      const float mean = BestKernels().Dot(xs, xs, width) / static_cast<float>(d);
      const float r = 1.0f / std::sqrt(mean + eps);
      for (int64_t i = 0; i < d; ++i) weighted[i] = gs[i] * ws[i];
      const float pull = BestKernels().Dot(weighted.data(), xs, width) / static_cast<float>(d) * r * r;
      for (int64_t i = 0; i < d; ++i) out[i] = r * (weighted[i] - xs[i] * pull);
      for (int64_t i = 0; i < d; ++i) of_weight[i] += static_cast<double>(gs[i] * (xs[i] * r));
    }
    Tensor sum;
    if (context->needs_input_grad(1)) sum = torch::tensor(of_weight, torch::kFloat64).to(torch::kFloat32);
    return {of_x, sum, Tensor()};
  }
};

// One head of a packed sample of T tokens: keys and values of all of them, queries of those from one on.
class AttentionHead {
 public:
  AttentionHead(int64_t head_dim, int64_t first_query, int64_t num_tokens)
      : e_(head_dim),
        first_query_(first_query),
        t_(num_tokens),
        stride_(RowStride(static_cast<int>(num_tokens))) {}

  // Of [T, E] rows: as what scores are products with, and in blocks as what sums over tokens are of.
  void PackForScores(Matrix rows, PackedMatrix& packed) const {
    packed.Assign(rows.data, static_cast<int>(t_), static_cast<int>(e_), rows.stride, 1);
  }
  void PackForSums(Matrix rows, std::vector<PackedMatrix>& blocks) const {
    if (blocks.size() < static_cast<size_t>(NumBlocks())) blocks.resize(NumBlocks());
    for (int64_t b = 0; b < NumBlocks(); ++b) {
      blocks[b].Assign(rows.From(b * kBlock).data, static_cast<int>(e_),
                       static_cast<int>(End(b) - b * kBlock), 1, rows.stride);
    }
  }

  int64_t NumBlocks() const { return (t_ + kBlock - 1) / kBlock; }
  int64_t End(int64_t b) const { return std::min((b + 1) * kBlock, t_); }
  // Of the blocks' queries: which block has the first, and which tokens of a block are some.
  int64_t FirstBlock() const { return first_query_ / kBlock; }
  int64_t Begin(int64_t b) const { return std::max(b * kBlock, first_query_); }
  int64_t NumQueries(int64_t b) const { return End(b) - Begin(b); }
  int64_t scores_stride() const { return stride_; }

  // Products of the block's queries, which begin at `x`, with tokens up to the block's last one.
  void Scores(Matrix x, int64_t b, const PackedMatrix& packed, Matrix out) const {
    const int panels = static_cast<int>((End(b) + PackedMatrix::kPanel - 1) / PackedMatrix::kPanel);
    BestKernels().MatMul(x.data, x.stride, static_cast<int>(NumQueries(b)), packed, 0, panels, false,
                         out.data, out.stride);
  }
  // out = sum over tokens up to the block's last one of weights [·, t] · rows [t, E].
  void Sums(Matrix weights, int64_t b, const std::vector<PackedMatrix>& blocks, Matrix out) const {
    for (int64_t c = 0; c <= b; ++c) {
      BestKernels().MatMul(weights.data + c * kBlock, weights.stride, static_cast<int>(NumQueries(b)),
                           blocks[c], 0, blocks[c].num_panels(), /*accumulate=*/c > 0, out.data, out.stride);
    }
  }

 private:
  const int64_t e_, first_query_, t_, stride_;
};

class PackedAttentionFunction : public torch::autograd::Function<PackedAttentionFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& rows_in, const Tensor& cos, const Tensor& sin,
                        const std::vector<int64_t>& offsets, const std::vector<int64_t>& prefix_rows,
                        const std::vector<int64_t>& prefix_tokens, const std::vector<int64_t>& first_queries,
                        int64_t num_heads, int64_t num_kv_heads) {
    const int64_t n = rows_in.size(0), h = num_heads, k = num_kv_heads, e = rows_in.size(1) / (h + 2 * k);
    const Tensor turned = rows_in.clone(torch::MemoryFormat::Contiguous);
    Turn(turned, cos, sin, h + k, e);
    Tensor result = torch::empty({n, h * e}, turned.options());
    const Tensor log_sums = torch::empty({n, h}, turned.options());
    const Matrix rows = AllOf(turned), out = AllOf(result), log_sum_rows = AllOf(log_sums);
    const float scale = 1.0f / std::sqrt(static_cast<float>(e));
    static thread_local PackedMatrix keys;
    static thread_local std::vector<PackedMatrix> values;
    std::vector<float> scratch, whole;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      const int64_t begin = offsets[s], own = offsets[s + 1] - begin, prefix = prefix_tokens[s];
      if (first_queries[s] == prefix + own) continue;
      const AttentionHead head(e, first_queries[s], prefix + own);
      scratch.resize(kBlock * head.scores_stride());
      const Matrix scores{scratch.data(), head.scores_stride()};
      const std::vector<float> ones(head.scores_stride(), 1.0f);
      for (int64_t q = 0; q < h; ++q) {
        if (q % (h / k) == 0) {
          const auto all = [&](int64_t index) {
            return Join(HeadOf(rows, prefix_rows[s], index, e), prefix, HeadOf(rows, begin, index, e), own, e,
                        whole);
          };
          head.PackForScores(all(h + q / (h / k)), keys);
          head.PackForSums(all(h + k + q / (h / k)), values);
        }
        for (int64_t b = head.FirstBlock(); b < head.NumBlocks(); ++b) {
          const int64_t first = begin + head.Begin(b) - prefix;
          head.Scores(HeadOf(rows, first, q, e), b, keys, scores);
          const Matrix to = HeadOf(out, first, q, e);
          std::vector<float> inverse(head.NumQueries(b));
          for (int64_t i = 0; i < head.NumQueries(b); ++i) {
            float* row = scores.From(i).data;
            const int64_t seen = head.Begin(b) + i + 1;
            float largest = row[0] * scale;
            for (int64_t j = 0; j < seen; ++j) largest = std::max(largest, row[j] *= scale);
            for (int64_t j = 0; j < seen; ++j) row[j] -= largest;
            BestKernels().Exp(row, static_cast<int>(seen));
            std::fill(row + seen, row + head.End(b), 0.0f);
            const float sum = BestKernels().Dot(row, ones.data(), static_cast<int>(seen));
            inverse[i] = 1.0f / sum;
            log_sum_rows.From(first + i).data[q] = largest + std::log(sum);
          }
          head.Sums(scores, b, values, to);
          for (int64_t i = 0; i < head.NumQueries(b); ++i) {
            for (int64_t d = 0; d < e; ++d) to.From(i).data[d] *= inverse[i];
          }
        }
      }
    }
    context->save_for_backward({turned, cos, sin, result, log_sums});
    context->saved_data["offsets"] = offsets;
    context->saved_data["prefix_rows"] = prefix_rows;
    context->saved_data["prefix_tokens"] = prefix_tokens;
    context->saved_data["first_queries"] = first_queries;
    context->saved_data["num_heads"] = h;
    context->saved_data["num_kv_heads"] = k;
    return result;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const Tensor of_result = grads[0].contiguous();
    const Matrix rows = AllOf(saved[0]), out = AllOf(saved[3]), log_sum_rows = AllOf(saved[4]),
                 grad = AllOf(of_result);
    const std::vector<int64_t> offsets = context->saved_data["offsets"].toIntVector(),
                               prefix_rows = context->saved_data["prefix_rows"].toIntVector(),
                               prefix_tokens = context->saved_data["prefix_tokens"].toIntVector(),
                               first_queries = context->saved_data["first_queries"].toIntVector();
    const int64_t h = context->saved_data["num_heads"].toInt(),
                  k = context->saved_data["num_kv_heads"].toInt();
    const int64_t e = saved[0].size(1) / (h + 2 * k), group = h / k;
    const auto width = static_cast<int>(e);
    const float scale = 1.0f / std::sqrt(static_cast<float>(e));
    const Tensor sum = torch::zeros_like(saved[0]);
    const Matrix of_rows = AllOf(sum);
    static thread_local PackedMatrix keys, values, packed;
    static thread_local std::vector<PackedMatrix> key_blocks;
    std::vector<float> weights, gradients, turned, whole;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      const int64_t begin = offsets[s], own = offsets[s + 1] - begin, prefix = prefix_tokens[s];
      if (first_queries[s] == prefix + own) continue;
      const AttentionHead head(e, first_queries[s], prefix + own);
      weights.resize(kBlock * head.scores_stride());
      gradients.resize(weights.size());
      const Matrix p{weights.data(), head.scores_stride()}, dp{gradients.data(), head.scores_stride()};
      turned.resize((prefix + own) * kBlock);
      for (int64_t q = 0; q < h; ++q) {
        const int64_t key = h + q / group, value = h + k + q / group;
        if (q % group == 0) {
          const auto all = [&](int64_t index) {
            return Join(HeadOf(rows, prefix_rows[s], index, e), prefix, HeadOf(rows, begin, index, e), own, e,
                        whole);
          };
          head.PackForScores(all(value), values);
          const Matrix all_keys = all(key);
          head.PackForScores(all_keys, keys);
          head.PackForSums(all_keys, key_blocks);
        }
        for (int64_t b = head.FirstBlock(); b < head.NumBlocks(); ++b) {
          const int64_t first = begin + head.Begin(b) - prefix, count = head.NumQueries(b), end = head.End(b);
          const Matrix query = HeadOf(rows, first, q, e), g = HeadOf(grad, first, q, e);
          head.Scores(query, b, keys, p);
          head.Scores(g, b, values, dp);
          for (int64_t i = 0; i < count; ++i) {
            float *row = p.From(i).data, *of_row = dp.From(i).data;
            const int64_t seen = head.Begin(b) + i + 1;
            const float log_sum = log_sum_rows.From(first + i).data[q];
            for (int64_t j = 0; j < seen; ++j) row[j] = row[j] * scale - log_sum;
            BestKernels().Exp(row, static_cast<int>(seen));
            const float mean = BestKernels().Dot(g.From(i).data, HeadOf(out, first + i, q, e).data, width);
            for (int64_t j = 0; j < seen; ++j) of_row[j] = row[j] * (of_row[j] - mean) * scale;
            std::fill(row + seen, row + end, 0.0f);
            std::fill(of_row + seen, of_row + end, 0.0f);
          }
          // What queries, keys and values get: dp · keys, dpᵀ · queries, pᵀ · gradient. What a prefix gets is
          // a sum over the samples that have it, in their order.
          head.Sums(dp, b, key_blocks, HeadOf(of_rows, first, q, e));
          const auto add = [&](Matrix from, Matrix x, int64_t to) {
            for (int64_t i = 0; i < count; ++i) {
              for (int64_t j = 0; j < end; ++j) turned[j * kBlock + i] = from.From(i).data[j];
            }
            packed.Assign(x.data, width, static_cast<int>(count), 1, x.stride);
            const Matrix x_of_key{turned.data(), kBlock};
            Multiply(HeadOf(of_rows, prefix_rows[s], to, e), x_of_key, prefix, packed, true);
            Multiply(HeadOf(of_rows, begin, to, e), x_of_key.From(prefix), end - prefix, packed, true);
          };
          add(dp, query, key);
          add(p, g, value);
        }
      }
    }
    Turn(sum, saved[1], -saved[2], h + k, e);
    variable_list found(9);
    found[0] = sum;
    return found;
  }

 private:
  // The rows of a prefix, then a sample's own: without a prefix where they are, else copied to `whole`.
  static Matrix Join(Matrix prefix, int64_t num_prefix, Matrix rows, int64_t num_rows, int64_t e,
                     std::vector<float>& whole) {
    if (num_prefix == 0) return rows;
    whole.resize((num_prefix + num_rows) * e);
    float* to = whole.data();
    for (int64_t i = 0; i < num_prefix; ++i) to = std::copy_n(prefix.From(i).data, e, to);
    for (int64_t i = 0; i < num_rows; ++i) to = std::copy_n(rows.From(i).data, e, to);
    return {whole.data(), e};
  }
  static Matrix AllOf(const Tensor& rows) { return {Data(rows), rows.size(1)}; }
  // Rows from `first` on of one head of [N, heads · E].
  static Matrix HeadOf(Matrix rows, int64_t first, int64_t head, int64_t e) {
    return Matrix{rows.data + head * e, rows.stride}.From(first);
  }
  // The first `heads` heads of each row, in place.
  static void Turn(const Tensor& rows, const Tensor& cos, const Tensor& sin, int64_t heads, int64_t e) {
    const int64_t half = cos.size(1);
    const Matrix all = AllOf(rows);
    const float *cosines = Data(cos), *sines = Data(sin);
    for (int64_t row = 0; row < rows.size(0); ++row, cosines += half, sines += half) {
      for (int64_t head = 0; head < heads; ++head) {
        BestKernels().Rotate(HeadOf(all, row, head, e).data, cosines, sines, static_cast<int>(2 * half));
      }
    }
  }
};

}  // namespace

bool RunsOnKernels(const Tensor& tensor) {
  return tensor.is_cpu() && tensor.scalar_type() == torch::kFloat32 && Kernels::Best() != nullptr;
}

bool MultipliesOnKernels(const Tensor& tensor) {
  if (RunsOnKernels(tensor)) return true;
  return tensor.is_cpu() && tensor.scalar_type() == torch::kBFloat16 && Kernels::Best() != nullptr &&
         Bfloat16Instructions().empty();
}

const std::string& Bfloat16Instructions() {
  static const std::string& instructions = *new std::string([] {
    const auto capabilities = at::cpu::get_cpu_capabilities();
    for (const char* name : {"amx_bf16", "avx512_bf16"}) {
      const auto found = capabilities.find(name);
      if (found != capabilities.end() && found->second.isBool() && found->second.toBool()) return name;
    }
    return "";
  }());
  return instructions;
}

void MatMulInto(const Tensor& narrow_out, const Tensor& x_in, const Tensor& w, bool accumulate) {
  static thread_local PackedMatrix packed;
  const auto wide = [](const Tensor& tensor) { return tensor.to(torch::kFloat32); };
  const bool is_narrow = narrow_out.scalar_type() != torch::kFloat32;
  const Tensor out = !is_narrow   ? narrow_out
                     : accumulate ? wide(narrow_out)
                                  : torch::empty(narrow_out.sizes(), torch::kFloat32);
  const Tensor x = ContiguousRows(wide(x_in));
  const int64_t m = x.size(0), inputs = w.size(0), outputs = w.size(1);
  if (m == 0 || outputs == 0) return;
  if (inputs == 0 && !accumulate) out.zero_();
  // A weight that is too large is cut where its numbers are apart: outputs or inputs.
  const bool by_input = w.stride(1) == 1;
  const int64_t at_once =
      std::max(kCut, kPackedAtOnce / std::max<int64_t>(1, by_input ? outputs : inputs) / kCut * kCut);
  const int64_t end = by_input ? inputs : outputs;
  for (int64_t begin = 0; begin < end; begin += at_once) {
    const int64_t count = std::min(at_once, end - begin);
    const Tensor part = wide(w.narrow(by_input ? 0 : 1, begin, count));
    packed.Assign(Data(part), static_cast<int>(part.size(1)), static_cast<int>(part.size(0)), part.stride(1),
                  part.stride(0));
    if (by_input) {
      Multiply(RowsOf(out), RowsOf(x.narrow(1, begin, count)), m, packed, accumulate || begin > 0);
    } else {
      Multiply(RowsOf(out.narrow(1, begin, count)), RowsOf(x), m, packed, accumulate);
    }
  }
  if (is_narrow) narrow_out.copy_(out);
}

Tensor Product(const Tensor& x_MI, const Tensor& w_IO) {
  if (!MultipliesOnKernels(x_MI)) return torch::mm(x_MI, w_IO);
  Tensor out_MO = torch::empty({x_MI.size(0), w_IO.size(1)}, x_MI.options());
  MatMulInto(out_MO, x_MI, w_IO, /*accumulate=*/false);
  return out_MO;
}

Tensor StackedLinear(const Tensor& x_MD, const std::vector<Tensor>& weights,
                     const std::vector<Tensor>& biases) {
  return StackedLinearFunction::apply(x_MD, at::TensorList(weights), at::TensorList(biases));
}

Tensor Linear(const Tensor& x_MD, const Tensor& weight_OD, const Tensor& bias_O) {
  if (!MultipliesOnKernels(x_MD)) return torch::linear(x_MD, weight_OD, bias_O);
  return StackedLinear(x_MD, {weight_OD}, bias_O.defined() ? std::vector{bias_O} : std::vector<Tensor>());
}

Tensor SiluGatedMlp(const Tensor& x_MD, const Tensor& gate_FD, const Tensor& up_FD, const Tensor& down_DF) {
  return SiluGatedMlpFunction::apply(x_MD, gate_FD, up_FD, down_DF);
}

Tensor KernelSiluMul(const Tensor& gate_MF, const Tensor& up_MF) {
  return SiluMulFunction::apply(gate_MF, up_MF);
}

Tensor KernelGelu(const Tensor& x_MF, bool by_tanh) { return GeluFunction::apply(x_MF, by_tanh); }

Tensor KernelRmsNorm(const Tensor& x, const Tensor& weight, double eps) {
  return RmsNormFunction::apply(x, weight, eps);
}

Tensor PackedAttention(const Tensor& rows, const Tensor& cos, const Tensor& sin,
                       const std::vector<int64_t>& offsets, const std::vector<int64_t>& prefix_rows,
                       const std::vector<int64_t>& prefix_tokens, const std::vector<int64_t>& first_queries,
                       int64_t num_heads, int64_t num_kv_heads) {
  return PackedAttentionFunction::apply(rows, cos, sin, offsets, prefix_rows, prefix_tokens,
                                        first_queries.empty() ? prefix_tokens : first_queries, num_heads,
                                        num_kv_heads);
}

}  // namespace almost
