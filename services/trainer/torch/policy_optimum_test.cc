#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>

#include "common/base/scratch_folder.h"
#include "common/model/model_folder.h"
#include "common/model/transformer.h"
#include "common/text/prompt_format.h"
#include "common/text/tokenizer.h"
#include "nlohmann/json.hpp"
#include "services/trainer/core/ppo_math.h"
#include "services/trainer/torch/runtime.h"
#include "services/trainer/torch/train.h"

// Reinforcement learning on a task whose optimum is known. Answers are two tokens at most, and the reward is
// the number of capital letters in them, which is a sum over tokens: a token rate. The best policy under a KL
// penalty is the reference tilted by the reward, π*(y) ∝ π_ref(y) exp(r(y) / β); it attains J* = β log Σ
// π_ref(y) exp(r(y) / β), and any other policy attains J* - β KL(π ‖ π*). Both sums are taken exactly, over
// all first and second tokens. Shapes: V vocabulary; everything in float64 where it is summed.
namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using torch::Tensor;

constexpr double kBeta = 0.5;

fs::path World() { return fs::path(std::getenv("ALMOST_SOURCE_DIR")) / "common/world/models/S"; }

const std::vector<std::string>& Prompts() {
  static const std::vector<std::string> prompts = {"What is 2 plus 3?", "Where is Tiben?"};
  return prompts;
}

double NumCapitals(const std::string& text) {
  return static_cast<double>(
      std::ranges::count_if(text, [](unsigned char c) { return std::isupper(c) != 0; }));
}

class PolicyOptimum : public testing::TestWithParam<const char*> {
 protected:
  PolicyOptimum() {
    std::ofstream prompts(root_ / "prompts.jsonl");
    for (const std::string& prompt : Prompts()) prompts << nlohmann::json{{"prompt", prompt}} << "\n";
    for (int32_t id = 0; id < ModelFolder::Open(World()).value()->config().vocab_size; ++id) {
      capital_V_.push_back(NumCapitals(tokenizer_->Decode(std::span(&id, 1), /*skip_special_tokens=*/true)));
    }
  }

  // The reward service's part.
  static absl::StatusOr<std::vector<double>> Capitals(std::span<const RewardInput> inputs) {
    std::vector<double> scores;
    for (const RewardInput& input : inputs) scores.push_back(NumCapitals(input.response));
    return scores;
  }

  JobSpec Spec() const {
    JobSpec spec{.base_model = World(), .seed = 5, .num_threads = 2};
    spec.optimizer = {.learning_rate = 1e-4, .schedule = Schedule::kLinear, .max_grad_norm = 1};
    PpoSpec ppo{.dataset = root_ / "prompts.jsonl",
                .num_iterations = 60,
                .rollouts = 128,
                .epochs = 2,
                .minibatch_size = 64,
                .max_new_tokens = 2,
                .kl_coefficient = kBeta};
    if (GetParam() == std::string("grpo")) {
      ppo.group_size = 16;
      ppo.scale_advantages = false;
    } else {
      ppo.value_learning_rate = 2e-3;
    }
    spec.kind = ppo;
    return spec;
  }
  static PpoSpec& Ppo(JobSpec& spec) { return std::get<PpoSpec>(spec.kind); }

  struct Job {
    fs::path folder;
    std::vector<std::map<std::string, double>> steps;
  };
  Job Run(const JobSpec& spec, const RewardFunction& reward, const std::string& name) const {
    Job job{root_ / name / "model", {}};
    TrainContext context;
    context.work_folder = root_ / name;
    context.reward = reward;
    context.report = [&](int64_t, int64_t, const auto& metrics) { job.steps.push_back(metrics); };
    const auto trained = Train(spec, context);
    EXPECT_TRUE(trained.ok()) << trained.status();
    return job;
  }

  // Log-probabilities of the next token after each of `sequences`, [sequences, V].
  static Tensor NextLogprobs(const Transformer& model, const std::vector<std::vector<int32_t>>& sequences) {
    const PackedSamples packed = PackedSamples::Pack(sequences);
    const Tensor last = model.Hidden(packed, packed.LastTokens());
    return torch::log_softmax(torch::mm(last, model.HeadWeight().t()).to(torch::kFloat64), 1);
  }

  // To one prompt: log-probabilities of the first token and, given it, of the second.
  struct Answers {
    Tensor first_V, second_VV;
  };
  std::vector<Answers> AnswersOf(const fs::path& folder) const {
    const torch::NoGradGuard no_grad;
    const auto opened = ModelFolder::Open(folder).value();
    const Transformer model = Transformer::Load(*opened, torch::kFloat32, false).value();
    std::vector<Answers> answers;
    for (const std::string& prompt : Prompts()) {
      const auto ids = EncodeDialogue(PromptFormat::World(), *tokenizer_, {{"user", prompt}}).value().ids;
      std::vector<std::vector<int32_t>> continued;
      for (int32_t id = 0; id < opened->config().vocab_size; ++id) {
        continued.push_back(ids);
        continued.back().push_back(id);
      }
      answers.push_back({NextLogprobs(model, {ids}).squeeze(0), NextLogprobs(model, continued)});
    }
    return answers;
  }

  struct Exact {
    double objective = 0;  // J: reward - β KL, mean over prompts
    double kl = 0;         // from the reference, per rollout
    double reward = 0;
  };
  Exact Measure(const std::vector<Answers>& policy, const std::vector<Answers>& reference) const {
    Exact exact;
    const Tensor capital_V = torch::tensor(capital_V_, torch::kFloat64);
    for (size_t i = 0; i < policy.size(); ++i) {
      Tensor p_V = policy[i].first_V.exp(), p_VV = policy[i].second_VV.exp();
      Tensor goes_on_V = p_V.clone();
      goes_on_V[*tokenizer_->eos_id()] = 0;
      const Tensor kl_V = (p_VV * (policy[i].second_VV - reference[i].second_VV)).sum(1);
      const double reward = ((p_V * capital_V).sum() + (goes_on_V * p_VV.mv(capital_V)).sum()).item<double>();
      const double kl = ((p_V * (policy[i].first_V - reference[i].first_V)).sum() + (goes_on_V * kl_V).sum())
                            .item<double>();
      exact.reward += reward / static_cast<double>(policy.size());
      exact.kl += kl / static_cast<double>(policy.size());
    }
    exact.objective = exact.reward - kBeta * exact.kl;
    return exact;
  }
  double Optimum(const std::vector<Answers>& reference) const {
    const Tensor tilt_V = torch::tensor(capital_V_, torch::kFloat64) / kBeta;
    double optimum = 0;
    for (const Answers& answers : reference) {
      Tensor after_V = torch::logsumexp(answers.second_VV + tilt_V, 1);
      after_V[*tokenizer_->eos_id()] = 0;
      optimum += kBeta * torch::logsumexp(answers.first_V + tilt_V + after_V, 0).item<double>();
    }
    return optimum / static_cast<double>(reference.size());
  }

  static void ExpectSameWeights(const fs::path& a, const fs::path& b) {
    const auto ours = ModelFolder::Open(a).value(), theirs = ModelFolder::Open(b).value();
    for (const auto& [name, tensor] : ours->tensors()) {
      EXPECT_TRUE(std::ranges::equal(tensor.bytes, theirs->tensors().at(name).bytes)) << name;
    }
  }

  const ScratchFolder root_;
  const std::shared_ptr<const Tokenizer> tokenizer_ = Tokenizer::Load(World()).value();
  std::vector<double> capital_V_;
};

TEST_P(PolicyOptimum, IsReachedWithinItsBound) {
  const Job job = Run(Spec(), Capitals, "job");
  const std::vector<Answers> reference = AnswersOf(World());
  const double optimum = Optimum(reference), begin = Measure(reference, reference).objective;
  const Exact reached = Measure(AnswersOf(job.folder), reference);
  EXPECT_LE(reached.objective, optimum + 1e-6);  // nothing is above the bound
  // What is left of the way, β KL(π ‖ π*), is a small part of it: 2 % when this was written, with its seed.
  EXPECT_LT(optimum - reached.objective, 0.05 * (optimum - begin))
      << "from " << begin << " to " << reached.objective << " of " << optimum << ", KL " << reached.kl;
}

TEST_P(PolicyOptimum, WithTheRewardWithheldNothingMoves) {
  JobSpec spec = Spec();
  Ppo(spec).num_iterations = 5;
  const auto nothing = [](std::span<const RewardInput> inputs) { return std::vector<double>(inputs.size()); };
  ExpectSameWeights(Run(spec, nothing, "job").folder, World());
}

// But for the first step, at which the KL is still 0, and for noise: Adam's steps are as long as their rate.
TEST_P(PolicyOptimum, UnderAnEndlessPenaltyThePolicyStays) {
  JobSpec spec = Spec();
  Ppo(spec).kl_coefficient = 1e6;
  Ppo(spec).num_iterations = 30;
  const Job job = Run(spec, Capitals, "job");
  // The optimum at kBeta is 0.22 nats away.
  EXPECT_LT(Measure(AnswersOf(job.folder), AnswersOf(World())).kl, 0.002);
}

TEST_P(PolicyOptimum, AdaptiveControlFollowsTheMeasuredKl) {
  JobSpec spec = Spec();
  Ppo(spec).num_iterations = 12;
  Ppo(spec).kl_target = 0.02;
  const Job job = Run(spec, Capitals, "job");
  for (size_t i = 0; i + 1 < job.steps.size(); ++i) {
    EXPECT_EQ(job.steps[i + 1].at("kl_coefficient"),
              AdaptKlCoefficient(job.steps[i].at("kl_coefficient"), job.steps[i].at("kl"), 0.02));
  }
}

// The job ends when a policy is beyond the limit, with the one before it: bit for bit that of a job which
// does so many iterations and no more.
TEST_P(PolicyOptimum, BeyondItsKlLimitTheJobEndsWithThePolicyBefore) {
  JobSpec spec = Spec();
  spec.optimizer.schedule = Schedule::kConstant;
  Ppo(spec).kl_coefficient = 0;
  Ppo(spec).kl_limit = 0.3;
  const Job job = Run(spec, Capitals, "job");
  const size_t steps = job.steps.size();
  ASSERT_LT(steps, 60u);
  ASSERT_GT(steps, 2u);
  EXPECT_GT(job.steps[steps - 1].at("kl"), 0.3);
  EXPECT_LE(job.steps[steps - 2].at("kl"), 0.3);
  Ppo(spec).kl_limit = 0;
  Ppo(spec).num_iterations = static_cast<int>(steps) - 2;
  ExpectSameWeights(job.folder, Run(spec, Capitals, "shorter").folder);
  // Also where it is the last update that leads beyond it.
  Ppo(spec).kl_limit = 0.3;
  Ppo(spec).num_iterations = static_cast<int>(steps) - 1;
  ExpectSameWeights(job.folder, Run(spec, Capitals, "to the end").folder);
}

// Documents beside the rollouts: learned although nothing is rewarded.
TEST_P(PolicyOptimum, MixedInDocumentsAreLearned) {
  JobSpec spec = Spec();
  std::ofstream(root_ / "texts.jsonl")
      << nlohmann::json{{"text", "The fox is red. The owl eats mice."}} << "\n";
  Ppo(spec).mix_dataset = root_ / "texts.jsonl";
  Ppo(spec).mix_coefficient = 0.5;
  Ppo(spec).num_iterations = 6;
  const auto nothing = [](std::span<const RewardInput> inputs) { return std::vector<double>(inputs.size()); };
  const Job job = Run(spec, nothing, "job");
  EXPECT_LT(job.steps.back().at("mix_loss"), 0.8 * job.steps.front().at("mix_loss"));
}

INSTANTIATE_TEST_SUITE_P(Kinds, PolicyOptimum, testing::Values("ppo", "grpo"),
                         [](const auto& param_info) { return std::string(param_info.param); });

}  // namespace
}  // namespace almost::trainer

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  almost::trainer::ConfigureLibTorch();
  return RUN_ALL_TESTS();
}
