#include "services/trainer/rpc/job_spec_proto.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>

#include "common/base/scratch_folder.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class JobSpecProto : public testing::Test {
 protected:
  JobSpecProto() {
    fs::create_directories(root_ / "models" / "base");
    std::ofstream(root_ / "models" / "prompts.jsonl") << "{\"prompt\": \"a\"}\n";
    std::ofstream(root_ / "models" / "texts.jsonl") << "{\"text\": \"a\"}\n";
    store_ = ArtifactStore::Open(root_ / "store").value();
  }

  static v1::PpoSpec Rollouts() {
    v1::PpoSpec spec;
    spec.set_dataset("prompts.jsonl");
    spec.set_num_iterations(2);
    spec.set_rollouts(8);
    spec.set_epochs(1);
    spec.set_minibatch_size(4);
    spec.set_max_new_tokens(16);
    spec.set_reward_target("127.0.0.1:1");
    spec.set_reward_model("models/RM");
    return spec;
  }
  static v1::JobSpec Ppo() {
    v1::JobSpec job;
    job.set_base_model("base");
    job.mutable_optimizer()->set_learning_rate(1e-3);
    *job.mutable_ppo() = Rollouts();
    job.mutable_ppo()->set_value_learning_rate(1e-3);
    return job;
  }
  static v1::JobSpec Grpo() {
    v1::JobSpec job = Ppo();
    *job.mutable_grpo() = Rollouts();
    job.mutable_grpo()->set_group_size(4);
    return job;
  }
  absl::StatusOr<JobSpec> Read(const v1::JobSpec& job) const {
    return ReadJobSpec(job, store_.get(), root_ / "models");
  }
  void Refused(const v1::JobSpec& job, const std::string& field) const {
    const absl::Status status = Read(job).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
  }

  const ScratchFolder root_;
  std::shared_ptr<ArtifactStore> store_;
};

TEST_F(JobSpecProto, GrpoIsPpoWithGroupsAndWithoutAValueFunction) {
  const auto ppo = Read(Ppo()), grpo = Read(Grpo());
  ASSERT_TRUE(ppo.ok()) << ppo.status();
  ASSERT_TRUE(grpo.ok()) << grpo.status();
  EXPECT_STREQ(KindName(ppo->kind), "ppo");
  EXPECT_STREQ(KindName(grpo->kind), "grpo");
  EXPECT_TRUE(std::get<PpoSpec>(grpo->kind).scale_advantages);

  v1::JobSpec job = Grpo();
  job.mutable_grpo()->clear_group_size();
  Refused(job, "grpo.group_size");
  job = Grpo();
  job.mutable_grpo()->set_value_learning_rate(1);
  Refused(job, "grpo.value_learning_rate");
  job = Ppo();
  job.mutable_ppo()->set_group_size(4);
  Refused(job, "ppo.group_size");
}

TEST_F(JobSpecProto, WhatBelongsTogetherIsAskedForTogether) {
  v1::JobSpec job = Ppo();
  job.mutable_ppo()->set_mix_dataset("texts.jsonl");
  Refused(job, "ppo.mix_coefficient");
  job.mutable_ppo()->set_mix_coefficient(0.1);
  EXPECT_TRUE(Read(job).ok()) << Read(job).status();
  job.mutable_ppo()->set_mix_dataset("prompts.jsonl");
  Refused(job, "prompts.jsonl line 1: needs \"text\"");
  job = Ppo();
  job.mutable_ppo()->set_guard_digest("abc");
  Refused(job, "ppo.guard_digest");
}

// Whoever asks for a place learns of it before the job is trained.
TEST_F(JobSpecProto, AnOutputThatCannotBePlacedIsRefused) {
  v1::JobSpec job = Ppo();
  job.set_output("policies/new");
  EXPECT_TRUE(Read(job).ok()) << Read(job).status();
  for (const char* output : {".", "base/..", "../x", "/x", "prompts.jsonl"}) {
    job.set_output(output);
    Refused(job, "output: ");
  }
}

// Sums and products of counts stay within 64 bits.
TEST_F(JobSpecProto, ABudgetBeyondAllMemoryIsRefused) {
  for (const int64_t tokens : {std::numeric_limits<int64_t>::max(), int64_t{1} << 62, int64_t{-1}}) {
    v1::JobSpec job = Ppo();
    job.mutable_memory()->set_micro_batch_tokens(tokens);
    Refused(job, "memory.micro_batch_tokens");
  }
}

TEST_F(JobSpecProto, TheManifestPinsWhatTheJobBeganFromAndNamesNoPlace) {
  for (const bool grpo : {false, true}) {
    v1::JobSpec job = grpo ? Grpo() : Ppo();
    v1::PpoSpec& kind = grpo ? *job.mutable_grpo() : *job.mutable_ppo();
    const std::string elsewhere = ManifestRecipe(job)->dump();
    job.set_base_model("artifacts/b");
    job.set_output("policies/new");
    kind.set_dataset("artifacts/d");
    kind.set_mix_dataset("artifacts/m");
    kind.set_reward_source("artifacts/r");
    kind.set_value_model("artifacts/v");
    kind.set_guard_model("models/guard");
    EXPECT_EQ(ManifestRecipe(job)->dump(), elsewhere);
    EXPECT_THAT(
        ManifestInputs(job),
        testing::UnorderedElementsAre(testing::Pair("base_model", "b"), testing::Pair("dataset", "d"),
                                      testing::Pair("mix_dataset", "m"), testing::Pair("reward_model", "r"),
                                      testing::Pair("value_model", "v")));
  }
}

// A dataset is read from the store after every byte has been held against its hash.
TEST_F(JobSpecProto, ADamagedArtifactIsRefusedByName) {
  ArtifactDraft draft;
  draft.kind = "prompts";
  draft.files = {{"prompts.jsonl", "{\"prompt\": \"a\"}\n"}};
  const Artifact artifact = store_->Publish(draft).value();
  v1::JobSpec job = Ppo();
  job.mutable_ppo()->set_dataset("artifacts/" + artifact.digest);
  EXPECT_TRUE(Read(job).ok()) << Read(job).status();

  const fs::path object = root_ / "store" / "objects" / artifact.files[0].sha256;
  fs::permissions(object, fs::perms::owner_write, fs::perm_options::add);
  std::fstream(object, std::ios::in | std::ios::out) << "{\"prompt\": \"b";
  const auto opened = ArtifactStore::Open(root_ / "store");  // as a process that has not verified it yet
  const absl::Status status = ReadJobSpec(job, opened->get(), root_ / "models").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("ppo.dataset"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(artifact.files[0].sha256));
}

}  // namespace
}  // namespace almost::trainer
