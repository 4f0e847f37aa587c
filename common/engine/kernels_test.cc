#include "common/engine/kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "common/base/random.h"

namespace almost::engine {
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

struct Shape {
  int outputs, inputs;
};
// Whole and partial panels, one and several input blocks.
constexpr Shape kShapes[] = {{1, 1}, {16, 8}, {17, 33}, {96, 64}, {301, 60}, {48, 1300}};

// The chain of fused multiply-adds that kernels.h promises, bit for bit.
TEST(MatMulTest, IsOneChainPerElementWhateverTheBlocking) {
  for (const auto [outputs, inputs] : kShapes) {
    const std::vector<float> w = Random(1, size_t(outputs) * inputs);
    const PackedMatrix packed(w, outputs, inputs);
    for (const int rows : {1, 2, 3, 5, 6, 7, 13, 64}) {
      const std::vector<float> x = Random(rows, size_t(rows) * inputs);
      const std::vector<float> start = Random(99, size_t(rows) * outputs);
      std::vector<float> out = start, wanted = start;
      MatMulAdd(x.data(), rows, packed, out.data());
      for (int m = 0; m < rows; ++m) {
        for (int n = 0; n < outputs; ++n) {
          float& sum = wanted[size_t(m) * outputs + n];
          for (int k = 0; k < inputs; ++k) {
            sum = std::fma(x[size_t(m) * inputs + k], w[size_t(n) * inputs + k], sum);
          }
        }
      }
      EXPECT_TRUE(SameBits(out, wanted)) << rows << " x " << inputs << " x " << outputs;
    }
  }
}

TEST(MatMulTest, StackedWeightsGiveWhatEachGives) {
  const int inputs = 40;
  const std::vector<float> a = Random(1, 10 * inputs), b = Random(2, 23 * inputs), x = Random(3, 4 * inputs);
  std::vector<float> out_a(4 * 10), out_b(4 * 23), stacked(4 * 33);
  MatMulAdd(x.data(), 4, PackedMatrix(a, 10, inputs), out_a.data());
  MatMulAdd(x.data(), 4, PackedMatrix(b, 23, inputs), out_b.data());
  MatMulAdd(x.data(), 4, PackedMatrix::Stack({a, b}, inputs), stacked.data());
  for (int row = 0; row < 4; ++row) {
    EXPECT_TRUE(SameBits(std::span(stacked).subspan(row * 33, 10), std::span(out_a).subspan(row * 10, 10)));
    EXPECT_TRUE(
        SameBits(std::span(stacked).subspan(row * 33 + 10, 23), std::span(out_b).subspan(row * 23, 23)));
  }
}

TEST(ExpTest, IsWithinTwoRoundings) {
  std::vector<float> x;
  for (double v = -87; v < 88; v += 0.0173) x.push_back(static_cast<float>(v));
  std::vector<float> y = x;
  Exp(y.data(), static_cast<int>(y.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double wanted = std::exp(static_cast<double>(x[i]));
    EXPECT_NEAR(y[i] / wanted, 1, 2e-7) << x[i];
  }
  float edges[3] = {0, -88, -std::numeric_limits<float>::infinity()};
  Exp(edges, 3);
  EXPECT_EQ(edges[0], 1);
  EXPECT_EQ(edges[1], 0);
  EXPECT_EQ(edges[2], 0);
}

TEST(ExpTest, DoesNotDependOnWhereAValueStands) {
  const std::vector<float> x = Random(4, 40);
  std::vector<float> together = x;
  Exp(together.data(), 40);
  for (int i = 0; i < 40; ++i) {
    float alone = x[i];
    Exp(&alone, 1);
    EXPECT_EQ(alone, together[i]) << i;
  }
}

// Tolerances below: a few roundings of 6e-8 over sums of at most a few hundred terms near 1.
TEST(RmsNormTest, AgreesWithDouble) {
  for (const int width : {1, 7, 8, 32, 60, 192}) {
    const std::vector<float> x = Random(5, 3 * width), weight = Random(6, width);
    std::vector<float> out(3 * width);
    RmsNorm(x.data(), weight.data(), 1e-5f, 3, width, out.data());
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
    RmsNorm(in_place.data(), weight.data(), 1e-5f, 3, width, in_place.data());
    EXPECT_TRUE(SameBits(in_place, out));
  }
}

TEST(LayerNormTest, AgreesWithDouble) {
  for (const int width : {1, 7, 8, 32, 60, 192}) {
    std::vector<float> x = Random(5, 3 * width);
    for (float& value : x) value += 2;  // a mean that matters
    const std::vector<float> weight = Random(6, width), bias = Random(9, width);
    std::vector<float> out(3 * width);
    LayerNorm(x.data(), weight.data(), bias.data(), 1e-5f, 3, width, out.data());
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
    std::vector<float> alone(width);
    LayerNorm(x.data() + 2 * width, weight.data(), bias.data(), 1e-5f, 1, width, alone.data());
    EXPECT_TRUE(SameBits(alone, {out.begin() + 2 * width, out.end()}));
  }
}

TEST(RotateTest, LeavesDimensionsPastTheTurningOnes) {
  const std::vector<float> x = Random(7, 16), ones(2, 1.0f);
  std::vector<float> out = x;
  Rotate(out.data(), ones.data(), ones.data(), 4);
  EXPECT_EQ(out[0], x[0] - x[2]);
  EXPECT_EQ(out[2], x[2] + x[0]);
  for (int i = 4; i < 16; ++i) EXPECT_EQ(out[i], x[i]);
}

TEST(RotateTest, TurnsEachPairByItsAngle) {
  for (const int head_dim : {2, 8, 24, 32, 64}) {
    const int half = head_dim / 2;
    const std::vector<float> x = Random(7, head_dim);
    std::vector<float> cosines(half), sines(half), out = x;
    for (int i = 0; i < half; ++i) {
      cosines[i] = static_cast<float>(std::cos(0.3 * i));
      sines[i] = static_cast<float>(std::sin(0.3 * i));
    }
    Rotate(out.data(), cosines.data(), sines.data(), head_dim);
    for (int i = 0; i < half; ++i) {
      EXPECT_NEAR(out[i], double(x[i]) * cosines[i] - double(x[i + half]) * sines[i], 1e-6);
      EXPECT_NEAR(out[i + half], double(x[i + half]) * cosines[i] + double(x[i]) * sines[i], 1e-6);
    }
  }
}

TEST(SiluMulTest, AgreesWithDouble) {
  for (const int width : {1, 8, 48, 108}) {
    const std::vector<float> gate_up = Random(8, 2 * 2 * width);
    std::vector<float> out(2 * width);
    SiluMul(gate_up.data(), 2, width, out.data());
    for (int row = 0; row < 2; ++row) {
      for (int i = 0; i < width; ++i) {
        const double gate = gate_up[row * 2 * width + i], up = gate_up[row * 2 * width + width + i];
        const double wanted = gate / (1 + std::exp(-gate)) * up;
        EXPECT_NEAR(out[row * width + i], wanted, 1e-6 * (1 + std::abs(wanted)));
      }
    }
  }
}

TEST(GeluTest, AgreesWithDoubleAndWithItselfAlone) {
  std::vector<float> x;
  for (int i = -6000; i <= 6001; ++i) x.push_back(static_cast<float>(i) * 0.002f);
  std::vector<float> exact = x, tanh = x;
  Gelu(exact.data(), exact.size());
  GeluTanh(tanh.data(), tanh.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double v = x[i];
    EXPECT_NEAR(exact[i], v * 0.5 * std::erfc(-v / std::sqrt(2.0)), 3e-7 * std::abs(v)) << v;
    const double u = std::sqrt(2.0 / std::acos(-1.0)) * (v + 0.044715 * v * v * v);
    EXPECT_NEAR(tanh[i], 0.5 * v * (1 + std::tanh(u)), 3e-7 * std::abs(v)) << v;
  }
  for (const size_t i : {0u, 5u, 2999u, 12001u}) {
    float one = x[i], other = x[i];
    Gelu(&one, 1);
    GeluTanh(&other, 1);
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

TEST(AttendTest, IsSoftmaxAttentionOverScatteredBlocks) {
  for (const int head_dim : {2, 8, 24, 32, 40, 64, 128}) {
    for (const int tokens : {1, 15, 16, 17, 100}) {
      const std::vector<float> query = Random(9, head_dim), keys = Random(10, tokens * head_dim),
                               values = Random(11, tokens * head_dim);
      ScatteredHead head(head_dim, 8);
      const std::vector<int> blocks = {5, 2, 7, 0, 1, 6, 3};
      for (int t = 0; t < tokens; ++t)
        head.Put(blocks[t / 16], t % 16, &keys[t * head_dim], &values[t * head_dim]);
      const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
      std::vector<float> scores(112), out(head_dim);
      const AttentionQuery one{query.data(), blocks.data(), tokens, scores.data(), out.data()};
      Attend({&one, 1}, 0, head.cache(), head_dim, scale);

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

TEST(AttendTest, CompanyChangesNoBit) {
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
    std::vector<float> alone(kQueries * head_dim), together(kQueries * head_dim), scores(kQueries * 128);
    for (int count = 1; count <= kQueries; ++count) {
      for (int shared : {0, 1, 5}) {
        std::vector<AttentionQuery> queries;
        for (int i = 0; i < count; ++i) {
          blocks[i] = {0, 1, 2, 3, 4, 5 + 3 * i, 6 + 3 * i, 7 + 3 * i};
          queries.push_back({&query[i * head_dim], blocks[i].data(), 80 + (i * 11) % 48, &scores[i * 128],
                             &alone[i * head_dim]});
          Attend({&queries.back(), 1}, 0, head.cache(), head_dim, 0.2f);
          queries.back().out = &together[i * head_dim];
        }
        Attend(queries, shared, head.cache(), head_dim, 0.2f);
        EXPECT_TRUE(
            SameBits(std::span(together).first(count * head_dim), std::span(alone).first(count * head_dim)))
            << head_dim << " " << count << " " << shared;
      }
    }
  }
}

TEST(LogSumExpTest, AgreesWithDouble) {
  for (const int count : {1, 63, 64, 65, 1000}) {
    const std::vector<float> x = Random(12, count);
    double sum = 0;
    for (const float value : x) sum += std::exp(static_cast<double>(value));
    EXPECT_NEAR(LogSumExp(x), std::log(sum), 3e-7);
  }
}

TEST(DotTest, AgreesWithDouble) {
  for (const int count : {1, 7, 8, 60, 192}) {
    const std::vector<float> x = Random(13, count), y = Random(14, count);
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += double(x[i]) * y[i];
    EXPECT_NEAR(Dot(x.data(), y.data(), count), sum, 1e-5);
  }
}

}  // namespace
}  // namespace almost::engine
