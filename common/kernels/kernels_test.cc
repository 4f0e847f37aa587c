#include "common/kernels/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "common/base/random.h"

namespace almost {
namespace {

std::vector<float> Random(uint64_t seed, size_t count) {
  RandomStream stream(seed);
  std::vector<float> x(count);
  for (float& value : x) value = static_cast<float>(stream.Normal());
  return x;
}

bool SameBits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

// The instruction sets that this processor has.
std::vector<const Kernels*> AllKernels() {
  std::vector<const Kernels*> all;
  for (const auto set : {Kernels::InstructionSet::kAvx2, Kernels::InstructionSet::kAvx512}) {
    if (const Kernels* kernels = Kernels::For(set); kernels != nullptr) all.push_back(kernels);
  }
  return all;
}

class KernelsTest : public testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& kernels() const { return *GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(InstructionSets, KernelsTest, testing::ValuesIn(AllKernels()),
                         [](const auto& param) {
                           return param.param == Kernels::For(Kernels::InstructionSet::kAvx2) ? "Avx2"
                                                                                              : "Avx512";
                         });

PackedMatrix Pack(std::span<const float> weight, int num_outputs, int num_inputs) {
  const WeightView view{WeightType::kFloat32, std::as_bytes(weight).data(), num_outputs};
  return PackedMatrix({&view, 1}, num_inputs);
}

struct Shape {
  int outputs, inputs;
};
// Whole and partial panels, one and several input blocks.
constexpr Shape kShapes[] = {{1, 1}, {16, 8}, {17, 33}, {96, 64}, {301, 60}, {48, 1300}};

// Taken from rows of outputs, or of inputs, of a larger matrix; in the place of another that was larger.
TEST(PackedMatrixTest, WhatChangesIsLaidOutAsWhatIsRead) {
  PackedMatrix assigned;
  for (const auto [outputs, inputs] :
       {Shape{301, 1300}, Shape{1, 1}, Shape{16, 8}, Shape{17, 33}, Shape{48, 6}}) {
    const std::vector<float> w = Random(1, size_t(outputs) * inputs);
    const PackedMatrix wanted = Pack(w, outputs, inputs);
    for (const bool by_input : {false, true}) {
      const size_t output_stride = by_input ? 1 : inputs + 3, input_stride = by_input ? outputs + 3 : 1;
      std::vector<float> spread(by_input ? inputs * input_stride : outputs * output_stride);
      for (int n = 0; n < outputs; ++n) {
        for (int k = 0; k < inputs; ++k)
          spread[n * output_stride + k * input_stride] = w[size_t(n) * inputs + k];
      }
      assigned.Assign(spread.data(), outputs, inputs, output_stride, input_stride);
      ASSERT_EQ(assigned.num_panels(), wanted.num_panels());
      const size_t count = size_t(wanted.num_panels()) * inputs * PackedMatrix::kPanel;
      EXPECT_TRUE(SameBits({assigned.panel<float>(0), count}, {wanted.panel<float>(0), count}))
          << outputs << " " << inputs << " " << by_input;
    }
  }
}

// The chain of fused multiply-adds that kernels.h promises, bit for bit: so both instruction sets, every
// number of rows and every cut into panels agree.
TEST_P(KernelsTest, AMatrixElementIsOneChainWhateverTheBlocking) {
  for (const auto [outputs, inputs] : kShapes) {
    const std::vector<float> w = Random(1, size_t(outputs) * inputs);
    const PackedMatrix packed = Pack(w, outputs, inputs);
    for (const int rows : {1, 2, 3, 5, 6, 7, 8, 9, 13, 64}) {
      for (const bool accumulate : {false, true}) {
        const size_t x_stride = RowStride(inputs), out_stride = RowStride(outputs);
        const std::vector<float> x = Random(rows, rows * x_stride);
        const std::vector<float> start = Random(99, rows * out_stride);
        std::vector<float> out = start, wanted = start;
        for (int p = 0; p < packed.num_panels(); p += 5) {
          kernels().MatMul(x.data(), x_stride, rows, packed, p, std::min(5, packed.num_panels() - p),
                           accumulate, out.data(), out_stride);
        }
        for (int m = 0; m < rows; ++m) {
          for (int n = 0; n < outputs; ++n) {
            float& sum = wanted[m * out_stride + n];
            if (!accumulate) sum = 0;
            for (int k = 0; k < inputs; ++k)
              sum = std::fma(x[m * x_stride + k], w[size_t(n) * inputs + k], sum);
          }
        }
        EXPECT_TRUE(SameBits(out, wanted)) << rows << " x " << inputs << " x " << outputs;
      }
    }
  }
}

// Every finite 16-bit pattern, subnormal ones too, as weights: what comes out is what their float32 values
// give.
TEST_P(KernelsTest, SixteenBitWeightsGiveWhatTheirWidenedValuesGive) {
  for (const WeightType type : {WeightType::kBfloat16, WeightType::kFloat16}) {
    const int inputs = 256, outputs = 256;
    std::vector<uint16_t> narrow(inputs * outputs);
    std::vector<float> wide(narrow.size());
    for (size_t i = 0; i < narrow.size(); ++i) {
      const auto bits = static_cast<uint16_t>(i);
      const float value = type == WeightType::kBfloat16 ? std::bit_cast<float>(uint32_t{bits} << 16)
                                                        : static_cast<float>(std::bit_cast<_Float16>(bits));
      narrow[i] = std::isfinite(value) ? bits : 0;
      wide[i] = std::isfinite(value) ? value : 0;
    }
    const WeightView view{type, std::as_bytes(std::span(narrow)).data(), outputs};
    const PackedMatrix packed({&view, 1}, inputs), widened = Pack(wide, outputs, inputs);
    EXPECT_EQ(packed.type(), type);
    // One input alone shows each weight as it is; then sums, of what does not overflow.
    std::vector<float> x(inputs * inputs), out(inputs * outputs), wanted(inputs * outputs);
    for (int k = 0; k < inputs; ++k) x[k * inputs + k] = 1;
    kernels().MatMul(x.data(), inputs, inputs, packed, 0, packed.num_panels(), false, out.data(), outputs);
    kernels().MatMul(x.data(), inputs, inputs, widened, 0, widened.num_panels(), false, wanted.data(),
                     outputs);
    EXPECT_TRUE(SameBits(out, wanted));
    for (int n = 0; n < outputs; ++n) {
      for (int k = 0; k < inputs; ++k) ASSERT_EQ(out[k * outputs + n], wide[n * inputs + k]);
    }
    const std::vector<float> random = Random(3, 13 * inputs);
    kernels().MatMul(random.data(), inputs, 13, packed, 0, packed.num_panels(), false, out.data(), outputs);
    for (int row = 0; row < 13; ++row) {
      std::vector<float> alone(outputs);
      kernels().MatMul(&random[row * inputs], inputs, 1, packed, 0, packed.num_panels(), false, alone.data(),
                       outputs);
      EXPECT_TRUE(SameBits(std::span(out).subspan(row * outputs, outputs), alone));
    }
  }
}

TEST_P(KernelsTest, StackedWeightsGiveWhatEachGives) {
  const int inputs = 40;
  const std::vector<float> a = Random(1, 10 * inputs), b = Random(2, 23 * inputs), x = Random(3, 4 * inputs);
  const WeightView both[] = {{WeightType::kFloat32, std::as_bytes(std::span(a)).data(), 10},
                             {WeightType::kFloat32, std::as_bytes(std::span(b)).data(), 23}};
  const auto multiply = [&](const PackedMatrix& weight) {
    std::vector<float> out(4 * weight.num_outputs());
    kernels().MatMul(x.data(), inputs, 4, weight, 0, weight.num_panels(), false, out.data(),
                     weight.num_outputs());
    return out;
  };
  const std::vector<float> out_a = multiply(Pack(a, 10, inputs)), out_b = multiply(Pack(b, 23, inputs)),
                           stacked = multiply(PackedMatrix(both, inputs));
  for (int row = 0; row < 4; ++row) {
    EXPECT_TRUE(SameBits(std::span(stacked).subspan(row * 33, 10), std::span(out_a).subspan(row * 10, 10)));
    EXPECT_TRUE(
        SameBits(std::span(stacked).subspan(row * 33 + 10, 23), std::span(out_b).subspan(row * 23, 23)));
  }
}

TEST(PackedMatrixTest, WeightsOfDifferentTypesAreWidened) {
  const std::vector<float> a = {1.5f, -2.0f};
  const std::vector<uint16_t> b = {0x3f80, 0xc040};  // 1, -3 in bfloat16
  const WeightView both[] = {{WeightType::kFloat32, std::as_bytes(std::span(a)).data(), 1},
                             {WeightType::kBfloat16, std::as_bytes(std::span(b)).data(), 1}};
  const PackedMatrix packed(both, 2);
  EXPECT_EQ(packed.type(), WeightType::kFloat32);
  const float* panel = packed.panel<float>(0);
  EXPECT_EQ(panel[0], 1.5f);
  EXPECT_EQ(panel[1], 1.0f);
  EXPECT_EQ(panel[16], -2.0f);
  EXPECT_EQ(panel[17], -3.0f);
}

TEST_P(KernelsTest, ExpIsWithinTwoRoundings) {
  std::vector<float> x;
  for (double v = -87; v < 88; v += 0.0173) x.push_back(static_cast<float>(v));
  std::vector<float> y = x;
  kernels().Exp(y.data(), static_cast<int>(y.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double wanted = std::exp(static_cast<double>(x[i]));
    EXPECT_NEAR(y[i] / wanted, 1, 2e-7) << x[i];
  }
  float edges[3] = {0, -88, -std::numeric_limits<float>::infinity()};
  kernels().Exp(edges, 3);
  EXPECT_EQ(edges[0], 1);
  EXPECT_EQ(edges[1], 0);
  EXPECT_EQ(edges[2], 0);
}

TEST_P(KernelsTest, ExpDoesNotDependOnWhereAValueStands) {
  const std::vector<float> x = Random(4, 40);
  std::vector<float> together = x;
  kernels().Exp(together.data(), 40);
  for (int i = 0; i < 40; ++i) {
    float alone = x[i];
    kernels().Exp(&alone, 1);
    EXPECT_EQ(alone, together[i]) << i;
  }
}

// Tolerances below: a few roundings of 6e-8 over sums of at most a few hundred terms near 1.
TEST_P(KernelsTest, RmsNormAgreesWithDouble) {
  for (const int width : {1, 7, 8, 32, 60, 192}) {
    const std::vector<float> x = Random(5, 3 * width), weight = Random(6, width);
    std::vector<float> out(3 * width);
    for (int row = 0; row < 3; ++row) {
      kernels().RmsNorm(&x[row * width], weight.data(), 1e-5f, width, &out[row * width]);
    }
    for (int row = 0; row < 3; ++row) {
      double squares = 0;
      for (int i = 0; i < width; ++i) squares += double(x[row * width + i]) * x[row * width + i];
      const double scale = 1 / std::sqrt(squares / width + 1e-5);
      for (int i = 0; i < width; ++i) {
        const double wanted = x[row * width + i] * scale * weight[i];
        EXPECT_NEAR(out[row * width + i], wanted, 1e-6 * (1 + std::abs(wanted)));
      }
    }
    std::vector<float> in_place = x;
    for (int row = 0; row < 3; ++row) {
      kernels().RmsNorm(&in_place[row * width], weight.data(), 1e-5f, width, &in_place[row * width]);
    }
    EXPECT_TRUE(SameBits(in_place, out));
  }
}

TEST_P(KernelsTest, LayerNormAgreesWithDouble) {
  for (const int width : {1, 7, 8, 32, 60, 192}) {
    std::vector<float> x = Random(5, 3 * width);
    for (float& value : x) value += 2;  // a mean that matters
    const std::vector<float> weight = Random(6, width), bias = Random(9, width);
    std::vector<float> out(3 * width);
    for (int row = 0; row < 3; ++row) {
      kernels().LayerNorm(&x[row * width], weight.data(), bias.data(), 1e-5f, width, &out[row * width]);
    }
    for (int row = 0; row < 3; ++row) {
      const float* values = x.data() + row * width;
      double mean = 0, variance = 0;
      for (int i = 0; i < width; ++i) mean += values[i] / double(width);
      for (int i = 0; i < width; ++i) variance += (values[i] - mean) * (values[i] - mean) / width;
      for (int i = 0; i < width; ++i) {
        const double wanted = (values[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i];
        EXPECT_NEAR(out[row * width + i], wanted, 2e-6 * (1 + std::abs(wanted))) << width;
      }
    }
  }
}

TEST_P(KernelsTest, RotateLeavesDimensionsPastTheTurningOnes) {
  const std::vector<float> x = Random(7, 16), ones(2, 1.0f);
  std::vector<float> out = x;
  kernels().Rotate(out.data(), ones.data(), ones.data(), 4);
  EXPECT_EQ(out[0], x[0] - x[2]);
  EXPECT_EQ(out[2], x[2] + x[0]);
  for (int i = 4; i < 16; ++i) EXPECT_EQ(out[i], x[i]);
}

TEST_P(KernelsTest, RotateTurnsEachPairByItsAngle) {
  for (const int head_dim : {2, 8, 24, 32, 64}) {
    const int half = head_dim / 2;
    const std::vector<float> x = Random(7, head_dim);
    std::vector<float> cosines(half), sines(half), out = x;
    for (int i = 0; i < half; ++i) {
      cosines[i] = static_cast<float>(std::cos(0.3 * i));
      sines[i] = static_cast<float>(std::sin(0.3 * i));
    }
    kernels().Rotate(out.data(), cosines.data(), sines.data(), head_dim);
    for (int i = 0; i < half; ++i) {
      EXPECT_NEAR(out[i], double(x[i]) * cosines[i] - double(x[i + half]) * sines[i], 1e-6);
      EXPECT_NEAR(out[i + half], double(x[i + half]) * cosines[i] + double(x[i]) * sines[i], 1e-6);
    }
  }
}

TEST_P(KernelsTest, SiluMulAgreesWithDouble) {
  for (const int width : {1, 8, 48, 108}) {
    const std::vector<float> gate_up = Random(8, 2 * 2 * width);
    std::vector<float> out(2 * width);
    for (int row = 0; row < 2; ++row) {
      const float* gate = &gate_up[row * 2 * width];
      kernels().SiluMul(gate, gate + width, width, &out[row * width]);
    }
    for (int row = 0; row < 2; ++row) {
      for (int i = 0; i < width; ++i) {
        const double gate = gate_up[row * 2 * width + i], up = gate_up[row * 2 * width + width + i];
        const double wanted = gate / (1 + std::exp(-gate)) * up;
        EXPECT_NEAR(out[row * width + i], wanted, 1e-6 * (1 + std::abs(wanted)));
      }
    }
  }
}

TEST_P(KernelsTest, GeluAgreesWithDoubleAndWithItselfAlone) {
  std::vector<float> x;
  for (int i = -6000; i <= 6001; ++i) x.push_back(static_cast<float>(i) * 0.002f);
  std::vector<float> exact = x, tanh = x;
  kernels().Gelu(x.data(), static_cast<int>(x.size()), exact.data());
  kernels().GeluTanh(x.data(), static_cast<int>(x.size()), tanh.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const double v = x[i];
    EXPECT_NEAR(exact[i], v * 0.5 * std::erfc(-v / std::sqrt(2.0)), 3e-7 * std::abs(v)) << v;
    const double u = std::sqrt(2.0 / std::acos(-1.0)) * (v + 0.044715 * v * v * v);
    EXPECT_NEAR(tanh[i], 0.5 * v * (1 + std::tanh(u)), 3e-7 * std::abs(v)) << v;
  }
  for (const size_t i : {0u, 5u, 2999u, 12001u}) {
    float one = x[i], other = x[i];
    kernels().Gelu(&one, 1, &one);
    kernels().GeluTanh(&other, 1, &other);
    EXPECT_EQ(one, exact[i]);
    EXPECT_EQ(other, tanh[i]);
  }
}

// Keys and values of one head in scattered blocks; slots that hold no token hold NaN, which must not be
// looked at.
struct ScatteredHead {
  ScatteredHead(int head_dim_in, int num_blocks)
      : head_dim(head_dim_in),
        data(size_t(num_blocks) * 2 * 16 * head_dim, std::numeric_limits<float>::quiet_NaN()) {}
  HeadCache cache() const {
    return {data.data(), data.data() + size_t(16) * head_dim, size_t(2) * 16 * head_dim};
  }
  void Put(int block, int slot, const float* key, const float* value) {
    float* at = data.data() + size_t(block) * 2 * 16 * head_dim;
    for (int d = 0; d < head_dim; ++d) {
      at[d * 16 + slot] = key[d];
      at[(16 + slot) * head_dim + d] = value[d];
    }
  }
  int head_dim;
  std::vector<float> data;
};

TEST_P(KernelsTest, AttendIsSoftmaxAttentionOverScatteredBlocks) {
  for (const int head_dim : {2, 8, 24, 32, 40, 64, 128}) {
    for (const int tokens : {1, 15, 16, 17, 100}) {
      const std::vector<float> query = Random(9, head_dim), keys = Random(10, tokens * head_dim),
                               values = Random(11, tokens * head_dim);
      ScatteredHead head(head_dim, 8);
      const std::vector<int> blocks = {5, 2, 7, 0, 1, 6, 3};
      for (int t = 0; t < tokens; ++t)
        head.Put(blocks[t / 16], t % 16, &keys[t * head_dim], &values[t * head_dim]);
      const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
      std::vector<float> scratch(kernels().AttentionScratch(tokens, head_dim)), out(head_dim);
      const AttentionQuery one{query.data(), blocks.data(), tokens, out.data()};
      kernels().Attend({&one, 1}, 0, head.cache(), head_dim, scale, scratch.data());

      std::vector<double> weights(tokens), wanted(head_dim);
      double sum = 0;
      for (int t = 0; t < tokens; ++t) {
        double dot = 0;
        for (int d = 0; d < head_dim; ++d) dot += double(query[d]) * keys[t * head_dim + d];
        sum += weights[t] = std::exp(dot * scale);
      }
      for (int t = 0; t < tokens; ++t) {
        for (int d = 0; d < head_dim; ++d) wanted[d] += weights[t] / sum * values[t * head_dim + d];
      }
      for (int d = 0; d < head_dim; ++d) EXPECT_NEAR(out[d], wanted[d], 5e-6) << head_dim << " " << tokens;
    }
  }
}

TEST_P(KernelsTest, CompanyInAttentionChangesNoBit) {
  for (const int head_dim : {8, 20, 32, 96}) {
    // Block 0 to 4 in common, then some of each one's own.
    constexpr int kQueries = 15;
    ScatteredHead head(head_dim, 5 + 3 * kQueries);
    const std::vector<float> keys = Random(1, 16 * 60 * head_dim), values = Random(2, 16 * 60 * head_dim),
                             query = Random(3, kQueries * head_dim);
    for (int t = 0; t < 16 * (5 + 3 * kQueries); ++t) {
      head.Put(t / 16, t % 16, &keys[t * head_dim], &values[t * head_dim]);
    }
    std::vector<std::vector<int>> blocks(kQueries);
    std::vector<float> alone(kQueries * head_dim), together(kQueries * head_dim),
        scratch(kernels().AttentionScratch(128, head_dim));
    for (int count = 1; count <= kQueries; ++count) {
      for (int shared : {0, 1, 5}) {
        std::vector<AttentionQuery> queries;
        for (int i = 0; i < count; ++i) {
          blocks[i] = {0, 1, 2, 3, 4, 5 + 3 * i, 6 + 3 * i, 7 + 3 * i};
          queries.push_back(
              {&query[i * head_dim], blocks[i].data(), 80 + (i * 11) % 48, &alone[i * head_dim]});
          kernels().Attend({&queries.back(), 1}, 0, head.cache(), head_dim, 0.2f, scratch.data());
          queries.back().out = &together[i * head_dim];
        }
        kernels().Attend(queries, shared, head.cache(), head_dim, 0.2f, scratch.data());
        EXPECT_TRUE(
            SameBits(std::span(together).first(count * head_dim), std::span(alone).first(count * head_dim)))
            << head_dim << " " << count << " " << shared;
      }
    }
  }
}

// What is not one chain (norms, softmax, exp) has the same bits for either width of vector too.
TEST(InstructionSetsTest, AgreeToTheBit) {
  const std::vector<const Kernels*> all = AllKernels();
  if (all.size() < 2) GTEST_SKIP() << "this processor has one of them only";
  const std::vector<float> x = Random(20, 4096), weight = Random(21, 4096);
  std::vector<int> blocks(8);
  for (int b = 0; b < 8; ++b) blocks[b] = (b * 5) % 8;
  const auto both = [&](size_t count, const auto& compute) {
    std::vector<float> outs[2];
    for (int i = 0; i < 2; ++i) {
      outs[i].resize(count);
      compute(*all[i], outs[i].data());
    }
    EXPECT_TRUE(SameBits(outs[0], outs[1])) << count;
  };
  for (const int width : {1, 7, 8, 9, 16, 23, 32, 60, 176, 768, 1021}) {
    both(width, [&](const Kernels& k, float* out) { k.RmsNorm(x.data(), weight.data(), 1e-5f, width, out); });
    both(width, [&](const Kernels& k, float* out) { k.SiluMul(x.data(), &x[width], width, out); });
    both(width, [&](const Kernels& k, float* out) {
      k.LayerNorm(x.data(), weight.data(), weight.data() + 9, 1e-5f, width, out);
    });
    both(width, [&](const Kernels& k, float* out) { k.Gelu(x.data(), width, out); });
    both(width, [&](const Kernels& k, float* out) { k.GeluTanh(x.data(), width, out); });
    both(1, [&](const Kernels& k, float* out) { *out = k.Dot(x.data(), weight.data(), width); });
    both(1, [&](const Kernels& k, float* out) {
      *out = static_cast<float>(k.LogSumExp(std::span(x).first(width)));
    });
    both(width, [&](const Kernels& k, float* out) {
      std::copy_n(x.data(), width, out);
      k.Exp(out, width);
    });
  }
  for (const int head_dim : {2, 8, 20, 24, 32, 64, 80, 128}) {
    both(head_dim, [&](const Kernels& k, float* out) {
      std::copy_n(x.data(), head_dim, out);
      k.Rotate(out, weight.data(), weight.data() + 200, head_dim);
    });
    ScatteredHead head(head_dim, 8);
    const std::vector<float> keys = Random(22, 128 * head_dim), values = Random(23, 128 * head_dim);
    for (int t = 0; t < 128; ++t) head.Put(t / 16, t % 16, &keys[t * head_dim], &values[t * head_dim]);
    both(size_t(9) * head_dim, [&](const Kernels& k, float* out) {
      std::vector<float> scratch(k.AttentionScratch(128, head_dim));
      std::vector<AttentionQuery> queries;
      for (int q = 0; q < 9; ++q) {
        queries.push_back({&x[q * head_dim], blocks.data(), 70 + 6 * q, out + q * head_dim});
      }
      k.Attend(queries, 4, head.cache(), head_dim, 0.2f, scratch.data());
    });
  }
}

TEST_P(KernelsTest, LogSumExpAgreesWithDouble) {
  for (const int count : {1, 63, 64, 65, 1000}) {
    const std::vector<float> x = Random(12, count);
    double sum = 0;
    for (const float value : x) sum += std::exp(static_cast<double>(value));
    EXPECT_NEAR(kernels().LogSumExp(x), std::log(sum), 3e-7);
  }
}

// What the sampler needs of a row of logits: each as its plain definition says, at every length.
TEST_P(KernelsTest, LogitsAreGoneOverAsTheirDefinitionsSay) {
  for (const int count : {1, 3, 7, 8, 17, 63, 1000}) {
    std::vector<float> x = Random(15, count);
    const float largest = *std::max_element(x.begin(), x.end());
    EXPECT_EQ(kernels().Largest(x), largest);
    for (const int i : {0, count / 2, count - 1}) {
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        const float was = std::exchange(x[i], bad);
        EXPECT_TRUE(std::isnan(kernels().Largest(x))) << i << " of " << count;
        x[i] = was;
      }
    }
    std::vector<float> weights(count), plain(count);
    kernels().Weights(x, largest, 1.7f, weights.data());
    for (int i = 0; i < count; ++i) plain[i] = (x[i] - largest) * 1.7f;
    kernels().Exp(plain.data(), count);
    EXPECT_TRUE(SameBits(weights, plain));

    double sums[4] = {};
    for (int i = 0; i < count; ++i) sums[i < count / 4 * 4 ? i % 4 : 0] += static_cast<double>(x[i]);
    EXPECT_EQ(kernels().Sum(x), (sums[0] + sums[1]) + (sums[2] + sums[3]));

    std::vector<int32_t> wanted, found(count);
    for (int i = 0; i < count; ++i) {
      if (x[i] >= x[0]) wanted.push_back(i);
    }
    found.resize(kernels().AtLeast(x, x[0], found.data()));
    EXPECT_EQ(found, wanted);
  }
}

TEST_P(KernelsTest, DotAgreesWithDouble) {
  for (const int count : {1, 7, 8, 60, 192}) {
    const std::vector<float> x = Random(13, count), y = Random(14, count);
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += double(x[i]) * y[i];
    EXPECT_NEAR(kernels().Dot(x.data(), y.data(), count), sum, 1e-5);
  }
}

}  // namespace
}  // namespace almost
