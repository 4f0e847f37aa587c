#include "common/model/model_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/base/scratch_folder.h"
#include "nlohmann/json.hpp"

namespace almost {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

fs::path Golden(const char* name) {
  return fs::path(std::getenv("ALMOST_SOURCE_DIR")) / "tests/parity/goldens/models" / name;
}

fs::path FreshFolder() {
  static const ScratchFolder folders;
  static int number = 0;
  const fs::path folder = folders / absl::StrCat(++number);
  fs::create_directory(folder);
  return folder;
}

fs::path CopyOf(const char* name) {
  const fs::path folder = FreshFolder();
  fs::copy(Golden(name), folder, fs::copy_options::recursive);
  return folder;
}

TEST(ModelFolderTest, DigestIsOfTheWeightsHoweverTheyAreSharded) {
  const auto sharded = ModelFolder::Open(Golden("llama"));
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, view] : (*sharded)->tensors()) {
    tensors.push_back({name, view.dtype, view.shape, view.bytes});
  }
  const fs::path folder = FreshFolder();
  ASSERT_TRUE(WriteModelFolder(folder, (*sharded)->config(), tensors).ok());
  const auto whole = ModelFolder::Open(folder);
  ASSERT_TRUE(whole.ok()) << whole.status();
  const auto again = ModelFolder::Open(folder);
  EXPECT_EQ((*whole)->digest(), (*again)->digest());
  EXPECT_EQ((*whole)->tensors().size(), (*sharded)->tensors().size());
  EXPECT_EQ((*whole)->digest(), (*sharded)->digest());

  std::vector<std::byte> changed(tensors[0].bytes.begin(), tensors[0].bytes.end());
  changed[0] ^= std::byte{1};
  tensors[0].bytes = changed;
  ASSERT_TRUE(WriteModelFolder(folder, (*sharded)->config(), tensors).ok());
  EXPECT_NE((*ModelFolder::Open(folder))->digest(), (*sharded)->digest());
}

TEST(ModelFolderTest, TensorSaysWhichOneIsMissingOrOfAnotherShape) {
  const auto folder = ModelFolder::Open(Golden("qwen2"));
  ASSERT_TRUE(folder.ok()) << folder.status();
  const std::vector<int64_t> shape = {96, 32}, other = {32, 96};
  EXPECT_TRUE((*folder)->Tensor("model.embed_tokens.weight", shape).ok());
  const absl::Status missing = (*folder)->Tensor("lm_head.weight", shape).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("lm_head.weight"));
  const absl::Status shaped = (*folder)->Tensor("model.embed_tokens.weight", other).status();
  EXPECT_EQ(shaped.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(shaped.message()), HasSubstr("[96, 32]"));
}

TEST(ModelFolderTest, NamesTheShardThatIsMissing) {
  const fs::path folder = CopyOf("llama");
  fs::remove(folder / "model-00002-of-00003.safetensors");
  const absl::Status status = ModelFolder::Open(folder).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model-00002-of-00003.safetensors"));
}

TEST(ModelFolderTest, NeverFollowsAShardOutOfItsFolder) {
  for (const char* shard :
       {"../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "pytorch_model.bin", ""}) {
    const fs::path folder = CopyOf("llama");
    const nlohmann::json index = {{"weight_map", {{"model.norm.weight", shard}}}};
    std::ofstream(folder / "model.safetensors.index.json") << index;
    EXPECT_EQ(ModelFolder::Open(folder).status().code(), absl::StatusCode::kDataLoss) << shard;
  }
}

TEST(ModelFolderTest, RefusesATensorInTwoShards) {
  const fs::path folder = CopyOf("llama");
  fs::copy_file(folder / "model-00001-of-00003.safetensors", folder / "model-00002-of-00003.safetensors",
                fs::copy_options::overwrite_existing);
  const absl::Status status = ModelFolder::Open(folder).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("in two files"));
}

TEST(ModelFolderTest, NamesTheFileThatIsNotThereOrDamaged) {
  const fs::path folder = FreshFolder();
  EXPECT_EQ(ModelFolder::Open(folder).status().code(), absl::StatusCode::kNotFound);
  fs::copy_file(Golden("qwen2") / "config.json", folder / "config.json");
  EXPECT_EQ(ModelFolder::Open(folder).status().code(), absl::StatusCode::kNotFound);
  std::ofstream(folder / "config.json") << "{\"model_type\": ";
  const absl::Status status = ModelFolder::Open(folder).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
}

}  // namespace
}  // namespace almost
