#include "common/model/transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>

#include "absl/strings/match.h"
#include "common/base/random.h"
#include "common/base/scratch_folder.h"
#include "common/model/differentiable_kernels.h"
#include "nlohmann/json.hpp"

namespace almost {
namespace {

namespace fs = std::filesystem;
using torch::Tensor;

fs::path Goldens() { return fs::path(std::getenv("ALMOST_SOURCE_DIR")) / "tests/parity/goldens/models"; }

nlohmann::json Expected(const std::string& name) {
  std::ifstream file(Goldens() / name / "expected.json");
  return nlohmann::json::parse(file);
}

Transformer LoadGolden(const std::string& name, torch::ScalarType dtype) {
  const auto folder = ModelFolder::Open(Goldens() / name);
  EXPECT_TRUE(folder.ok()) << folder.status();
  auto model = Transformer::Load(**folder, dtype, (*folder)->config().reward_head);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

Tensor Golden(const std::string& name, const std::string& tensor) {
  const auto file = SafetensorsFile::Open(Goldens() / name / "expected.safetensors");
  EXPECT_TRUE(file.ok()) << file.status();
  const TensorView& view = (*file)->tensors().at(tensor);
  Tensor out = torch::empty(view.shape, view.dtype == DType::kF64 ? torch::kFloat64 : torch::kFloat32);
  std::memcpy(out.data_ptr(), view.bytes.data(), view.bytes.size());
  return out;
}

Tensor Logits(const Transformer& model, const PackedSamples& samples) {
  return torch::linear(model.Hidden(samples), model.HeadWeight());
}

std::vector<std::vector<int32_t>> RandomSamples(std::vector<int> lengths, int vocab) {
  RandomStream random(17);
  std::vector<std::vector<int32_t>> samples;
  for (const int length : lengths) {
    samples.emplace_back();
    for (int i = 0; i < length; ++i) samples.back().push_back(static_cast<int32_t>(random.Below(vocab)));
  }
  return samples;
}

class TransformerParity : public testing::TestWithParam<std::string> {};

// In double precision both sides round at 1e-16 of values around 3, through a few dozen operations.
TEST_P(TransformerParity, LogitsAreThoseOfTransformersInDouble) {
  const nlohmann::json expected = Expected(GetParam());
  const std::vector<std::vector<int32_t>> samples = {expected["token_ids"]};
  const Tensor logits = Logits(LoadGolden(GetParam(), torch::kFloat64), PackedSamples::Pack(samples));
  const int64_t first = expected["first_position"];
  const Tensor wanted = Golden(GetParam(), "logits_f64");
  EXPECT_LT((logits.slice(0, first) - wanted).abs().max().item<double>(), 1e-8);
}

TEST_P(TransformerParity, LogitsAreThoseOfTransformersInFloat) {
  const nlohmann::json expected = Expected(GetParam());
  const std::vector<std::vector<int32_t>> samples = {expected["token_ids"]};
  const Tensor logits = Logits(LoadGolden(GetParam(), torch::kFloat32), PackedSamples::Pack(samples));
  const Tensor wanted = Golden(GetParam(), "logits_f32");
  const double worst = (logits.slice(0, expected["first_position"]) - wanted).abs().max().item<double>();
  EXPECT_LT(worst, 1e-4 * wanted.std().item<double>());
}

// Weights and activations in bfloat16, where each rounding is 2^-9 of a value: the logits are as far off as
// transformers' own in bfloat16, whose root mean square is 1 to 2 % of their spread here. A quarter is left
// to chance.
TEST_P(TransformerParity, Bfloat16IsAsFarOffAsThatOfTransformers) {
  const nlohmann::json expected = Expected(GetParam());
  const std::vector<std::vector<int32_t>> samples = {expected["token_ids"]};
  const torch::NoGradGuard no_grad;
  const Tensor half = Logits(LoadGolden(GetParam(), torch::kBFloat16), PackedSamples::Pack(samples));
  ASSERT_EQ(half.scalar_type(), torch::kBFloat16);
  const Tensor exact = Logits(LoadGolden(GetParam(), torch::kFloat64), PackedSamples::Pack(samples));
  const double error = (half.to(torch::kFloat64) - exact).square().mean().sqrt().item<double>();
  EXPECT_LT(error, 1.25 * expected["bfloat16_error"].get<double>());
}

// Packing changes neither what a sample computes nor its gradient: to rounding in double.
TEST_P(TransformerParity, PackedSamplesAreThoseAlone) {
  const Transformer model = LoadGolden(GetParam(), torch::kFloat64);
  const auto samples = RandomSamples({5, 1, 40, 12, 13, 40, 2}, model.config().vocab_size);
  const auto gradient = [&](const std::vector<std::vector<std::vector<int32_t>>>& batches) {
    for (const auto& [name, parameter] : model.parameters()) parameter.mutable_grad().reset();
    std::vector<Tensor> logits;
    for (const auto& batch : batches) {
      logits.push_back(Logits(model, PackedSamples::Pack(batch)));
      logits.back().square().sum().backward();
    }
    std::map<std::string, Tensor> gradients;
    for (const auto& [name, parameter] : model.parameters()) gradients[name] = parameter.grad();
    return std::pair(torch::cat(logits).detach(), gradients);
  };
  std::vector<std::vector<std::vector<int32_t>>> alone;
  for (const auto& sample : samples) alone.push_back({sample});
  const auto [packed_logits, packed_gradients] = gradient({samples});
  const auto [alone_logits, alone_gradients] = gradient(alone);
  EXPECT_LT((packed_logits - alone_logits).abs().max().item<double>(), 1e-12);
  for (const auto& [name, wanted] : alone_gradients) {
    const double scale = wanted.norm().item<double>();
    EXPECT_LT((packed_gradients.at(name) - wanted).norm().item<double>(), 1e-12 * scale) << name;
  }
}

// In float32 not a bit changes, whatever a sample is packed with: what training promises of its losses.
TEST_P(TransformerParity, PackedSamplesHaveTheBitsOfThoseAlone) {
  for (const torch::ScalarType type : {torch::kFloat32, torch::kBFloat16}) {
    const Transformer model = LoadGolden(GetParam(), type);
    const auto samples = RandomSamples({5, 1, 40, 12, 97, 13, 64, 2}, model.config().vocab_size);
    const PackedSamples packed = PackedSamples::Pack(samples);
    const torch::NoGradGuard no_grad;
    const Tensor hidden = model.Hidden(packed);
    if (!MultipliesOnKernels(hidden)) continue;  // oneDNN's products depend on the number of rows
    for (size_t s = 0; s < samples.size(); ++s) {
      const Tensor alone = model.Hidden(PackedSamples::Pack(std::span(&samples[s], 1)));
      EXPECT_TRUE(hidden.narrow(0, packed.offsets[s], alone.size(0)).equal(alone)) << type << " " << s;
    }
  }
}

// Three answers to one prompt, among samples with others: computed with the prompt once, what they get is
// what they get alone; in float32 to the bit. Gradients differ in the order of sums: by 1e-12 in double, by
// 1e-5 in float32, whose own error is of that size.
TEST_P(TransformerParity, AnswersThatShareAPromptAreThoseAlone) {
  for (const torch::ScalarType dtype : {torch::kFloat64, torch::kFloat32}) {
    Transformer model = LoadGolden(GetParam(), dtype);
    auto samples = RandomSamples({45, 9, 52, 80, 41, 100}, model.config().vocab_size);
    for (const size_t s : {2, 4}) std::copy_n(samples[0].begin(), 40, samples[s].begin());
    samples[5].resize(80);
    std::copy_n(samples[3].begin(), 70, samples[5].begin());
    const std::vector<int64_t> prompts = {40, 3, 40, 70, 40, 70};
    const PackedSamples packed = PackedSamples::Pack(samples, torch::kCPU, prompts);
    EXPECT_THAT(packed.prefix_tokens, testing::ElementsAre(0, 0, 40, 0, 40, 70));
    EXPECT_EQ(packed.num_tokens(), 45 + 9 + 12 + 80 + 1 + 10);
    const auto weights = [&](const Tensor& hidden) {
      return torch::sin(torch::arange(hidden.numel(), torch::kFloat64)).view_as(hidden).to(dtype);
    };
    const auto gradients = [&] {
      std::map<std::string, Tensor> found;
      for (const auto& [name, parameter] : model.parameters()) {
        if (parameter.grad().defined()) found[name] = parameter.grad();
        parameter.mutable_grad().reset();
      }
      return found;
    };
    std::vector<Tensor> alone;
    for (size_t s = 0; s < samples.size(); ++s) {
      const Tensor hidden = model.Hidden(PackedSamples::Pack(std::span(&samples[s], 1)));
      alone.push_back(hidden.slice(0, packed.prefix_tokens[s]));
      (alone.back() * weights(alone.back())).sum().backward();
    }
    const auto wanted = gradients();
    for (const bool recomputed : {false, true}) {
      if (recomputed) model.RecomputeLayers();
      const Tensor hidden = model.Hidden(packed);
      Tensor sum = torch::zeros({}, hidden.options());
      for (size_t s = 0; s < samples.size(); ++s) {
        const Tensor own = hidden.slice(0, packed.offsets[s], packed.offsets[s + 1]);
        EXPECT_LE((own - alone[s]).abs().max().item<double>(), dtype == torch::kFloat64 ? 1e-12 : 0.0) << s;
        sum = sum + (own * weights(own)).sum();
      }
      sum.backward();
      const auto found = gradients();
      EXPECT_EQ(found.size(), wanted.size());
      for (const auto& [name, gradient] : wanted) {
        EXPECT_LT((found.at(name) - gradient).norm().item<double>(),
                  (dtype == torch::kFloat64 ? 1e-12 : 1e-5) * gradient.norm().item<double>())
            << name;
      }
    }
  }
}

// Gradients of the sum of squared logits, by name; those not asked for are left out.
std::map<std::string, Tensor> Gradients(const Transformer& model, const PackedSamples& samples) {
  Logits(model, samples).square().sum().backward();
  std::map<std::string, Tensor> gradients;
  for (const auto& [name, parameter] : model.parameters()) {
    if (parameter.grad().defined()) gradients[name] = parameter.grad();
    parameter.mutable_grad().reset();
  }
  return gradients;
}

// States to the bit in float32.
TEST_P(TransformerParity, HiddenStatesOfSomeTokensAreThoseAmongAll) {
  for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
    for (const bool adapters : {false, true}) {
      Transformer model = LoadGolden(GetParam(), dtype);
      if (adapters) model.AddAdapters(3, 6, /*seed=*/1);
      auto samples = RandomSamples({70, 1, 64, 12, 75}, model.config().vocab_size);
      std::copy_n(samples[0].begin(), 66, samples[4].begin());
      const PackedSamples packed =
          PackedSamples::Pack(samples, torch::kCPU, std::vector<int64_t>{66, 0, 0, 0, 66});
      EXPECT_EQ(packed.num_tokens(), 70 + 1 + 64 + 12 + 9);
      // The last of the first two; of a whole block none; some of others, and of a shared prompt's first one.
      const Tensor rows = torch::tensor({69, 70, 138, 140, 146, 149, 155}, torch::kInt64);
      const auto run = [&](const Tensor& hidden_MD) {
        const Tensor weights =
            torch::sin(torch::arange(hidden_MD.numel(), torch::kFloat64)).view_as(hidden_MD);
        (hidden_MD * weights.to(dtype)).sum().backward();
        std::map<std::string, Tensor> found = {{"hidden", hidden_MD.detach()}};
        for (const auto& [name, parameter] : model.parameters()) {
          if (parameter.grad().defined()) found[name] = parameter.grad();
          parameter.mutable_grad().reset();
        }
        return found;
      };
      const auto wanted = run(model.Hidden(packed).index_select(0, rows));
      for (const bool recomputed : {false, true}) {
        if (recomputed) model.RecomputeLayers();
        const auto found = run(model.Hidden(packed, rows));
        EXPECT_EQ(found.size(), wanted.size());
        for (const auto& [name, tensor] : wanted) {
          const double tolerance = dtype == torch::kFloat64 ? 1e-12 : name == "hidden" ? 0.0 : 1e-5;
          EXPECT_LE((found.at(name) - tensor).norm().item<double>(), tolerance * tensor.norm().item<double>())
              << name;
        }
      }
    }
  }
}

TEST_P(TransformerParity, LayersComputedAgainGiveTheSameBits) {
  for (const bool adapters : {false, true}) {
    Transformer plain = LoadGolden(GetParam(), torch::kFloat32);
    if (adapters) plain.AddAdapters(3, 6, /*seed=*/1);
    Transformer again = plain.Replica();
    again.RecomputeLayers();
    const auto samples = PackedSamples::Pack(RandomSamples({5, 1, 40, 12}, plain.config().vocab_size));
    EXPECT_TRUE(torch::equal(again.Hidden(samples), plain.Hidden(samples)));
    // With frozen embeddings a layer's input asks for no gradient, its weights do.
    for (const bool frozen : {false, true}) {
      if (adapters && frozen) continue;
      for (const Transformer* model : {&plain, &again}) {
        if (frozen) model->parameters().at(model->config().names().embedding).set_requires_grad(false);
      }
      const auto wanted = Gradients(plain, samples), found = Gradients(again, samples);
      EXPECT_EQ(found.size(), wanted.size());
      for (const auto& [name, gradient] : wanted) {
        EXPECT_TRUE(torch::equal(found.at(name), gradient)) << name;
      }
    }
  }
}

TEST_P(TransformerParity, AdaptersBeginAsTheBaseAndMergeIntoIt) {
  const Transformer base = LoadGolden(GetParam(), torch::kFloat64);
  Transformer model = base.Replica();
  model.AddAdapters(3, 6, /*seed=*/1);
  const auto samples = PackedSamples::Pack(RandomSamples({5, 1, 40, 12}, base.config().vocab_size));
  EXPECT_TRUE(torch::equal(Logits(model, samples), Logits(base, samples)));

  const torch::NoGradGuard no_grad;
  const Transformer reference = model.Frozen();
  int adapted = 0;
  for (const auto& [name, parameter] : model.parameters()) {
    const bool is_adapter = name.find(".lora_") != std::string::npos;
    EXPECT_EQ(parameter.requires_grad(), is_adapter) << name;
    if (name.find(".lora_B") == std::string::npos) continue;
    parameter.detach().copy_(
        0.1 * torch::sin(torch::arange(parameter.numel(), torch::kFloat64)).view_as(parameter));
    ++adapted;
  }
  EXPECT_EQ(adapted, (base.config().is_neox() ? 4 : 7) * base.config().num_layers);
  EXPECT_GT((Logits(model, samples) - Logits(base, samples)).abs().max().item<double>(), 1e-3);
  // The reference is the base, in the same storage.
  EXPECT_TRUE(torch::equal(Logits(reference, samples), Logits(base, samples)));
  for (const auto& [name, parameter] : reference.parameters()) {
    EXPECT_EQ(parameter.data_ptr(), model.parameters().at(name).data_ptr()) << name;
  }
  // What is written has float32 values, so the folder is compared with a model of those.
  const auto merged = Transformer::Load(*model.InMemoryFolder(), torch::kFloat64, base.config().reward_head);
  ASSERT_TRUE(merged.ok()) << merged.status();
  const Tensor wanted = Logits(model, samples);
  EXPECT_LT((Logits(*merged, samples) - wanted).abs().max().item<double>(),
            1e-5 * wanted.abs().max().item<double>());
}

// Each of some dozen operations rounds to 2^-9 relative.
TEST_P(TransformerParity, Bfloat16IsNear) {
  const Transformer exact = LoadGolden(GetParam(), torch::kFloat64),
                    near = LoadGolden(GetParam(), torch::kBFloat16);
  const auto samples = PackedSamples::Pack(RandomSamples({5, 1, 40, 12}, exact.config().vocab_size));
  const Tensor wanted = Logits(exact, samples), found = Logits(near, samples).to(torch::kFloat64);
  EXPECT_LT((found - wanted).norm().item<double>(), 0.03 * wanted.norm().item<double>());
  const auto gradients = Gradients(exact, samples), rounded = Gradients(near, samples);
  for (const auto& [name, gradient] : gradients) {
    EXPECT_LT((rounded.at(name).to(torch::kFloat64) - gradient).norm().item<double>(),
              0.12 * gradient.norm().item<double>())
        << name;
  }
}

TEST_P(TransformerParity, Bfloat16IsNearWithASharedPrompt) {
  const Transformer exact = LoadGolden(GetParam(), torch::kFloat64),
                    near = LoadGolden(GetParam(), torch::kBFloat16);
  auto samples = RandomSamples({45, 52, 41}, exact.config().vocab_size);
  for (const size_t s : {1, 2}) std::copy_n(samples[0].begin(), 40, samples[s].begin());
  const PackedSamples packed =
      PackedSamples::Pack(samples, torch::kCPU, std::vector<int64_t>(samples.size(), 40));
  EXPECT_EQ(packed.num_tokens(), 45 + 12 + 1);
  const auto gradients = Gradients(exact, packed), rounded = Gradients(near, packed);
  for (const auto& [name, gradient] : gradients) {
    EXPECT_LT((rounded.at(name).to(torch::kFloat64) - gradient).norm().item<double>(),
              0.12 * gradient.norm().item<double>())
        << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, TransformerParity,
                         testing::Values("llama", "llama_gqa_llama3", "llama_linear_biases", "llama_yarn",
                                         "mistral", "mistral_window", "qwen2", "qwen3", "pythia",
                                         "neox_sequential"),
                         [](const testing::TestParamInfo<std::string>& model) { return model.param; });

TEST(Transformer, RewardsAreThoseOfTransformers) {
  for (const char* name : {"llama_reward", "pythia_reward"}) {
    const nlohmann::json expected = Expected(name);
    const std::vector<std::vector<int32_t>> sequences = expected["sequences"];
    const std::vector<double> wanted = expected["scores_f64"];
    const Transformer model = LoadGolden(name, torch::kFloat64);
    const PackedSamples samples = PackedSamples::Pack(sequences);
    const Tensor rewards = model.Rewards(samples);
    EXPECT_LT((rewards - torch::tensor(wanted, torch::kFloat64)).abs().max().item<double>(), 1e-8) << name;
  }
}

TEST(Transformer, SavedFolderIsTheSameModel) {
  for (const char* name : {"qwen3", "pythia"}) {
    for (const torch::ScalarType type : {torch::kFloat32, torch::kBFloat16}) {
      const Transformer model = LoadGolden(name, type);
      const ScratchFolder folder;
      ASSERT_TRUE(model.Save(folder).ok());
      const auto opened = ModelFolder::Open(folder);
      ASSERT_TRUE(opened.ok()) << opened.status();
      EXPECT_EQ((*opened)->digest(), model.InMemoryFolder()->digest());
      for (const auto& [tensor_name, tensor] : (*opened)->tensors()) {
        EXPECT_EQ(tensor.dtype, type == torch::kFloat32 ? DType::kF32 : DType::kBF16) << tensor_name;
      }
      const auto again = Transformer::Load(**opened, type, false);
      ASSERT_TRUE(again.ok()) << again.status();
      for (const auto& [parameter_name, parameter] : model.parameters()) {
        EXPECT_TRUE(torch::equal(parameter, again->parameters().at(parameter_name))) << parameter_name;
      }
    }
  }
}

TEST(Transformer, RewardHeadOfALanguageModelBeginsAtZero) {
  for (const char* name : {"llama", "pythia"}) {
    const auto folder = ModelFolder::Open(Goldens() / name);
    const auto model = Transformer::Load(**folder, torch::kFloat32, /*reward_head=*/true);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_TRUE(absl::EndsWith(model->config().architecture, "ForSequenceClassification"));
    EXPECT_FALSE(model->parameters().contains(model->config().names().language_head));
    EXPECT_EQ(model->parameters().at("score.weight").abs().sum().item<double>(), 0);
  }
}

TEST(Transformer, RefusesARewardModelAsLanguageModel) {
  const auto folder = ModelFolder::Open(Goldens() / "llama_reward");
  EXPECT_EQ(Transformer::Load(**folder, torch::kFloat32, false).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(Transformer, FreshWeightsAreAFunctionOfTheSeed) {
  for (const char* name : {"llama", "pythia"}) {
    const ModelConfig config = (*ModelFolder::Open(Goldens() / name))->config();
    const auto digest = [&](uint64_t seed) {
      return Transformer::Initialize(config, torch::kFloat32, seed).InMemoryFolder()->digest();
    };
    EXPECT_EQ(digest(1), digest(1));
    EXPECT_NE(digest(1), digest(2));
  }
}

TEST(Transformer, ReplicasShareWeightsAndNotGradients) {
  const Transformer model = LoadGolden("llama", torch::kFloat32);
  const Transformer replica = model.Replica();
  const auto samples = PackedSamples::Pack(RandomSamples({8}, model.config().vocab_size));
  Logits(replica, samples).sum().backward();
  const Tensor& weight = model.parameters().at("model.norm.weight");
  EXPECT_FALSE(weight.grad().defined());
  EXPECT_TRUE(replica.parameters().at("model.norm.weight").grad().defined());
  weight.detach().mul_(2);
  EXPECT_TRUE(torch::equal(weight, replica.parameters().at("model.norm.weight")));
}

}  // namespace
}  // namespace almost
