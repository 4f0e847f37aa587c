#include "services/trainer/core/model_flops.h"

#include <gtest/gtest.h>

namespace almost::trainer {
namespace {

ModelConfig SmallConfig() {
  ModelConfig config;
  config.vocab_size = 100;
  config.hidden_size = 8;
  config.intermediate_size = 24;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 2;
  return config;
}

// What each matrix takes, written out.
TEST(ForwardFlops, CountsEveryMatrixAndEveryPairOfTokens) {
  const double after = 2 * (8 * 8) + 2 * (3 * 8 * 24);  // o; gate, up, down
  double wanted = 0;
  for (const int tokens : {5, 1}) {
    for (int t = 0; t < tokens; ++t) {
      double layer = 2 * (8 * 8) + 2 * (2 * 8 * 4);  // q, k and v
      layer += (t + 1) * 4 * (2 * 2 + 2 * 2);        // per head: scores, weighted values
      wanted += 3 * layer + 2 * after;
    }
  }
  ModelConfig config = SmallConfig();
  EXPECT_EQ(ForwardFlops(config, std::vector<int64_t>{5, 1}, /*rows=*/4), wanted + 4 * (after + 2 * 8 * 100));
  config.reward_head = true;
  EXPECT_EQ(ForwardFlops(config, std::vector<int64_t>{5, 1}, /*rows=*/2), wanted + 2 * (after + 2 * 8));
}

}  // namespace
}  // namespace almost::trainer
