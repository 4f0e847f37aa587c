#include "services/trainer/torch/labeled_samples.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "common/base/random.h"
#include "services/trainer/torch/losses.h"

namespace almost::trainer {
namespace {

using torch::Tensor;

Transformer Load(const char* name, bool reward_head) {
  const auto path = std::filesystem::path(std::getenv("ALMOST_SOURCE_DIR")) / "tests/parity/goldens/models";
  return Transformer::Load(**ModelFolder::Open(path / name), torch::kFloat32, reward_head).value();
}

// Pairs of two prompts: three answers to one of 40 tokens, two to one of 70, the chosen ones first.
std::vector<Sample> Answers(int vocab) {
  RandomStream random(17);
  const auto some = [&](int count) {
    std::vector<int32_t> ids;
    for (int i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random.Below(vocab)));
    return ids;
  };
  const std::vector<int32_t> prompts[] = {some(40), some(70)};
  std::vector<Sample> samples;
  for (const auto& [prompt, length] : {std::pair(0, 30), {1, 5}, {0, 1}, {1, 64}, {0, 12}}) {
    Sample sample{.ids = prompts[prompt]};
    sample.is_target.assign(sample.ids.size(), false);
    for (const int32_t id : some(length)) sample.ids.push_back(id);
    sample.is_target.resize(sample.ids.size(), true);
    samples.push_back(std::move(sample));
  }
  return samples;
}

TEST(LabeledSamples, APromptIsThereOnceUpToTheTokenThatPredictsTheFirstTarget) {
  const std::vector<Sample> samples = Answers(100);
  std::vector<const Sample*> pointers;
  for (const Sample& sample : samples) pointers.push_back(&sample);
  const LabeledSamples packed = LabeledSamples::Pack(pointers);
  EXPECT_THAT(packed.packed.prefix_tokens, testing::ElementsAre(0, 0, 39, 69, 39));
  EXPECT_EQ(packed.packed.num_tokens(), 39 + 31 + 69 + 6 + 2 + 65 + 13);
  // What predicts and what is predicted: tokens one after the other, and each row once.
  EXPECT_EQ(packed.rows_M.size(0), 30 + 5 + 1 + 64 + 12);
  EXPECT_EQ(std::get<0>(torch::_unique(packed.rows_M)).size(0), packed.rows_M.size(0));
  int64_t target = 0;
  for (const Sample& sample : samples) {
    for (size_t t = 1; t < sample.ids.size(); ++t) {
      if (!sample.is_target[t]) continue;
      EXPECT_EQ(packed.packed.tokens_N[packed.rows_M[target]].item<int64_t>(), sample.ids[t - 1]);
      EXPECT_EQ(packed.packed.positions_N[packed.rows_M[target]].item<int64_t>(),
                static_cast<int64_t>(t) - 1);
      EXPECT_EQ(packed.targets_M[target++].item<int64_t>(), sample.ids[t]);
    }
  }
}

// Losses to the bit; gradients, which add up in another order, within what float32 itself is off by.
TEST(LabeledSamples, LossesOfAnswersThatShareAPromptAreThoseOfEachByItself) {
  const Tensor chosen_P = torch::tensor({0, 0, 1, 2}, torch::kInt64),
               rejected_P = torch::tensor({2, 4, 3, 4}, torch::kInt64);
  for (const bool is_dpo : {false, true}) {
    for (const bool adapters : {false, true}) {
      Transformer model = Load(is_dpo ? "llama" : "llama_reward", !is_dpo);
      const Transformer reference = Load("pythia", false);
      if (adapters) model.AddAdapters(3, 6, /*seed=*/1);
      model.RecomputeLayers();
      const std::vector<Sample> samples =
          Answers(std::min(model.config().vocab_size, reference.config().vocab_size));
      // By sample: its score, or the log-probability of its targets.
      const auto values = [&](const Transformer& of, const std::vector<std::vector<const Sample*>>& packs) {
        std::vector<Tensor> parts;
        for (const std::vector<const Sample*>& pack : packs) {
          const LabeledSamples packed = LabeledSamples::Pack(pack);
          parts.push_back(is_dpo ? packed.SumBySample(packed.Logprobs(of)) : of.Rewards(packed.packed));
        }
        return torch::cat(parts);
      };
      const auto run = [&](const std::vector<std::vector<const Sample*>>& packs) {
        for (const auto& [name, parameter] : model.parameters()) parameter.mutable_grad().reset();
        const Tensor values_S = values(model, packs);
        const Tensor chosen = values_S.index_select(0, chosen_P),
                     rejected = values_S.index_select(0, rejected_P);
        Tensor losses_P;
        if (is_dpo) {
          const torch::NoGradGuard no_grad;
          losses_P = values(reference, packs);
        }
        losses_P = is_dpo ? DpoLosses(chosen, rejected, losses_P.index_select(0, chosen_P),
                                      losses_P.index_select(0, rejected_P), 0.1)
                          : PairwiseRankingLosses(chosen, rejected, torch::zeros_like(chosen));
        losses_P.sum().backward();
        std::map<std::string, Tensor> gradients;
        for (const auto& [name, parameter] : model.parameters()) {
          if (parameter.grad().defined()) gradients[name] = parameter.grad();
        }
        return std::pair(losses_P.detach(), gradients);
      };
      std::vector<std::vector<const Sample*>> together(1), alone;
      for (const Sample& sample : samples) {
        together[0].push_back(&sample);
        alone.push_back({&sample});
      }
      const auto [losses, gradients] = run(together);
      const auto [wanted_losses, wanted] = run(alone);
      EXPECT_TRUE(losses.equal(wanted_losses)) << losses << wanted_losses;
      EXPECT_EQ(gradients.size(), wanted.size());
      for (const auto& [name, gradient] : wanted) {
        EXPECT_LE((gradients.at(name) - gradient).norm().item<double>(),
                  1e-5 * gradient.norm().item<double>())
            << name;
      }
    }
  }
}

}  // namespace
}  // namespace almost::trainer
