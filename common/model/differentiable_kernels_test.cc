#include "common/model/differentiable_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

namespace almost {
namespace {

using torch::Tensor;

// Numbers around 1, a function of shape and `seed`.
Tensor Some(const std::vector<int64_t>& shape, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return torch::randn(shape, generator);
}

// The result and the inputs' gradients of a sum with fixed weights, in the inputs' dtype.
std::vector<Tensor> WithGradients(const std::vector<Tensor>& inputs, torch::ScalarType dtype,
                        const std::function<Tensor(const std::vector<Tensor>&)>& function) {
  std::vector<Tensor> leaves;
  for (const Tensor& input : inputs)
    leaves.push_back(input.detach().to(dtype, false, /*copy=*/true).requires_grad_());
  const Tensor y = function(leaves);
  (y * Some(y.sizes().vec(), 99).to(dtype)).sum().backward();
  std::vector<Tensor> found = {y.detach()};
  for (const Tensor& leaf : leaves) found.push_back(leaf.grad());
  return found;
}

// Float32 rounds at 6e-8 of sums of up to a thousand products: as norms within 1e-5 of double's.
void ExpectNear(const std::vector<Tensor>& found, const std::vector<Tensor>& wanted) {
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) {
    const Tensor difference = found[i].to(torch::kFloat64) - wanted[i];
    EXPECT_LT(difference.norm().item<double>(), 1e-5 * (wanted[i].norm().item<double>() + 1e-3)) << i;
  }
}

// Sizes that are whole panels and groups of them, and sizes that are not; more rows than a call takes.
TEST(DifferentiableKernels, StackedLinearIsLinearOfEach) {
  for (const int64_t rows : {1, 7, 300}) {
    for (const std::vector<int64_t>& outputs : {std::vector<int64_t>{48}, {17}, {32, 16, 5}}) {
      std::vector<Tensor> inputs = {Some({rows, 70}, 1)};
      for (const int64_t count : outputs) inputs.push_back(Some({count, 70}, 10 + count));
      for (const int64_t count : outputs) inputs.push_back(Some({count}, 20 + count));
      const auto parts = [&](const std::vector<Tensor>& all) {
        return std::pair(std::vector<Tensor>(all.begin() + 1, all.begin() + 1 + outputs.size()),
                         std::vector<Tensor>(all.begin() + 1 + outputs.size(), all.end()));
      };
      ExpectNear(WithGradients(inputs, torch::kFloat32,
                     [&](const std::vector<Tensor>& all) {
                       const auto [weights, biases] = parts(all);
                       return StackedLinear(all[0], weights, biases);
                     }),
                 WithGradients(inputs, torch::kFloat64, [&](const std::vector<Tensor>& all) {
                   const auto [weights, biases] = parts(all);
                   return torch::linear(all[0], torch::cat(weights), torch::cat(biases));
                 }));
    }
  }
}

// Weights of more numbers than are packed at once, cut by inputs and by outputs.
TEST(DifferentiableKernels, LargeWeightsAreCut) {
  const Tensor x = Some({3, 1000}, 1), w = Some({3000, 1000}, 2), more = Some({3, 3000}, 3);
  Tensor y = torch::empty({3, 3000});
  MatMulInto(y, x, w.t(), /*accumulate=*/false);
  EXPECT_LT((y - torch::mm(x, w.t())).norm().item<double>(), 1e-5 * y.norm().item<double>());
  Tensor z = torch::ones({3, 1000});
  MatMulInto(z, more, w, /*accumulate=*/true);
  EXPECT_LT((z - 1 - torch::mm(more, w)).norm().item<double>(), 1e-5 * z.norm().item<double>());
  // The cut is not seen: an output is one chain over its inputs.
  Tensor alone = torch::empty({3, 16});
  MatMulInto(alone, more, w.narrow(1, 32, 16), /*accumulate=*/false);
  Tensor whole = torch::empty({3, 1000});
  MatMulInto(whole, more, w, /*accumulate=*/false);
  EXPECT_TRUE(alone.equal(whole.narrow(1, 32, 16)));
}

// Also of weights that are cut, by outputs and by inputs, and where something is there already.
TEST(DifferentiableKernels, ProductsOfBfloat16AreThoseOfFloat32Rounded) {
  const auto half = [](const Tensor& tensor) { return tensor.to(torch::kBFloat16); };
  const auto wide = [](const Tensor& tensor) { return tensor.to(torch::kFloat32); };
  for (const bool transposed : {true, false}) {
    const Tensor x = half(Some({5, transposed ? 1000 : 3000}, 1)), stored = half(Some({3000, 1000}, 2));
    const Tensor w = transposed ? stored.t() : stored;
    for (const bool accumulate : {false, true}) {
      Tensor found = half(Some({5, w.size(1)}, 3)), wanted = wide(found);
      MatMulInto(found, x, w, accumulate);
      MatMulInto(wanted, wide(x), wide(w), accumulate);
      EXPECT_TRUE(found.equal(half(wanted))) << transposed << accumulate;
    }
  }
}

TEST(DifferentiableKernels, GatedMlpIsThatOfItsParts) {
  const std::vector<Tensor> inputs = {Some({11, 24}, 1), Some({40, 24}, 2), Some({40, 24}, 3),
                                      Some({24, 40}, 4)};
  ExpectNear(WithGradients(inputs, torch::kFloat32,
                 [](const auto& all) { return SiluGatedMlp(all[0], all[1], all[2], all[3]); }),
             WithGradients(inputs, torch::kFloat64, [](const auto& all) {
               return torch::linear(torch::silu(torch::linear(all[0], all[1])) * torch::linear(all[0], all[2]),
                                    all[3]);
             }));
}

TEST(DifferentiableKernels, ActivationsAreThoseOfTheirDefinition) {
  const std::vector<Tensor> inputs = {Some({7, 19}, 1), Some({7, 19}, 2)};
  ExpectNear(WithGradients(inputs, torch::kFloat32, [](const auto& all) { return KernelSiluMul(all[0], all[1]); }),
             WithGradients(inputs, torch::kFloat64,
                           [](const auto& all) { return torch::silu(all[0]) * all[1]; }));
  for (const bool by_tanh : {false, true}) {
    ExpectNear(WithGradients({inputs[0]}, torch::kFloat32,
                             [&](const auto& all) { return KernelGelu(all[0], by_tanh); }),
               WithGradients({inputs[0]}, torch::kFloat64,
                             [&](const auto& all) { return at::gelu(all[0], by_tanh ? "tanh" : "none"); }));
  }
}

TEST(DifferentiableKernels, RmsNormIsThatOfTheRoot) {
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{5, 24}, {4, 3, 19}}) {
    const std::vector<Tensor> inputs = {Some(shape, 1), Some({shape.back()}, 2)};
    ExpectNear(
        WithGradients(inputs, torch::kFloat32, [](const auto& all) { return KernelRmsNorm(all[0], all[1], 1e-5); }),
        WithGradients(inputs, torch::kFloat64, [](const auto& all) {
          return all[0] * torch::rsqrt(all[0].square().mean(-1, true) + 1e-5) * all[1];
        }));
  }
}

struct Heads {
  int64_t queries, keys, dim, turned;
};

Tensor Attend(const Tensor& rows, const Tensor& angles, const std::vector<int64_t>& offsets, Heads heads) {
  const std::vector<int64_t> none(offsets.size() - 1);
  return PackedAttention(rows, angles.cos(), angles.sin(), offsets, none, none, {}, heads.queries, heads.keys);
}

// Sample by sample and head by head, by the definition.
Tensor AttendPlainly(const Tensor& rows, const Tensor& angles, const std::vector<int64_t>& offsets, Heads heads) {
  const auto [h, k, e, r] = heads;
  const Tensor cos = angles.cos(), sin = angles.sin();
  std::vector<Tensor> samples;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const int64_t t = offsets[s + 1] - offsets[s];
    const auto head = [&](int64_t index, bool turn) {
      const Tensor x = rows.narrow(0, offsets[s], t).narrow(1, index * e, e);
      if (!turn) return x;
      const Tensor c = cos.narrow(0, offsets[s], t), n = sin.narrow(0, offsets[s], t);
      const Tensor a = x.narrow(1, 0, r / 2), b = x.narrow(1, r / 2, r / 2);
      return torch::cat({a * c - b * n, b * c + a * n, x.narrow(1, r, e - r)}, 1);
    };
    std::vector<Tensor> outs;
    for (int64_t q = 0; q < h; ++q) {
      const Tensor scores = torch::mm(head(q, true), head(h + q / (h / k), true).t()) / std::sqrt(double(e));
      const Tensor hidden = torch::ones({t, t}, torch::kBool).triu(1);
      outs.push_back(torch::mm(torch::softmax(scores.masked_fill(hidden, -1e30), 1),
                               head(h + k + q / (h / k), false)));
    }
    samples.push_back(torch::cat(outs, 1));
  }
  return torch::cat(samples);
}

// Samples shorter and longer than a block of queries, whole blocks, one token; grouped heads; partly turned.
TEST(DifferentiableKernels, AttentionIsThatOfItsDefinition) {
  const std::vector<int64_t> offsets = {0, 5, 6, 70, 199, 327};
  for (const Heads heads : {Heads{2, 2, 32, 32}, Heads{4, 2, 16, 8}, Heads{3, 1, 20, 20}}) {
    const Tensor angles = Some({offsets.back(), heads.turned / 2}, 5).to(torch::kFloat64);
    const std::vector<Tensor> inputs = {Some({offsets.back(), (heads.queries + 2 * heads.keys) * heads.dim}, 6)};
    ExpectNear(WithGradients(inputs, torch::kFloat32,
                   [&](const auto& all) { return Attend(all[0], angles.to(torch::kFloat32), offsets, heads); }),
               WithGradients(inputs, torch::kFloat64,
                   [&](const auto& all) { return AttendPlainly(all[0], angles, offsets, heads); }));
  }
}

// Prefixes that end within a block, at its end and after several; answers of one token, and longer than a
// block.
TEST(DifferentiableKernels, AttentionToASharedPrefixHasTheBitsOfThatToItsCopy) {
  struct Group {
    int64_t prompt;
    std::vector<int64_t> answers;
  };
  const std::vector<Group> groups = {{5, {3}}, {70, {90, 1, 20}}, {64, {64, 7}}, {200, {10, 130, 40, 1}}};
  std::vector<int64_t> offsets = {0}, prefix_rows, prefix_tokens, whole_offsets = {0}, row_of_whole, kept;
  for (const auto& [prompt, answers] : groups) {
    const int64_t begin = offsets.back();
    for (size_t i = 0; i < answers.size(); ++i) {
      prefix_rows.push_back(begin);
      prefix_tokens.push_back(i == 0 ? 0 : prompt);
      for (int64_t t = 0; t < prompt; ++t) {
        if (i == 0) kept.push_back(static_cast<int64_t>(row_of_whole.size()));
        row_of_whole.push_back(begin + t);
      }
      const int64_t first = offsets.back() + (i == 0 ? prompt : 0);
      for (int64_t t = 0; t < answers[i]; ++t) {
        kept.push_back(static_cast<int64_t>(row_of_whole.size()));
        row_of_whole.push_back(first + t);
      }
      offsets.push_back(first + answers[i]);
      whole_offsets.push_back(static_cast<int64_t>(row_of_whole.size()));
    }
  }
  const Tensor to_whole = torch::tensor(row_of_whole), to_kept = torch::tensor(kept);
  for (const Heads heads : {Heads{2, 2, 32, 32}, Heads{4, 2, 16, 8}, Heads{3, 1, 20, 20}}) {
    const Tensor angles = Some({offsets.back(), heads.turned / 2}, 5).to(torch::kFloat64);
    const std::vector<Tensor> inputs = {
        Some({offsets.back(), (heads.queries + 2 * heads.keys) * heads.dim}, 6)};
    const auto shared = [&](const std::vector<Tensor>& all) {
      const Tensor turned = angles.to(torch::kFloat32);
      return PackedAttention(all[0], turned.cos(), turned.sin(), offsets, prefix_rows, prefix_tokens, {},
                             heads.queries, heads.keys);
    };
    const auto copied = [&](const std::vector<Tensor>& all) {
      return Attend(all[0].index_select(0, to_whole), angles.to(torch::kFloat32).index_select(0, to_whole),
                    whole_offsets, heads)
          .index_select(0, to_kept);
    };
    const auto plain = [&](const std::vector<Tensor>& all) {
      return AttendPlainly(all[0].index_select(0, to_whole), angles.index_select(0, to_whole), whole_offsets,
                           heads)
          .index_select(0, to_kept);
    };
    const auto found = WithGradients(inputs, torch::kFloat32, shared);
    EXPECT_TRUE(found[0].equal(WithGradients(inputs, torch::kFloat32, copied)[0]));
    ExpectNear(found, WithGradients(inputs, torch::kFloat64, plain));
  }
}

TEST(DifferentiableKernels, FrozenWeightsGetNoGradient) {
  const Tensor x = Some({4, 16}, 1).requires_grad_(), w = Some({16, 16}, 2);
  StackedLinear(x, {w}).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(w.grad().defined());
}

}  // namespace
}  // namespace almost
