#include "common/storage/env.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/scratch_folder.h"
#include "common/storage/fault_env.h"

namespace almost {
namespace {

namespace fs = std::filesystem;

class EnvTest : public ::testing::Test {
 protected:
  const ScratchFolder folder_;
};

TEST_F(EnvTest, WritesAppendsAndReads) {
  Env* env = Env::Posix();
  ASSERT_TRUE(env->Write(folder_ / "a", "one").ok());
  ASSERT_TRUE(env->Append(folder_ / "a", std::string("\0two", 4)).ok());
  EXPECT_EQ(env->Read(folder_ / "a").value(), std::string("one\0two", 7));
  EXPECT_THAT(env->List(folder_).value(), ::testing::ElementsAre("a"));
  EXPECT_GT(env->FreeBytes(folder_).value(), 0);
}

TEST_F(EnvTest, NamesTheMissingFile) {
  const absl::Status status = Env::Posix()->Read(folder_ / "missing").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("missing"));
}

TEST_F(EnvTest, RefusesToLinkOverAFile) {
  Env* env = Env::Posix();
  ASSERT_TRUE(env->Write(folder_ / "a", "a").ok());
  ASSERT_TRUE(env->Write(folder_ / "b", "b").ok());
  EXPECT_EQ(env->Link(folder_ / "a", folder_ / "b").code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(EnvTest, AtomicWriteKeepsTheOldContentsUnderEveryFault) {
  for (const auto fault : {FaultEnv::Fault::kFull, FaultEnv::Fault::kBroken, FaultEnv::Fault::kTorn,
                           FaultEnv::Fault::kCrashed}) {
    for (int operation = 0; operation < 2; ++operation) {
      FaultEnv env;
      ASSERT_TRUE(env.WriteAtomically(folder_ / "a", "old contents").ok());
      env.FailAt(operation, fault);
      const absl::Status status = env.WriteAtomically(folder_ / "a", "new contents");
      EXPECT_EQ(status.code(), fault == FaultEnv::Fault::kFull ? absl::StatusCode::kResourceExhausted
                                                               : absl::StatusCode::kUnknown);
      EXPECT_EQ(env.Read(folder_ / "a").value(), "old contents");
      env.Heal();
      ASSERT_TRUE(env.WriteAtomically(folder_ / "a", "new contents").ok());
      EXPECT_EQ(env.Read(folder_ / "a").value(), "new contents");
    }
  }
}

}  // namespace
}  // namespace almost
