#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <numeric>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/base/sha256.h"
#include "common/model/model_folder.h"
#include "nlohmann/json.hpp"
#include "services/trainer/torch/gradients.h"
#include "services/trainer/torch/job_fixture.h"
#include "services/trainer/torch/rendezvous.h"
#include "services/trainer/torch/runtime.h"
#include "services/trainer/torch/train.h"
#include "services/trainer/torch/workers.h"

// Several processes that train one job over Gloo on loopback. Every rank is a child of the test.
namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string Bytes(const fs::path& file) {
  std::ifstream stream(file);
  EXPECT_TRUE(stream.good()) << file;
  return {std::istreambuf_iterator<char>(stream), {}};
}

// A bound socket of a port of its own.
struct Port {
  Port() : fd(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
    getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
    number = ntohs(address.sin_port);
  }
  ~Port() { close(fd); }
  int fd;
  int number;
};

// What a rank does when it has done `step` steps.
struct Mishap {
  int rank = -1;
  int64_t step = 0;
  enum { kKilled, kToldToStop, kToldToStopAfterCheckpoint } kind = kKilled;
};

class RanksTest : public JobFixture {
 protected:
  // Runs the job in `num_ranks` processes. Returns their statuses as codes, minus the signal of one that a
  // signal ended; rank 0's losses go beneath root_.
  std::vector<int> Run(const std::vector<JobSpec>& spec_by_rank, const std::string& work,
                       Mishap mishap) const {
    const int num_ranks = static_cast<int>(spec_by_rank.size());
    const Port port;
    std::vector<pid_t> children;
    for (int rank = 0; rank < num_ranks; ++rank) {
      children.push_back(fork());
      if (children.back() == 0) _exit(RunRank(spec_by_rank[rank], work, rank, num_ranks, port, mishap));
    }
    std::vector<int> codes;
    for (const pid_t child : children) {
      int status = 0;
      EXPECT_EQ(waitpid(child, &status, 0), child);
      codes.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    }
    return codes;
  }
  std::vector<int> Run(int num_ranks, const JobSpec& spec, const std::string& work,
                       Mishap mishap = {}) const {
    return Run(std::vector<JobSpec>(num_ranks, spec), work, mishap);
  }

  int RunRank(const JobSpec& spec, const std::string& work, int rank, int num_ranks, const Port& port,
              Mishap mishap) const {
    std::stop_source stop;
    TrainContext context;
    context.work_folder = root_ / work;
    context.stop = stop.get_token();
    std::ofstream losses(root_ / (work + ".losses"), std::ios::app);
    std::ofstream kls(root_ / (work + ".kls"), std::ios::app);
    for (std::ofstream* file : {&losses, &kls}) file->precision(17);
    context.report = [&](int64_t step, int64_t, const std::map<std::string, double>& metrics) {
      if (rank == 0) losses << metrics.at("loss") << std::endl;
      if (rank == 0 && metrics.contains("kl")) kls << metrics.at("kl") << std::endl;
      if (mishap.rank != rank || mishap.step != step) return;
      if (mishap.kind == Mishap::kKilled) raise(SIGKILL);
      if (mishap.kind == Mishap::kToldToStop) stop.request_stop();
    };
    context.checkpoint = [&](const CheckpointWork&) {
      if (mishap.rank == rank && mishap.kind == Mishap::kToldToStopAfterCheckpoint) stop.request_stop();
    };
    if (rank == 0) context.reward = LengthReward;
    Group group;
    std::unique_ptr<Rendezvous> rendezvous;
    if (num_ranks > 1) {
      rendezvous = Rendezvous::Open({.rank = rank,
                                     .world_size = num_ranks,
                                     .master_port = port.number,
                                     .listen_socket = rank == 0 ? dup(port.fd) : -1})
                       .value();
      if (rank == 0) {
        group = rendezvous->Call("job", MachineNumerics(torch::kCPU), {}, nullptr).value();
      } else {
        Rendezvous::Attempt attempt = rendezvous->Follow(MachineNumerics(torch::kCPU), {}).value();
        EXPECT_EQ(attempt.job, "job");
        group = std::move(attempt.group);
      }
    }
    context.group = &group;
    const absl::Status status = Train(spec, context).status();
    if (!status.ok()) std::cerr << "rank " << rank << ": " << status << "\n";
    EXPECT_EQ(group.lost(), absl::IsUnavailable(status));
    return static_cast<int>(status.code());
  }

  std::string Weights(const std::string& work) const {
    return Sha256(Bytes(root_ / work / "model" / "model.safetensors"));
  }
  std::vector<double> Losses(const std::string& work) const { return Numbers(work + ".losses"); }
  std::vector<double> Numbers(const std::string& name) const {
    std::ifstream file(root_ / name);
    return {std::istream_iterator<double>(file), {}};
  }
};

constexpr int kOk = static_cast<int>(absl::StatusCode::kOk);
constexpr int kLost = static_cast<int>(absl::StatusCode::kUnavailable);
constexpr int kStopped = static_cast<int>(absl::StatusCode::kCancelled);

// One thread a rank: the micro-batches are those of one process with two threads, and so are all sums'
// orders.
TEST_P(RanksTest, TwoRanksMakeTheBitsOfOneProcessWithTheSameMicroBatches) {
  for (const double max_grad_norm : {0.0, 0.5}) {
    JobSpec one = Spec(GetParam(), 2), two = Spec(GetParam(), 1);
    one.optimizer.max_grad_norm = two.optimizer.max_grad_norm = max_grad_norm;
    const std::string clipped = max_grad_norm > 0 ? "-clipped" : "";
    EXPECT_THAT(Run(1, one, "one" + clipped), testing::Each(kOk));
    EXPECT_THAT(Run(2, two, "two" + clipped), testing::Each(kOk));
    EXPECT_EQ(Weights("two" + clipped), Weights("one" + clipped));
    EXPECT_EQ(Losses("two" + clipped), Losses("one" + clipped));
    EXPECT_GE(Losses("two" + clipped).size(), 10);
  }
}

TEST_P(RanksTest, WhicheverRankIsKilledTheJobEndsWithTheSameBits) {
  const JobSpec spec = Spec(GetParam(), 1);
  EXPECT_THAT(Run(2, spec, "killed", {.rank = 0, .step = 1}), testing::ElementsAre(-SIGKILL, kLost));
  EXPECT_THAT(Run(2, spec, "killed", {.rank = 1, .step = 5}), testing::ElementsAre(kLost, -SIGKILL));
  EXPECT_THAT(Run(2, spec, "killed", {.rank = 0, .step = 7}), testing::ElementsAre(-SIGKILL, kLost));
  EXPECT_THAT(Run(2, spec, "killed"), testing::Each(kOk));
  EXPECT_THAT(Run(2, spec, "undisturbed"), testing::Each(kOk));
  EXPECT_EQ(Weights("killed"), Weights("undisturbed"));
  EXPECT_EQ(Bytes(root_ / "killed/model/almost.json"), Bytes(root_ / "undisturbed/model/almost.json"));
}

// However the model is held.
TEST_P(RanksTest, MemoryOptionsChangeNoneOfThis) {
  std::map<std::string, MemorySpec> options;
  options["bfloat16"].precision = Precision::kBfloat16;
  options["adapters"].adapters = MemorySpec::Adapters{.rank = 4, .alpha = 8};
  options["recomputed"].recompute_layers = true;
  options["recomputed"].micro_batch_tokens = 40;
  for (const auto& [name, memory] : options) {
    JobSpec one = Spec(GetParam(), 2), two = Spec(GetParam(), 1);
    one.memory = two.memory = memory;
    EXPECT_THAT(Run(1, one, name + "-one"), testing::Each(kOk));
    EXPECT_THAT(Run(2, two, name + "-two", {.rank = 1, .step = 5}), testing::ElementsAre(kLost, -SIGKILL));
    EXPECT_THAT(Run(2, two, name + "-two"), testing::Each(kOk));
    EXPECT_EQ(Weights(name + "-two"), Weights(name + "-one")) << name;
  }
  JobSpec plain = Spec(GetParam(), 2);
  plain.memory.micro_batch_tokens = 40;
  EXPECT_THAT(Run(1, plain, "plain"), testing::Each(kOk));
  EXPECT_EQ(Weights("recomputed-one"), Weights("plain")) << "recomputed";
  // 16-bit arithmetic strays from the losses by about its precision, but where it changes what a policy
  // draws: least with the same weights, and over all batches it learns as much. DPO's loss of a pair that it
  // tells apart is about exp(-margin), so that what rounding does to the margin is a share of the loss
  // whatever that has come down to: there it is a share of the first one, log 2. So it is with SFT's, which
  // here falls to a quarter: rounding is a share of the logits, and how much one batch feels of it depends on
  // the processor's order of sums.
  const std::vector<double> exact = Losses("plain"), near = Losses("bfloat16-one");
  const bool samples = GetParam() == "ppo" || GetParam() == "grpo";
  const bool of_first = GetParam() == "dpo" || GetParam() == "sft";
  if (!samples) {
    for (size_t i = 0; i < exact.size(); ++i) {
      EXPECT_NEAR(near[i], exact[i], 0.02 * (of_first ? exact[0] : exact[i])) << i;
    }
    const double total = std::accumulate(exact.begin(), exact.end(), 0.0);
    EXPECT_NEAR(near[0], exact[0], 0.005 * exact[0]);
    EXPECT_NEAR(std::accumulate(near.begin(), near.end(), 0.0), total, 0.02 * total);
  }
  // With adapters the reference is the policy before its first step, and checkpoints hold no base.
  if (samples) {
    const std::vector<double> kls = Numbers("adapters-one.kls");
    EXPECT_EQ(kls.front(), 0);
    EXPECT_NE(kls.back(), 0);
  }
  for (const auto& entry : fs::directory_iterator(root_ / "adapters-one" / "checkpoints")) {
    const auto file = SafetensorsFile::Open(entry.path() / "tensors.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    for (const auto& [name, tensor] : (*file)->tensors()) {
      EXPECT_TRUE(name.find(".lora_") != std::string::npos || name.find("value_") == 0 ||
                  name.find("score.weight") != std::string::npos)
          << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, RanksTest,
                         testing::Values("pretrain", "sft", "reward_model", "dpo", "ppo", "grpo"),
                         [](const auto& param_info) { return param_info.param; });

TEST_F(RanksTest, ARankThatIsToldToStopStopsAllWithACheckpoint) {
  const JobSpec spec = Spec("sft", 1);
  EXPECT_THAT(Run(2, spec, "job", {.rank = 1, .step = 3, .kind = Mishap::kToldToStop}),
              testing::Each(kStopped));
  EXPECT_TRUE(fs::exists(root_ / "job/checkpoints/step-000000000003"));
  EXPECT_THAT(Run(2, spec, "job"), testing::Each(kOk));
  EXPECT_EQ(Losses("job").size(), 10);
}

// After the ranks have agreed to go on with a step, which begins with its rollouts.
TEST_F(RanksTest, RolloutsThatAreBeingDrawnAreGivenUpWhicheverRankIsToldToStop) {
  const JobSpec spec = Spec("ppo", 1);
  for (const int rank : {0, 1}) {
    const std::string work = absl::StrCat("stopped-", rank);
    EXPECT_THAT(Run(2, spec, work, {.rank = rank, .kind = Mishap::kToldToStopAfterCheckpoint}),
                testing::Each(kStopped));
    EXPECT_EQ(Losses(work).size(), 2) << "the step after the checkpoint was done";
    EXPECT_THAT(Run(2, spec, work), testing::Each(kOk));
  }
  EXPECT_THAT(Run(2, spec, "undisturbed"), testing::Each(kOk));
  EXPECT_EQ(Weights("stopped-0"), Weights("undisturbed"));
  EXPECT_EQ(Weights("stopped-1"), Weights("undisturbed"));
}

TEST_F(RanksTest, MoreRanksAndThreads) {
  EXPECT_THAT(Run(1, Spec("sft", 3), "one"), testing::Each(kOk));
  EXPECT_THAT(Run(3, Spec("sft", 1), "three"), testing::Each(kOk));
  EXPECT_EQ(Weights("three"), Weights("one"));
  // Two threads a rank add up in another order than four of one process do.
  JobSpec of_four = Spec("sft", 4), of_two = Spec("sft", 2);
  // A step amplifies what rounding does to the gradient; at this rate it stays rounding for ten of them.
  of_four.optimizer.learning_rate = of_two.optimizer.learning_rate = 3e-4;
  EXPECT_THAT(Run(1, of_four, "four threads"), testing::Each(kOk));
  EXPECT_THAT(Run(2, of_two, "two by two"), testing::Each(kOk));
  const std::vector<double> four = Losses("four threads"), two_by_two = Losses("two by two");
  ASSERT_EQ(four.size(), 10);
  for (size_t i = 0; i < four.size(); ++i) EXPECT_NEAR(two_by_two[i], four[i], 1e-6 * four[i]) << i;
}

TEST_F(RanksTest, FewerMicroBatchesThanRanks) {
  JobSpec spec = Spec("sft", 1);
  std::get<SftSpec>(spec.kind).batch_size = 1;
  EXPECT_THAT(Run(1, spec, "one"), testing::Each(kOk));
  EXPECT_THAT(Run(2, spec, "two"), testing::Each(kOk));
  EXPECT_EQ(Weights("two"), Weights("one"));
}

TEST_F(RanksTest, RefusesToGoOnWithAnotherNumberOfRanks) {
  const JobSpec spec = Spec("sft", 1);
  EXPECT_THAT(Run(2, spec, "job", {.rank = 0, .step = 5}), testing::ElementsAre(-SIGKILL, kLost));
  EXPECT_THAT(Run(1, spec, "job"),
              testing::ElementsAre(static_cast<int>(absl::StatusCode::kFailedPrecondition)));
}

TEST_F(RanksTest, AnErrorOfOneRankEndsTheAttemptOfAll) {
  std::vector<JobSpec> specs(2, Spec("sft", 1));
  std::get<SftSpec>(specs[1].kind).dataset = root_ / "nowhere.jsonl";
  EXPECT_THAT(Run(specs, "job", {}),
              testing::ElementsAre(kLost, static_cast<int>(absl::StatusCode::kNotFound)));
}

TEST(WorkersTest, StartTogetherInAChildOfAProcessThatHasComputed) {
  at::set_num_threads(1);
  for (int child = 0; child < 50; ++child) {
    const pid_t pid = fork();
    if (pid == 0) {
      Workers workers(8);
      workers.Run([](int) {});
      _exit(0);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    ASSERT_EQ(status, 0) << "child " << child;
  }
}

TEST(ShareOutTest, RanksHoldAboutEquallyMuch) {
  std::vector<torch::Tensor> tensors;
  for (const int64_t size : {1, 1000, 500, 300, 200, 7, 1, 600, 400}) tensors.push_back(torch::empty({size}));
  std::vector<int64_t> held(3);
  const std::vector<int> owners = ShareOut(tensors, 3);
  for (size_t i = 0; i < tensors.size(); ++i) held[owners[i]] += tensors[i].numel();
  // 3,009 elements; the largest tensor has a third of them.
  EXPECT_THAT(held, testing::Each(testing::AllOf(testing::Ge(900), testing::Le(1100))));
  EXPECT_EQ(std::set(owners.begin(), owners.end()).size(), 3);
}

// The large leaf's gradient comes first, and has left when the backward pass gets to what lies before. Where
// it is sent from the second sum on: the first one tells in which order gradients come.
TEST(GradientsTest, AGradientIsSentWhileTheBackwardPassGoesOn) {
  const Port port;
  const auto run = [&](int rank) {
    const auto rendezvous = Rendezvous::Open({.rank = rank,
                                              .world_size = 2,
                                              .master_port = port.number,
                                              .listen_socket = rank == 0 ? dup(port.fd) : -1})
                                .value();
    Group group =
        rank == 0 ? rendezvous->Call("", "", {}, nullptr).value() : rendezvous->Follow("", {}).value().group;
    const torch::Tensor early = torch::ones({8}).requires_grad_();
    const torch::Tensor large = torch::ones({7 << 20}).requires_grad_();
    Workers workers(1);
    Gradients gradients(workers, group, {{early, large}}, {0, 1});
    std::vector<bool> sent;
    for (int round = 0; round < 2; ++round) {
      const std::vector<torch::Tensor> sums = gradients.Sum(2, [&](int, size_t i) {
        const torch::Tensor middle = early.sum() * static_cast<double>(i + 1);
        middle.register_hook([&](const torch::Tensor&) { sent.push_back(!large.grad().defined()); });
        return (large * middle).sum();
      });
      EXPECT_EQ(sums[rank].sum().item<double>(), 8.0 * (1 + 2) * (7 << 20));
      EXPECT_FALSE(sums[1 - rank].defined());
    }
    EXPECT_THAT(sent, testing::ElementsAre(false, true));
  };
  std::thread other(run, 1);
  run(0);
  other.join();
}

TEST(RendezvousTest, RefusesPlacesThatCannotBe) {
  const auto refuse = [](RankOptions options, const char* field) {
    const absl::Status status = Rendezvous::Open(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
  };
  refuse({.rank = 2, .world_size = 2}, "rank");
  refuse({.rank = 0, .world_size = 0}, "world_size");
  refuse({.rank = 1, .world_size = 2, .master_addr = ""}, "master_addr");
  refuse({.rank = 1, .world_size = 2, .master_port = 0}, "master_port");
  refuse({.rank = 1, .world_size = 2, .silence = absl::ZeroDuration()}, "rank_silence");
}

}  // namespace
}  // namespace almost::trainer

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  almost::trainer::ConfigureLibTorch();
  return RUN_ALL_TESTS();
}
