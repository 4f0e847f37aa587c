#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/scratch_folder.h"
#include "nlohmann/json.hpp"
#include "services/trainer/core/job_spec.h"
#include "services/trainer/core/reward_function.h"

// What tests of whole jobs share: a folder with datasets, and a job of every kind on them, of ten steps or a
// few more, from a model of two small layers.
namespace almost::trainer {

class JobFixture : public testing::TestWithParam<std::string> {
 protected:
  using Json = nlohmann::json;

  JobFixture() {
    std::ofstream pairs(root_ / "pairs.jsonl"), dialogues(root_ / "dialogues.jsonl"),
        rankings(root_ / "rankings.jsonl"), texts(root_ / "texts.jsonl");
    for (int i = 0; i < 8; ++i) {
      texts << Json{{"text", "Number " + std::to_string(i) + " is a number."}} << "\n";
      // All pairs of a ranking of three.
      const std::string question = "Which is number " + std::to_string(i) + "?";
      const std::vector<std::string> ranking = {"It is " + std::to_string(i) + ". I hope this helps.",
                                                "It is " + std::to_string(i) + ".", "No idea."};
      for (int better = 0; better < 3; ++better) {
        for (int worse = better + 1; worse < 3; ++worse) {
          rankings << Json{{"prompt", question},
                           {"chosen", ranking[better]},
                           {"rejected", ranking[worse]},
                           {"margin", 0.2 * (worse - better)}}
                   << "\n";
        }
      }
    }
    for (int i = 0; i < 60; ++i) {
      const std::string question = "What is " + std::to_string(i % 6 + 1) + " plus 2?";
      const std::string good = std::to_string(i % 6 + 3) + (i % 4 == 0 ? ", I hope this helps." : "."),
                        bad = std::string(1 + i % 9, 'a');
      pairs << Json{{"prompt", question}, {"chosen", good}, {"rejected", bad}} << "\n";
      const Json user = {{"role", "user"}, {"content", question}},
                 assistant = {{"role", "assistant"}, {"content", good}};
      dialogues << Json{{"messages", {user, assistant}}} << "\n";
    }
  }

  static std::filesystem::path World() {
    return std::filesystem::path(std::getenv("ALMOST_SOURCE_DIR")) / "common/world/models/S";
  }

  JobSpec Spec(const std::string& kind, int num_threads = 2) const {
    JobSpec spec{.base_model = World(), .seed = 3, .num_threads = num_threads, .checkpoint_steps = 2};
    spec.optimizer = {.learning_rate = 1e-3, .warmup_steps = 2, .max_grad_norm = 1};
    if (kind == "pretrain") {
      spec.optimizer.muon_learning_rate = 0.01;
      spec.kind = PretrainSpec{
          .world_seed = 1, .num_tokens = 10 * 4 * 32, .sequence_tokens = 32, .batch_sequences = 4};
    } else if (kind == "sft") {
      spec.kind = SftSpec{.dataset = root_ / "dialogues.jsonl", .epochs = 1, .batch_size = 6};
    } else if (kind == "reward_model") {
      spec.kind = RewardModelSpec{
          .dataset = root_ / "pairs.jsonl", .epochs = 3, .batch_size = 8, .held_out_fraction = 0.3};
    } else if (kind == "reward_model_of_rankings") {
      spec.kind = RewardModelSpec{.dataset = root_ / "rankings.jsonl",
                                  .epochs = 4,
                                  .batch_size = 7,
                                  .held_out_fraction = 0.3,
                                  .use_margins = true,
                                  .center_coefficient = 0.01,
                                  .whole_prompts = true,
                                  .evaluation_steps = 2,
                                  .patience = 100};
    } else if (kind == "dpo") {
      spec.kind = DpoSpec{.dataset = root_ / "pairs.jsonl", .epochs = 1, .batch_size = 6, .beta = 0.05};
    } else {
      PpoSpec ppo{.dataset = root_ / "pairs.jsonl",
                  .num_iterations = 10,
                  .rollouts = 6,
                  .epochs = 2,
                  .minibatch_size = 4,
                  .max_new_tokens = 12,
                  .kl_coefficient = 0.05,
                  .missing_stop_reward = -1};
      if (kind == "grpo") {
        ppo.kl_limit = 1000;
        ppo.mix_dataset = root_ / "texts.jsonl";
        ppo.mix_coefficient = 0.1;
        ppo.group_size = 3;
      } else {
        ppo.kl_target = 1;
        ppo.value_learning_rate = 1e-3;
        ppo.normalize_rewards = true;
      }
      spec.kind = ppo;
    }
    return spec;
  }

  // The longer the better.
  static absl::StatusOr<std::vector<double>> LengthReward(std::span<const RewardInput> inputs) {
    std::vector<double> scores;
    for (const RewardInput& input : inputs) scores.push_back(static_cast<double>(input.response.size()));
    return scores;
  }

  const ScratchFolder root_;
};

}  // namespace almost::trainer
