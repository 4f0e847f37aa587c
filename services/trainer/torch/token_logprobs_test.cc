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

// A vocabulary of which four rows of logits are held at a time, and one of which all are.
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
// with the bits that it has alone.
TEST_P(TokenLogprobsTest, FloatIsNearAndARowsBitsAreItsOwn) {
  const double temperature = 0.7;
  const auto run = [&](torch::ScalarType dtype) {
    const Tensor hidden = hidden_.detach().to(dtype).requires_grad_();
    const Tensor head = head_.detach().to(dtype).requires_grad_();
    const Tensor logprobs = TokenLogprobs(hidden, head, targets_, temperature);
    (logprobs * weights_).sum().backward();
    return std::vector<Tensor>{logprobs.detach(), hidden.grad(), head.grad()};
  };
  const std::vector<Tensor> found = run(torch::kFloat32), wanted = run(torch::kFloat64);
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_LT((found[i] - wanted[i]).norm().item<double>(), 1e-5 * wanted[i].norm().item<double>()) << i;
  }
  for (int64_t m = 0; m < kTargets; ++m) {
    const Tensor alone =
        TokenLogprobs(hidden_.detach().to(torch::kFloat32).narrow(0, m, 1),
                      head_.detach().to(torch::kFloat32), targets_.narrow(0, m, 1), temperature);
    EXPECT_TRUE(alone.equal(found[0].narrow(0, m, 1))) << m;
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, TokenLogprobsTest, testing::Values(1'000, 1'000'000));

}  // namespace
}  // namespace almost::trainer
