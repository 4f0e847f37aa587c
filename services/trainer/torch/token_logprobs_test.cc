#include "services/trainer/torch/token_logprobs.h"

#include <gtest/gtest.h>

namespace almost::trainer {
namespace {

using torch::Tensor;

Tensor Formula(const std::vector<int64_t>& shape, double scale, double phase) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return (scale * torch::sin(torch::arange(count, torch::kFloat64) * 0.7 + phase))
      .view(shape)
      .requires_grad_();
}

// A vocabulary of which all logits are held, and one of which two rows at a time are and not all are kept.
class TokenLogprobsTest : public testing::TestWithParam<int64_t> {
 protected:
  static constexpr int64_t kHidden = 8, kTargets = 10;
  const int64_t vocab_ = GetParam();
  const Tensor hidden_ = Formula({kTargets, kHidden}, 1.0, 0), head_ = Formula({vocab_, kHidden}, 0.5, 1);
  const Tensor targets_ = torch::arange(kTargets) * (vocab_ / kTargets);
  const Tensor weights_ = Formula({kTargets}, 1.0, 2).detach();
};

TEST_P(TokenLogprobsTest, ThosePartByPartAreThoseOfAllLogitsAtOnce) {
  const double temperature = 0.7;
  const auto run = [&](const Tensor& logprobs) {
    (logprobs * weights_).sum().backward();
    const std::vector<Tensor> all = {logprobs.detach(), hidden_.grad().clone(), head_.grad().clone()};
    hidden_.mutable_grad().reset();
    head_.mutable_grad().reset();
    return all;
  };
  const std::vector<Tensor> found = run(TokenLogprobs(hidden_, head_, targets_, temperature));
  const std::vector<Tensor> wanted = run(torch::log_softmax(torch::mm(hidden_, head_.t()) / temperature, 1)
                                             .gather(1, targets_.unsqueeze(1))
                                             .squeeze(1));
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_LT((found[i] - wanted[i]).abs().max().item<double>(), 1e-12) << i;
  }
}

TEST_P(TokenLogprobsTest, AHeadThatIsNotTrainedGetsNoGradient) {
  const Tensor frozen = head_.detach();
  TokenLogprobs(hidden_, frozen, targets_).sum().backward();
  EXPECT_FALSE(frozen.grad().defined());
  EXPECT_TRUE(hidden_.grad().defined());
}

// Of 16-bit logits the softmax is float32: what is lost is their own rounding, 2^-9 of values up to 4.
TEST_P(TokenLogprobsTest, Bfloat16IsNear) {
  const Tensor found =
      TokenLogprobs(hidden_.detach().to(torch::kBFloat16), head_.detach().to(torch::kBFloat16), targets_);
  EXPECT_EQ(found.scalar_type(), torch::kFloat32);
  const Tensor wanted = TokenLogprobs(hidden_.detach(), head_.detach(), targets_);
  EXPECT_LT((found.to(torch::kFloat64) - wanted).abs().max().item<double>(), 0.05);
}

TEST_P(TokenLogprobsTest, EntropiesAreThoseOfAllLogitsAtOnce) {
  const Tensor logprobs = torch::log_softmax(torch::mm(hidden_, head_.t()), 1);
  const Tensor wanted = -(logprobs.exp() * logprobs).sum(1);
  EXPECT_LT((TokenEntropies(hidden_, head_) - wanted).abs().max().item<double>(), 1e-11);
}

// In float32 on the CPU by other arithmetic, over parts of the vocabulary: near those in double, and each row
// with the bits that it has alone, in both passes, whether its logits were kept or are computed again.
TEST_P(TokenLogprobsTest, FloatIsNearAndARowsBitsAreItsOwn) {
  const auto run = [&](torch::ScalarType dtype, int64_t first, int64_t rows) {
    const Tensor hidden = hidden_.detach().to(dtype).narrow(0, first, rows).clone().requires_grad_();
    const Tensor head = head_.detach().to(dtype).requires_grad_();
    const Tensor logprobs = TokenLogprobs(hidden, head, targets_.narrow(0, first, rows), /*temperature=*/0.7);
    (logprobs * weights_.narrow(0, first, rows)).sum().backward();
    return std::vector<Tensor>{logprobs.detach(), hidden.grad(), head.grad()};
  };
  const std::vector<Tensor> found = run(torch::kFloat32, 0, kTargets),
                            wanted = run(torch::kFloat64, 0, kTargets);
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_LT((found[i] - wanted[i]).norm().item<double>(), 1e-5 * wanted[i].norm().item<double>()) << i;
  }
  for (int64_t m = 0; m < kTargets; ++m) {
    const std::vector<Tensor> alone = run(torch::kFloat32, m, 1);
    EXPECT_TRUE(alone[0].equal(found[0].narrow(0, m, 1))) << m;
    EXPECT_TRUE(alone[1].equal(found[1].narrow(0, m, 1))) << m;
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, TokenLogprobsTest, testing::Values(1'000, 2'000'000));

}  // namespace
}  // namespace almost::trainer
