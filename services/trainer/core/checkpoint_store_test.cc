#include "services/trainer/core/checkpoint_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "common/base/scratch_folder.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class CheckpointStoreTest : public testing::Test {
 protected:
  void Write(int64_t step) {
    const std::vector<float> values = {static_cast<float>(step), 0.1f};
    const absl::Status status = store_.Write(step, "numerics", {{"third", 1.0 / 3.0}},
                                             {{"w", DType::kF32, {2}, std::as_bytes(std::span(values))}});
    ASSERT_TRUE(status.ok()) << status;
  }
  fs::path File(int64_t step, const char* name) const {
    char folder[32];
    std::snprintf(folder, sizeof folder, "step-%012d", static_cast<int>(step));
    return folder_ / folder / name;
  }
  static void Damage(const fs::path& file, std::streamoff offset_from_end) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(-offset_from_end, std::ios::end);
    const char byte = static_cast<char>(stream.get() ^ 1);
    stream.seekp(-offset_from_end, std::ios::end);
    stream.put(byte);
  }

  const ScratchFolder folder_;
  CheckpointStore store_{folder_};
  std::vector<std::string> damaged_;
};

TEST_F(CheckpointStoreTest, GivesBackExactlyWhatWasWritten) {
  Write(7);
  const auto latest = store_.Latest(&damaged_);
  ASSERT_TRUE(latest.ok()) << latest.status();
  ASSERT_TRUE(latest->has_value());
  EXPECT_EQ((*latest)->step, 7);
  EXPECT_EQ((*latest)->numerics_id, "numerics");
  EXPECT_EQ((*latest)->values.at("third").get<double>(), 1.0 / 3.0);
  EXPECT_THAT((*latest)->tensors->tensors().at("w").ToFloat(), ElementsAre(7.0f, 0.1f));
  EXPECT_THAT(damaged_, IsEmpty());
}

TEST_F(CheckpointStoreTest, KeepsTheLastTwo) {
  for (const int64_t step : {1, 2, 3, 12}) Write(step);
  EXPECT_FALSE(fs::exists(File(2, "state.json")));
  EXPECT_TRUE(fs::exists(File(3, "state.json")));
  EXPECT_EQ((*store_.Latest(&damaged_))->step, 12);
}

TEST_F(CheckpointStoreTest, HasNoneToBeginWith) { EXPECT_FALSE((*store_.Latest(&damaged_)).has_value()); }

TEST_F(CheckpointStoreTest, PassesOverADamagedOneByName) {
  for (const char* name : {"tensors.safetensors", "state.json"}) {
    Write(1);
    Write(2);
    Damage(File(2, name), 3);
    damaged_.clear();
    EXPECT_EQ((*store_.Latest(&damaged_))->step, 1) << name;
    EXPECT_THAT(damaged_, ElementsAre(HasSubstr(File(2, name).string())));
  }
}

TEST_F(CheckpointStoreTest, PassesOverATruncatedOne) {
  Write(1);
  Write(2);
  fs::resize_file(File(2, "tensors.safetensors"), 20);
  EXPECT_EQ((*store_.Latest(&damaged_))->step, 1);
}

// What a crash leaves while a checkpoint is on its way.
TEST_F(CheckpointStoreTest, IgnoresOneThatWasNotFinished) {
  Write(1);
  fs::create_directories(folder_ / "step-000000000002.new");
  EXPECT_EQ((*store_.Latest(&damaged_))->step, 1);
  Write(2);
  EXPECT_EQ((*store_.Latest(&damaged_))->step, 2);
}

}  // namespace
}  // namespace almost::trainer
