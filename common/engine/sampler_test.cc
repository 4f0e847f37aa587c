#include "common/engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "common/base/random.h"

namespace almost::engine {
namespace {

std::vector<float> Logits(uint64_t seed, int count, double scale) {
  RandomStream stream(seed);
  std::vector<float> logits;
  for (int i = 0; i < count; ++i) logits.push_back(static_cast<float>(scale * stream.Normal()));
  return logits;
}

// engine.h in so many words, in double: the probabilities that are left, by token.
std::vector<double> PlainDistribution(const std::vector<float>& logits, const SamplingParams& params) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  std::vector<double> p(logits.size());
  for (size_t i = 0; i < p.size(); ++i) p[i] = std::exp((logits[i] - logits[order[0]]) / params.temperature);
  const auto normalize = [&] {
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& value : p) value /= sum;
  };
  if (params.top_k > 0) {
    for (size_t i = params.top_k; i < order.size(); ++i) p[order[i]] = 0;
  }
  normalize();
  double reached = 0;
  for (const int token : order) {
    if (reached >= params.top_p) p[token] = 0;
    reached += p[token];
  }
  for (double& value : p) {
    if (value < params.min_p * p[order[0]]) value = 0;
  }
  normalize();
  return p;
}

SamplingParams Params(double temperature, double top_p = 1, int top_k = 0, double min_p = 0) {
  return {.temperature = temperature,
          .top_p = top_p,
          .top_k = top_k,
          .min_p = min_p,
          .seed = 7,
          .logprobs = true};
}

TEST(SamplerTest, DrawsFromThePlainDistribution) {
  Sampler sampler;
  const SamplingParams cases[] = {
      Params(1),           Params(0.6),           Params(1, 0.9),           Params(1.3, 1, 20),
      Params(1, 1, 0, .1), Params(0.8, 0.7, 30),  Params(2, 0.95, 40, 0.2), Params(1, 0.5, 3, 0.01),
      Params(5, 0.99),     Params(1, 0.999, 250), Params(3, 0.9, 300, 0.02)};
  for (const SamplingParams& params : cases) {
    for (const double scale : {0.5, 3.0}) {
      const std::vector<float> logits = Logits(3, 300, scale);
      const std::vector<double> wanted = PlainDistribution(logits, params);
      std::vector<double> seen(logits.size());
      for (int i = 0; i < 5000; ++i) {
        const auto draw = sampler(logits, params, 0, i);
        ASSERT_TRUE(draw.has_value());
        ASSERT_GT(wanted[draw->token], 0) << "top_p " << params.top_p << " top_k " << params.top_k;
        // Float weights of relative error 2e-7 over a float division and a double sum.
        ASSERT_NEAR(draw->logprobs.sampled, std::log(wanted[draw->token]), 3e-6);
        seen[draw->token] += 1.0 / 5000;
      }
      // The distance of 5,000 draws over up to 300 tokens is at most about sqrt(300 / 5000) / 2 on average.
      double distance = 0;
      for (size_t t = 0; t < seen.size(); ++t) distance += std::abs(seen[t] - wanted[t]) / 2;
      EXPECT_LT(distance, 0.15) << "top_p " << params.top_p << " top_k " << params.top_k;
    }
  }
}

// Peaked and nearly flat distributions over a large vocabulary: however far down the cut lies, what is left
// is what a full sort leaves, to the token.
TEST(SamplerTest, KeepsOfALargeVocabularyWhatAFullSortKeeps) {
  Sampler sampler;
  for (const double scale : {0.001, 0.5, 2.0, 5.0, 20.0}) {
    const std::vector<float> logits = Logits(11, 20000, scale);
    for (const SamplingParams& params :
         {Params(1, 0.9), Params(1, 0.9999), Params(1, 1, 3000), Params(1, 1, 1), Params(1, 1, 0, 0.001),
          Params(1, 0.99, 15000, 0.01)}) {
      const std::vector<double> wanted = PlainDistribution(logits, params);
      for (int i = 0; i < 50; ++i) {
        const auto draw = sampler(logits, params, 0, i);
        ASSERT_GT(wanted[draw->token], 0) << scale << " top_p " << params.top_p << " top_k " << params.top_k;
        // Its share of the whole tells what else is kept; 20,000 float weights of relative error 2e-7.
        ASSERT_NEAR(draw->logprobs.sampled, std::log(wanted[draw->token]), 1e-5) << scale;
      }
    }
  }
}

TEST(SamplerTest, CutsWithinABucketOfEqualLogitsById) {
  // 40 equal logits, 40 hardly smaller ones: the nucleus of half the mass are the first 40 of them all.
  std::vector<float> logits(80);
  for (int i = 0; i < 80; ++i) logits[i] = i % 2 == 0 ? 1.0f : 0.9999f;
  Sampler sampler;
  for (int i = 0; i < 500; ++i) {
    EXPECT_EQ(sampler(logits, Params(1, 0.5), 0, i)->token % 2, 0);
    EXPECT_LT(sampler(logits, Params(1, 1, 10), 0, i)->token, 20);
    EXPECT_LT(sampler(logits, Params(1, 0.125), 0, i)->token, 22);
  }
}

TEST(SamplerTest, ModelLogprobIsOfTheUncutDistribution) {
  Sampler sampler;
  const std::vector<float> logits = Logits(5, 100, 2);
  const std::vector<double> whole = PlainDistribution(logits, Params(1));
  for (int i = 0; i < 20; ++i) {
    const auto draw = sampler(logits, Params(0.5, 0.8), 0, i);
    EXPECT_NEAR(draw->logprobs.model, std::log(whole[draw->token]), 2e-6);
  }
  EXPECT_NEAR(sampler(logits, Params(0), 0, 0)->logprobs.model,
              std::log(*std::max_element(whole.begin(), whole.end())), 2e-6);
}

TEST(SamplerTest, GreedyTakesTheSmallestIdAmongEquals) {
  Sampler sampler;
  const std::vector<float> logits = {0, 3, 1, 3};
  EXPECT_EQ(sampler(logits, Params(0), 0, 0)->token, 1);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(sampler(logits, Params(1, 1, 1), 0, i)->token, 1);
}

TEST(SamplerTest, DependsOnSeedCandidateAndPositionAlone) {
  const std::vector<float> logits = Logits(9, 500, 1);
  Sampler used, fresh;
  for (int i = 0; i < 100; ++i) used(Logits(i, 400, 5), Params(1, 0.9), 1, i);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(used(logits, Params(1, 0.95), 2, i)->token, fresh(logits, Params(1, 0.95), 2, i)->token);
  }
  int equal = 0;
  for (int i = 0; i < 100; ++i)
    equal += fresh(logits, Params(1), 0, i)->token == fresh(logits, Params(1), 1, i)->token;
  EXPECT_LT(equal, 20);
}

TEST(SamplerTest, RefusesLogitsThatAreNotFinite) {
  Sampler sampler;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    std::vector<float> logits = Logits(1, 20, 1);
    logits[13] = bad;
    EXPECT_FALSE(sampler(logits, Params(0), 0, 0).has_value());
    EXPECT_FALSE(sampler(logits, Params(1, 0.9), 0, 0).has_value());
  }
}

}  // namespace
}  // namespace almost::engine
