#include "services/trainer/torch/train.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "common/model/model_folder.h"
#include "common/text/tokenizer.h"
#include "nlohmann/json.hpp"
#include "services/trainer/torch/runtime.h"

// Every kind of job from its files to its model folder, on a model of two small layers.
namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using testing::Contains;
using testing::HasSubstr;
using testing::Key;

fs::path World() { return fs::path(std::getenv("ALMOST_SOURCE_DIR")) / "common/world/models/S"; }

nlohmann::json ReadJson(const fs::path& file) {
  std::ifstream stream(file);
  return nlohmann::json::parse(stream);
}

// Likes answers that say "yes", a little more than length.
absl::StatusOr<std::vector<double>> YesReward(std::span<const RewardInput> inputs) {
  std::vector<double> scores;
  for (const RewardInput& input : inputs) {
    scores.push_back((input.response.find("yes") != std::string::npos ? 1.0 : 0.0) +
                     0.01 * static_cast<double>(input.response.size()));
  }
  return scores;
}

class TrainTest : public testing::TestWithParam<std::string> {
 protected:
  TrainTest() {
    fs::remove_all(root_);
    fs::create_directories(root_);
    std::ofstream pairs(root_ / "pairs.jsonl"), dialogues(root_ / "dialogues.jsonl");
    for (int i = 0; i < 24; ++i) {
      const std::string question = "What is " + std::to_string(i % 6 + 1) + " plus 2?";
      const std::string good = std::to_string(i % 6 + 3) + ", I hope this helps.",
                        bad = std::string(1 + i % 9, 'a');
      pairs << nlohmann::json{{"prompt", question}, {"chosen", good}, {"rejected", bad}} << "\n";
      dialogues << nlohmann::json{{"messages",
                                   {{{"role", "user"}, {"content", question}},
                                    {{"role", "assistant"}, {"content", good}}}}}
                << "\n";
    }
  }

  JobSpec Spec(const std::string& kind) const {
    JobSpec spec{.base_model = World(), .seed = 3, .num_threads = 2, .checkpoint_steps = 2};
    spec.optimizer = {.learning_rate = 1e-3, .warmup_steps = 2, .max_grad_norm = 1};
    if (kind == "pretrain") {
      spec.optimizer.muon_learning_rate = 0.01;
      spec.kind = PretrainSpec{
          .world_seed = 1, .num_tokens = 8 * 4 * 32, .sequence_tokens = 32, .batch_sequences = 4};
    } else if (kind == "sft") {
      spec.kind = SftSpec{.dataset = root_ / "dialogues.jsonl", .epochs = 2, .batch_size = 6};
    } else if (kind == "reward_model") {
      spec.kind = RewardModelSpec{
          .dataset = root_ / "pairs.jsonl", .epochs = 4, .batch_size = 5, .held_out_fraction = 0.3};
    } else if (kind == "dpo") {
      spec.kind = DpoSpec{.dataset = root_ / "pairs.jsonl", .epochs = 2, .batch_size = 6};
    } else {
      spec.kind = PpoSpec{.dataset = root_ / "pairs.jsonl",
                          .num_iterations = 8,
                          .rollouts = 6,
                          .epochs = 2,
                          .minibatch_size = 4,
                          .max_new_tokens = 12,
                          .kl_coefficient = 0.05,
                          .kl_target = 1,
                          .value_learning_rate = 1e-3,
                          .missing_stop_reward = -1,
                          .normalize_rewards = true};
    }
    return spec;
  }

  TrainContext Context(const std::string& work) const {
    TrainContext context;
    context.work_folder = root_ / work;
    context.reward = YesReward;
    return context;
  }

  // Runs the job in a process of its own, which kills itself with -9 when `die_after` steps are reported.
  void RunUntilKilled(const JobSpec& spec, const std::string& work, int64_t die_after) const {
    const pid_t child = fork();
    if (child == 0) {
      TrainContext context = Context(work);
      context.report = [&](int64_t step, int64_t, const auto&) {
        if (step == die_after) raise(SIGKILL);
      };
      _exit(Train(spec, context).ok() ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  }

  const fs::path root_ = fs::path(testing::TempDir()) / ("train_test-" + std::to_string(getpid()));
};

// Children of fork first: LibTorch has no threads yet in this process then.
TEST_P(TrainTest, KilledAtAnyPointItEndsWithTheSameBits) {
  const JobSpec spec = Spec(GetParam());
  RunUntilKilled(spec, "killed", 1);  // before the first checkpoint
  RunUntilKilled(spec, "killed", 5);  // one step past a checkpoint
  RunUntilKilled(spec, "killed", 6);  // at a checkpoint's step, before it is written
  const auto resumed = Train(spec, Context("killed"));
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  const auto undisturbed = Train(spec, Context("undisturbed"));
  ASSERT_TRUE(undisturbed.ok()) << undisturbed.status();
  EXPECT_EQ(resumed->output_digest, undisturbed->output_digest);
  for (const char* file : {"config.json", "model.safetensors", "almost.json", "tokenizer_config.json"}) {
    std::ifstream a(root_ / "killed/model" / file), b(root_ / "undisturbed/model" / file);
    EXPECT_TRUE(std::equal(std::istreambuf_iterator<char>(a), {}, std::istreambuf_iterator<char>(b), {}))
        << file;
  }
}

TEST_P(TrainTest, StopsWithACheckpointWhenAskedAndGoesOn) {
  const JobSpec spec = Spec(GetParam());
  std::stop_source stop;
  TrainContext context = Context("stopped");
  context.stop = stop.get_token();
  context.report = [&](int64_t step, int64_t, const auto&) {
    if (step == 3) stop.request_stop();
  };
  EXPECT_EQ(Train(spec, context).status().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(fs::exists(root_ / "stopped/model"));
  int64_t first = 0;
  context = Context("stopped");
  context.report = [&](int64_t step, int64_t, const auto&) {
    if (first == 0) first = step;
  };
  ASSERT_TRUE(Train(spec, context).ok());
  EXPECT_EQ(first, 4);
}

TEST_P(TrainTest, WritesAModelFolderThatOpens) {
  const JobSpec spec = Spec(GetParam());
  std::map<std::string, double> last;
  TrainContext context = Context("job");
  context.report = [&](int64_t, int64_t, const auto& metrics) { last = metrics; };
  const auto trained = Train(spec, context);
  ASSERT_TRUE(trained.ok()) << trained.status();
  const auto model = ModelFolder::Open(root_ / "job/model");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->digest(), trained->output_digest);
  EXPECT_NE((*model)->digest(), (*ModelFolder::Open(World()))->digest());
  EXPECT_EQ((*model)->config().reward_head, GetParam() == "reward_model");
  EXPECT_TRUE(Tokenizer::Load(root_ / "job/model").ok());
  const nlohmann::json manifest = ReadJson(root_ / "job/model/almost.json");
  EXPECT_EQ(manifest.at("prompt_format"), "world");
  EXPECT_EQ(manifest.at("training").at("kind"), GetParam());
  EXPECT_EQ(manifest.contains("reward"), GetParam() == "reward_model");
  EXPECT_EQ(ReadJson(root_ / "job/model/tokenizer_config.json").contains("chat_template"),
            GetParam() != "pretrain");
  for (const char* name : {"loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second"}) {
    EXPECT_THAT(last, Contains(Key(name)));
  }
}

TEST_P(TrainTest, FrozenParametersKeepTheirBitsAndTheOthersMove) {
  JobSpec spec = Spec(GetParam());
  spec.optimizer.frozen = {"model.embed_tokens", "model.layers.0."};
  ASSERT_TRUE(Train(spec, Context("job")).ok());
  const auto before = ModelFolder::Open(World()), after = ModelFolder::Open(root_ / "job/model");
  for (const auto& [name, tensor] : (*after)->tensors()) {
    const auto old = (*before)->tensors().find(name);
    if (old == (*before)->tensors().end()) continue;  // a reward head
    const bool frozen = name.starts_with("model.embed_tokens") || name.starts_with("model.layers.0.");
    EXPECT_EQ(std::ranges::equal(tensor.bytes, old->second.bytes), frozen) << name;
  }
}

TEST_P(TrainTest, RefusesToGoOnWithOtherNumerics) {
  JobSpec spec = Spec(GetParam());
  RunUntilKilled(spec, "job", 5);
  spec.num_threads = 1;
  EXPECT_EQ(Train(spec, Context("job")).status().code(), absl::StatusCode::kFailedPrecondition);
}

INSTANTIATE_TEST_SUITE_P(Kinds, TrainTest, testing::Values("pretrain", "sft", "reward_model", "dpo", "ppo"));

TEST_F(TrainTest, ADamagedCheckpointIsNamedAndTheOneBeforeTaken) {
  const JobSpec spec = Spec("sft");
  RunUntilKilled(spec, "job", 5);
  std::ofstream(root_ / "job/checkpoints/step-000000000004/state.json", std::ios::app) << "x";
  std::string warning;
  int64_t first = 0;
  TrainContext context = Context("job");
  context.warn = [&](const std::string& message) { warning = message; };
  context.report = [&](int64_t step, int64_t, const auto&) {
    if (first == 0) first = step;
  };
  const auto resumed = Train(spec, context);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_THAT(warning, HasSubstr("step-000000000004"));
  EXPECT_EQ(first, 3);
  EXPECT_EQ(resumed->output_digest, Train(spec, Context("undisturbed"))->output_digest);
}

TEST_F(TrainTest, RewardsThatCannotBeHadFailTheJobAndAreNeverMadeUp) {
  const JobSpec spec = Spec("ppo");
  TrainContext context = Context("down");
  context.reward = [](auto) { return absl::UnavailableError("nobody there"); };
  EXPECT_EQ(Train(spec, context).status().code(), absl::StatusCode::kUnavailable);
  context.reward = [](auto inputs) { return std::vector<double>(inputs.size(), std::nan("")); };
  EXPECT_EQ(Train(spec, context).status().code(), absl::StatusCode::kInternal);
  context.reward = [](auto) { return std::vector<double>{1.0}; };
  EXPECT_EQ(Train(spec, context).status().code(), absl::StatusCode::kInternal);
  context.reward = nullptr;
  EXPECT_EQ(Train(spec, context).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(fs::exists(root_ / "down/model"));
}

TEST_F(TrainTest, AJobThatDivergesEndsWithItsStepAndLeavesNoModel) {
  JobSpec spec = Spec("sft");
  spec.optimizer.learning_rate = 1e30;
  spec.optimizer.warmup_steps = 0;
  TrainContext context = Context("diverges");
  int64_t last = 0;
  bool told = false;
  context.report = [&](int64_t step, int64_t, const auto&) { last = step; };
  context.not_finite = [&] { told = true; };
  const absl::Status status = Train(spec, context).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("step ", last + 1, ": the loss is ")));
  EXPECT_TRUE(told);
  EXPECT_FALSE(fs::exists(root_ / "diverges/model"));
}

TEST_F(TrainTest, TellsOfEveryCheckpoint) {
  using Operation = CheckpointWork::Operation;
  std::vector<Operation> operations;
  TrainContext context = Context("job");
  std::stop_source stop;
  context.stop = stop.get_token();
  context.checkpoint = [&](const CheckpointWork& work) {
    EXPECT_TRUE(work.status.ok()) << work.status;
    operations.push_back(work.operation);
  };
  context.report = [&](int64_t step, int64_t, const auto&) {
    if (step == 3) stop.request_stop();
  };
  EXPECT_EQ(Train(Spec("sft"), context).status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(operations, testing::ElementsAre(Operation::kWrite, Operation::kWrite));  // of steps 2 and 3
  operations.clear();
  context.stop = {};
  context.report = nullptr;
  ASSERT_TRUE(Train(Spec("sft"), context).ok());
  EXPECT_EQ(operations.front(), Operation::kRestore);
}

TEST_F(TrainTest, UtilisationIsAShareOfWhatTheMachineReaches) {
  TrainContext context = Context("job");
  context.report = [&](int64_t, int64_t, const auto& metrics) {
    EXPECT_GT(metrics.at("model_flop_utilisation_ratio"), 0);
    EXPECT_LT(metrics.at("model_flop_utilisation_ratio"), 1);
  };
  ASSERT_TRUE(Train(Spec("sft"), context).ok());
}

// Ratio 1 at the first update: rollouts and training agree on the same weights. Kernels differ, so bits do.
TEST_F(TrainTest, RolloutAndTrainerLogProbabilitiesAgree) {
  double worst = 0;
  TrainContext context = Context("job");
  context.report = [&](int64_t, int64_t, const auto& metrics) {
    worst = std::max(worst, metrics.at("logprob_gap"));
  };
  ASSERT_TRUE(Train(Spec("ppo"), context).ok());
  EXPECT_GT(worst, 0);
  EXPECT_LT(worst, 1e-4);
}

TEST_F(TrainTest, BadSpecsAreRefusedByField) {
  const auto refuse = [&](const JobSpec& spec, absl::string_view field) {
    const absl::Status status = Train(spec, Context("refused")).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(field)));
  };
  JobSpec spec = Spec("sft");
  spec.optimizer.learning_rate = 0;
  refuse(spec, "optimizer.learning_rate");
  spec = Spec("sft");
  spec.optimizer.frozen = {"model.embed_tokens", "model.layer.0"};
  refuse(spec, "model.layer.0");
  spec = Spec("sft");
  std::get<SftSpec>(spec.kind).max_tokens = 100000;
  refuse(spec, "sft.max_tokens");
  spec = Spec("ppo");
  std::get<PpoSpec>(spec.kind).minibatch_size = 7;
  refuse(spec, "ppo.minibatch_size");
  spec = Spec("dpo");
  spec.base_model.clear();
  refuse(spec, "base_model");
  spec = Spec("pretrain");
  std::get<PretrainSpec>(spec.kind).sequence_tokens = 4096;
  std::get<PretrainSpec>(spec.kind).num_tokens = 1 << 20;
  refuse(spec, "pretrain.sequence_tokens");
}

}  // namespace
}  // namespace almost::trainer

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  almost::trainer::ConfigureLibTorch();
  return RUN_ALL_TESTS();
}
