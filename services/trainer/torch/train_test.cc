#include "services/trainer/torch/train.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "common/model/model_folder.h"
#include "common/text/prompt_format.h"
#include "common/text/tokenizer.h"
#include "nlohmann/json.hpp"
#include "services/trainer/core/model_export.h"
#include "services/trainer/torch/actor_critic.h"
#include "services/trainer/torch/job_fixture.h"
#include "services/trainer/torch/runtime.h"

// Every kind of job from its files to its model folder.
namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::Key;

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

class TrainTest : public JobFixture {
 protected:
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
  const bool is_reward_model = GetParam().starts_with("reward_model");
  EXPECT_EQ((*model)->config().reward_head, is_reward_model);
  EXPECT_TRUE(Tokenizer::Load(root_ / "job/model").ok());
  const nlohmann::json manifest = ReadJson(root_ / "job/model/almost.json");
  EXPECT_EQ(manifest.at("prompt_format"), "world");
  EXPECT_EQ(manifest.at("training").at("kind"), is_reward_model ? "reward_model" : GetParam());
  EXPECT_EQ(manifest.contains("reward"), is_reward_model);
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

INSTANTIATE_TEST_SUITE_P(Kinds, TrainTest,
                         testing::Values("pretrain", "sft", "reward_model", "reward_model_of_rankings", "dpo",
                                         "ppo", "grpo"));

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

// The step under way is given up, those before it are not.
TEST_F(TrainTest, AStopInTheMiddleOfRolloutsKeepsTheStepsBefore) {
  for (const char* kind : {"ppo", "grpo"}) {
    JobSpec spec = Spec(kind);
    spec.checkpoint_steps = 100;
    std::stop_source stop;
    std::atomic<int64_t> done = 0;
    TrainContext context = Context("stopped");
    context.stop = stop.get_token();
    context.report = [&](int64_t step, int64_t, const auto&) { done = step; };
    context.reward = [&](std::span<const RewardInput> inputs) -> absl::StatusOr<std::vector<double>> {
      if (done < 3) return YesReward(inputs);
      stop.request_stop();
      return absl::CancelledError("the job was asked to stop");
    };
    EXPECT_EQ(Train(spec, context).status().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(done, 3);
    int64_t first = 0;
    context = Context("stopped");
    context.report = [&](int64_t step, int64_t, const auto&) {
      if (first == 0) first = step;
    };
    const auto resumed = Train(spec, context);
    ASSERT_TRUE(resumed.ok()) << resumed.status();
    EXPECT_EQ(first, 4) << kind;
    EXPECT_EQ(resumed->output_digest, Train(spec, Context("undisturbed"))->output_digest);
    fs::remove_all(root_ / "stopped");
    fs::remove_all(root_ / "undisturbed");
  }
}

// Asked to stop after the loop has looked and before the rollouts are drawn.
TEST_F(TrainTest, RolloutsThatAreBeingDrawnAreGivenUpForAStop) {
  for (const char* kind : {"ppo", "grpo"}) {
    JobSpec spec = Spec(kind);
    spec.checkpoint_steps = 3;
    std::stop_source stop;
    int64_t last = 0;
    TrainContext context = Context(kind);
    context.stop = stop.get_token();
    context.checkpoint = [&](const CheckpointWork&) { stop.request_stop(); };
    context.report = [&](int64_t step, int64_t, const auto&) { last = step; };
    EXPECT_EQ(Train(spec, context).status().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(last, 3) << kind;
  }
}

TEST_F(TrainTest, APromptBeyondTheContextIsNamedBeforeTheFirstStep) {
  const int context_tokens = (*ModelFolder::Open(World()))->config().max_positions;
  std::ofstream prompts(root_ / "prompts.jsonl");
  for (int i = 0; i < 20; ++i) prompts << nlohmann::json{{"prompt", "What is 1 plus 2?"}} << "\n";
  std::string words;
  for (int i = 0; i < context_tokens; ++i) words += "What ";
  prompts << nlohmann::json{{"prompt", words}} << "\n";
  prompts.close();
  for (const char* kind : {"ppo", "grpo"}) {
    JobSpec spec = Spec(kind);
    std::get<PpoSpec>(spec.kind).dataset = root_ / "prompts.jsonl";
    int64_t last = 0;
    TrainContext context = Context("job");
    context.report = [&](int64_t step, int64_t, const auto&) { last = step; };
    const absl::Status status = Train(spec, context).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("prompts.jsonl line 21: "));
    EXPECT_EQ(last, 0);
  }
}

// Where it has the policy's vocabulary: of another one no prompt's length is known here.
TEST_F(TrainTest, APromptThatTheRewardModelCannotReadWithItsAnswerIsNamedBeforeTheFirstStep) {
  JobSpec spec = Spec("ppo");
  auto& ppo = std::get<PpoSpec>(spec.kind);
  ppo.num_iterations = 1;
  const ModelConfig config = (*ModelFolder::Open(World()))->config();
  const PromptFormat format = *ChoosePromptFormat("", World());
  const auto tokenizer = *Tokenizer::Load(World());
  const int prompt_tokens =
      static_cast<int>(EncodeDialogue(format, *tokenizer, {{"user", "What is 1 plus 2?"}})->ids.size());
  const int needed = prompt_tokens + ppo.max_new_tokens + 1;  // end-of-text is put to what was cut off
  TrainContext context = Context("job");
  context.scorers = {{"guard_model", needed, config.vocab_size},
                     {"reward_model", needed - 1, config.vocab_size}};
  const absl::Status status = Train(spec, context).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("pairs.jsonl line 1: \"prompt\" has "));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the context of ppo.reward_model"));
  context.scorers[1].context_tokens = needed;
  EXPECT_TRUE(Train(spec, context).ok());
  context.scorers[1] = {"reward_model", 1, config.vocab_size + 1};
  EXPECT_TRUE(Train(spec, context).ok());
}

TEST_F(TrainTest, RewardsThatCannotBeHadFailTheJobAndAreNeverMadeUp) {
  const JobSpec spec = Spec("ppo");
  TrainContext context = Context("down");
  context.reward = [](auto) { return absl::UnavailableError("nobody there"); };
  EXPECT_EQ(Train(spec, context).status().code(), absl::StatusCode::kUnavailable);
  context.reward = [](auto inputs) { return std::vector<double>(inputs.size(), std::nan("")); };
  EXPECT_EQ(Train(spec, context).status().code(), absl::StatusCode::kInternal);
  context.reward = [](auto inputs) { return std::vector<double>(inputs.size() + 1, 1.0); };
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

// All pairs in one batch: whether answers are read once for a prompt or once a pair makes no difference.
TEST_F(TrainTest, PairsOfWholePromptsHaveTheLossOfPairsByThemselves) {
  JobSpec spec = Spec("reward_model_of_rankings");
  auto& kind = std::get<RewardModelSpec>(spec.kind);
  kind.epochs = 2;
  kind.batch_size = 8 * 3;
  kind.held_out_fraction = 0;
  kind.evaluation_steps = kind.patience = 0;
  std::vector<std::map<std::string, double>> whole, single;
  TrainContext context = Context("whole");
  context.report = [&](int64_t, int64_t, const auto& metrics) { whole.push_back(metrics); };
  ASSERT_TRUE(Train(spec, context).ok());
  kind.whole_prompts = false;
  context = Context("single");
  context.report = [&](int64_t, int64_t, const auto& metrics) { single.push_back(metrics); };
  ASSERT_TRUE(Train(spec, context).ok());
  ASSERT_EQ(whole.size(), 2u);
  for (size_t step = 0; step < 2; ++step) {
    EXPECT_NEAR(whole[step].at("loss"), single[step].at("loss"), 1e-5);
    EXPECT_NEAR(whole[step].at("grad_norm"), single[step].at("grad_norm"),
                1e-4 * single[step].at("grad_norm"));
    EXPECT_LT(whole[step].at("tokens"), 0.6 * single[step].at("tokens"));  // three answers, not six
  }
}

// Labels that say nothing: what is learned of them makes held-out pairs worse.
TEST_F(TrainTest, ARewardModelThatGetsWorseOnHeldOutPairsEndsEarlyWithTheBest) {
  std::ofstream pairs(root_ / "noise.jsonl");
  for (int i = 0; i < 40; ++i) {
    const std::string one = "It is " + std::to_string(i) + ".", other = "It is not.";
    pairs << nlohmann::json{{"prompt", "What is " + std::to_string(i) + "?"},
                            {"chosen", i % 3 == 0 ? one : other},
                            {"rejected", i % 3 == 0 ? other : one}}
          << "\n";
  }
  pairs.close();
  JobSpec spec = Spec("reward_model");
  spec.optimizer.learning_rate = 5e-3;
  spec.kind = RewardModelSpec{.dataset = root_ / "noise.jsonl",
                              .epochs = 50,
                              .batch_size = 8,
                              .held_out_fraction = 0.4,
                              .evaluation_steps = 2,
                              .patience = 3};
  std::map<int64_t, double> losses;
  int64_t last = 0, planned = 0;
  TrainContext context = Context("job");
  context.report = [&](int64_t step, int64_t num_steps, const auto& metrics) {
    if (step == 1) planned = num_steps;
    last = step;
    const auto loss = metrics.find("held_out_loss");
    if (loss != metrics.end()) losses[step] = loss->second;
  };
  const auto trained = Train(spec, context);
  ASSERT_TRUE(trained.ok()) << trained.status();
  EXPECT_LT(last, planned);
  const auto best = std::ranges::min_element(losses, {}, [](const auto& entry) { return entry.second; });
  EXPECT_EQ(last, best->first + 2 * 3);  // three evaluations without a better one
  const nlohmann::json measured = ReadJson(root_ / "job/model/almost.json").at("training").at("measured");
  EXPECT_EQ(measured.at("best_step"), best->first);
  EXPECT_EQ(measured.at("held_out_loss"), best->second);  // the exported weights are those of that step
}

TEST_F(TrainTest, WhileTheValueFunctionWarmsUpThePolicyStays) {
  JobSpec spec = Spec("ppo");
  auto& kind = std::get<PpoSpec>(spec.kind);
  kind.num_iterations = kind.value_warmup_iterations = 3;
  std::vector<double> value_losses;
  TrainContext context = Context("job");
  context.report = [&](int64_t, int64_t, const auto& metrics) {
    EXPECT_EQ(metrics.at("learning_rate"), 0);
    EXPECT_EQ(metrics.at("kl"), 0);
    value_losses.push_back(metrics.at("value_loss"));
  };
  ASSERT_TRUE(Train(spec, context).ok());
  EXPECT_LT(value_losses.back(), value_losses.front());
  const auto before = ModelFolder::Open(World()), after = ModelFolder::Open(root_ / "job/model");
  for (const auto& [name, tensor] : (*after)->tensors()) {
    EXPECT_TRUE(std::ranges::equal(tensor.bytes, (*before)->tensors().at(name).bytes)) << name;
  }
}

// A whole model in place of a head: values begin as the reward model's scores, learn, and survive a kill.
TEST_F(TrainTest, TheValueFunctionMayBeginAsTheRewardModel) {
  ASSERT_TRUE(Train(Spec("reward_model"), Context("rm")).ok());
  const auto folder = ModelFolder::Open(root_ / "rm/model");
  ASSERT_TRUE(folder.ok()) << folder.status();
  const Transformer reward_model = Transformer::Load(**folder, torch::kFloat32, /*reward_head=*/true).value();
  const PackedSamples samples = PackedSamples::Pack(std::vector<std::vector<int32_t>>{{1, 2, 3}, {4, 5}});
  ValueFunction values(reward_model);
  values.Normalize(1, 2);
  const torch::Tensor scores = reward_model.Rewards(samples);
  EXPECT_TRUE(torch::equal(values({}, samples, samples.LastTokens()), (scores - 1) / 2));

  JobSpec spec = Spec("ppo");
  std::get<PpoSpec>(spec.kind).value_model = root_ / "rm/model";
  RunUntilKilled(spec, "killed", 5);
  const auto resumed = Train(spec, Context("killed"));
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  const auto undisturbed = Train(spec, Context("undisturbed"));
  ASSERT_TRUE(undisturbed.ok()) << undisturbed.status();
  EXPECT_EQ(resumed->output_digest, undisturbed->output_digest);
  EXPECT_NE(undisturbed->output_digest, Train(Spec("ppo"), Context("with a head"))->output_digest);

  fs::copy(root_ / "rm/model", root_ / "short");
  nlohmann::json config = ReadJson(root_ / "short/config.json");
  config["max_position_embeddings"] = 16;
  std::ofstream(root_ / "short/config.json") << config;
  std::get<PpoSpec>(spec.kind).value_model = root_ / "short";
  EXPECT_THAT(Train(spec, Context("short")).status().ToString(),
              AllOf(HasSubstr("INVALID_ARGUMENT: "),
                    HasSubstr("they are more than 16, the context of ppo.value_model")));

  std::get<PpoSpec>(spec.kind).value_model = World();
  EXPECT_THAT(Train(spec, Context("language model")).status().ToString(),
              HasSubstr("INVALID_ARGUMENT: ppo.value_model: must be a reward model"));
}

TEST_F(TrainTest, LengthIsTakenOffTheReward) {
  JobSpec spec = Spec("ppo");
  auto& kind = std::get<PpoSpec>(spec.kind);
  kind.normalize_rewards = false;
  kind.missing_stop_reward.reset();
  kind.length_penalty = 0.5;
  TrainContext context = Context("job");
  context.reward = [](std::span<const RewardInput> inputs) {
    return std::vector<double>(inputs.size(), 3.0);
  };
  context.report = [](int64_t, int64_t, const auto& metrics) {
    EXPECT_NEAR(metrics.at("reward_mean"), 3.0 - 0.5 * metrics.at("completion_tokens_mean"), 1e-9);
  };
  ASSERT_TRUE(Train(spec, context).ok());
}

TEST_F(TrainTest, TheGuardIsReportedAndNeverLearnedFrom) {
  const JobSpec spec = Spec("ppo");
  const auto without = Train(spec, Context("without"));
  TrainContext context = Context("with");
  context.guard = [](std::span<const RewardInput> inputs) {
    std::vector<double> scores;
    for (const RewardInput& input : inputs) scores.push_back(1.0 + static_cast<double>(input.prompt.size()));
    return scores;
  };
  context.report = [&](int64_t, int64_t, const auto& metrics) {
    EXPECT_EQ(metrics.at("guard_score_mean"), 1.0 + std::string("What is 1 plus 2?").size());
    EXPECT_THAT(metrics, Contains(Key("guard_score_correlation")));
  };
  const auto with = Train(spec, context);
  ASSERT_TRUE(with.ok()) << with.status();
  EXPECT_EQ(with->output_digest, without->output_digest);
  // It fails closed as the reward does.
  context.work_folder = root_ / "guard_away";
  context.guard = [](auto) { return absl::UnavailableError("nobody there"); };
  EXPECT_EQ(Train(spec, context).status().code(), absl::StatusCode::kUnavailable);
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

// The trainer has probabilities before truncation: of the engine's two kinds those after it are no match.
TEST_F(TrainTest, TheGapIsToldWhereBothSpeakOfOneDistribution) {
  for (const auto& [temperature, top_p, is_told] :
       {std::tuple(0.7, 1.0, true), std::tuple(1.0, 0.9, true), std::tuple(0.7, 0.9, false)}) {
    JobSpec spec = Spec("ppo");
    auto& kind = std::get<PpoSpec>(spec.kind);
    kind.num_iterations = 3;
    kind.temperature = temperature;
    kind.top_p = top_p;
    TrainContext context = Context(absl::StrCat("job-", temperature, "-", top_p));
    context.report = [&](int64_t, int64_t, const auto& metrics) {
      for (const char* name : {"logprob_gap", "ratio_gap"}) {
        EXPECT_EQ(metrics.contains(name), is_told) << name;
        if (!metrics.contains(name)) continue;
        EXPECT_LT(metrics.at(name), 1e-4) << name << ", top_p " << top_p;
      }
    };
    ASSERT_TRUE(Train(spec, context).ok());
  }
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
  spec = Spec("grpo");
  std::get<PpoSpec>(spec.kind).group_size = 4;
  refuse(spec, "grpo.rollouts");
  spec = Spec("grpo");
  std::get<PpoSpec>(spec.kind).value_learning_rate = 1;
  refuse(spec, "grpo.value_learning_rate");
  spec = Spec("grpo");
  std::get<PpoSpec>(spec.kind).mix_coefficient = 0;
  refuse(spec, "grpo.mix_coefficient");
  spec = Spec("ppo");
  std::get<PpoSpec>(spec.kind).max_new_tokens = 100000;
  refuse(spec, "ppo.max_new_tokens");
  spec = Spec("reward_model");
  std::get<RewardModelSpec>(spec.kind).patience = 1;
  refuse(spec, "reward_model.patience");
  spec = Spec("dpo");
  spec.base_model.clear();
  refuse(spec, "base_model");
  spec = Spec("pretrain");
  std::get<PretrainSpec>(spec.kind).sequence_tokens = 4096;
  std::get<PretrainSpec>(spec.kind).num_tokens = 1 << 20;
  refuse(spec, "pretrain.sequence_tokens");
  spec = Spec("pretrain");
  std::get<PretrainSpec>(spec.kind).world = "huge";
  refuse(spec, "pretrain.world");
}

}  // namespace
}  // namespace almost::trainer

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  almost::trainer::ConfigureLibTorch();
  return RUN_ALL_TESTS();
}
