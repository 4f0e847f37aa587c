#include "common/serving/model_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "common/base/scratch_folder.h"

namespace almost {
namespace {

namespace fs = std::filesystem;

// A copy of the world's S beneath a root of its own.
class ModelRegistryTest : public testing::Test {
 protected:
  ModelRegistryTest() {
    fs::copy(fs::path(getenv("ALMOST_SOURCE_DIR")) / "common/world/models/S", root_ / "S",
             fs::copy_options::recursive);
  }

  void Write(const std::string& file, const std::string& contents) {
    std::ofstream(root_ / "S" / file) << contents;
  }
  // The model as its folder is now.
  std::shared_ptr<const ServedModel> Load() {
    prometheus::Registry metrics;
    ModelRegistry registry(ModelRegistry::Head::kLanguageModel, nullptr, root_, {}, metrics);
    const absl::Status status = registry.LoadAll({"S=S"});
    EXPECT_TRUE(status.ok()) << status;
    return registry.Find("models/S").value_or(nullptr);
  }

  const ScratchFolder root_;
};

// As folders of chat models have it: config.json, generation_config.json and the tokenizer each name another.
TEST_F(ModelRegistryTest, AnAnswerEndsAtTheEndOfTextOfEachFile) {
  Write("generation_config.json", R"({"eos_token_id": [7, 0]})");
  const std::shared_ptr<const ServedModel> model = Load();
  EXPECT_THAT(model->end_ids, testing::ElementsAre(0, 7));
  Write("tokenizer_config.json", R"({"eos_token": "."})");
  EXPECT_THAT(Load()->end_ids, testing::ElementsAre(0, 7, *model->tokenizer->TokenId(".")));
}

TEST_F(ModelRegistryTest, WhatTextBecomesTokensByIsPartOfTheDigest) {
  std::set<std::string> digests = {Load()->digest()};
  Write("README.md", "Nothing to a model.");
  EXPECT_EQ(Load()->digest(), *digests.begin());
  Write("almost.json", R"({"prompt_format": "paper"})");
  digests.insert(Load()->digest());
  Write("tokenizer_config.json",
        R"({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "add_bos_token": true})");
  digests.insert(Load()->digest());
  Write("generation_config.json", R"({"eos_token_id": 7})");
  digests.insert(Load()->digest());
  EXPECT_EQ(digests.size(), 4u);
}

}  // namespace
}  // namespace almost
