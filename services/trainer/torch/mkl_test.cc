#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "services/trainer/torch/job_fixture.h"
#include "services/trainer/torch/runtime.h"
#include "services/trainer/torch/train.h"

// Jobs in float32 end with the same bits whatever MKL computes with: its bits depend on the processor's maker
// and are told apart by no numerics_id. Muon's products alone are MKL's, so pretraining is not among them.
namespace almost::trainer {
namespace {

class MklTest : public JobFixture {
 protected:
  // Of the job's model, trained in a process of its own: MKL reads its mode once.
  std::string Digest(const JobSpec& spec, const char* mode) const {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
      ConfigureLibTorch();
      setenv("MKL_CBWR", mode, /*overwrite=*/1);
      TrainContext context;
      context.work_folder = root_ / mode;
      context.reward = LengthReward;
      const auto trained = Train(spec, context);
      const std::string digest = trained.ok() ? trained->output_digest : trained.status().ToString();
      _exit(write(ends[1], digest.data(), digest.size()) == static_cast<ssize_t>(digest.size()) ? 0 : 1);
    }
    close(ends[1]);
    std::string digest(1000, ' ');
    digest.resize(std::max<ssize_t>(0, read(ends[0], digest.data(), digest.size())));
    close(ends[0]);
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    return digest;
  }
};

TEST_P(MklTest, ItsModeChangesNoBit) {
  JobSpec spec = Spec(GetParam());
  const std::string digest = Digest(spec, "AVX2,STRICT");
  EXPECT_EQ(digest.size(), 64) << digest;
  EXPECT_EQ(Digest(spec, "COMPATIBLE"), digest);
}

INSTANTIATE_TEST_SUITE_P(Kinds, MklTest,
                         testing::Values("sft", "reward_model", "reward_model_of_rankings", "dpo", "ppo",
                                         "grpo"));

}  // namespace
}  // namespace almost::trainer
