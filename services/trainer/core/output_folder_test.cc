#include "services/trainer/core/output_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "common/base/scratch_folder.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;

class OutputFolderTest : public testing::Test {
 protected:
  OutputFolderTest() {
    Write(model_ / "config.json", "new");
    Write(model_ / "model.safetensors", "weights");
    for (const char* name : {"S", "M"}) Write(root_ / "models" / name / "config.json", "old");
    Write(root_ / "S.new" / "config.json", "another");
    Write(root_ / "data" / "prompts.jsonl", "{}");
    Write(root_ / "file", "text");
    fs::create_directories(root_ / "empty");
    Write(folder_ / "secret" / "config.json", "old");
    fs::create_directory_symlink(folder_ / "secret", root_ / "out");
    fs::create_directory_symlink(root_ / "nowhere", root_ / "dangling");
  }

  static void Write(const fs::path& file, const std::string& text) {
    fs::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  static std::string Read(const fs::path& file) {
    std::string text;
    std::getline(std::ifstream(file), text);
    return text;
  }
  // Every path beneath the folder, with the files' contents.
  std::map<std::string, std::string> Everything() const {
    std::map<std::string, std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(folder_)) {
      found[entry.path()] = entry.is_regular_file() ? Read(entry.path()) : "";
    }
    return found;
  }

  const ScratchFolder folder_;
  const fs::path root_ = folder_ / "root", model_ = folder_ / "work" / "model";
};

TEST_F(OutputFolderTest, WhatIsNoFolderOfAModelsOwnIsRefusedAndStays) {
  const auto before = Everything();
  for (const std::string& output :
       {std::string(), std::string("."), std::string("./"), std::string("models/.."), std::string("x/.."),
        std::string(".."), std::string("../x"), std::string("models/../../x"), (root_ / "x").string(),
        std::string("/x"), std::string("x\0y", 3), std::string("models"), std::string("models/"),
        std::string("data"), std::string("file"), std::string("file/x"), std::string("out"),
        std::string("out/x"), std::string("dangling")}) {
    for (const absl::Status& status :
         {OutputFolder(root_, output).status(), PlaceModel(model_, root_, output)}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << '"' << output << "\": " << status;
      EXPECT_THAT(std::string(status.message()), testing::StartsWith("output: "));
    }
    EXPECT_EQ(Everything(), before) << '"' << output << '"';
    if (Everything() != before) return;
  }
}

TEST_F(OutputFolderTest, AModelIsReplacedWholeAndAllElseStays) {
  for (const char* output : {"models/S", "fresh/deep", "empty", "S", "S/"}) {
    const absl::Status placed = PlaceModel(model_, root_, output);
    ASSERT_TRUE(placed.ok()) << placed;
    EXPECT_EQ(Read(root_ / output / "config.json"), "new");
    EXPECT_EQ(Read(root_ / output / "model.safetensors"), "weights");
  }
  EXPECT_EQ(Read(root_ / "models/M/config.json"), "old");
  EXPECT_EQ(Read(root_ / "S.new/config.json"), "another");
}

}  // namespace
}  // namespace almost::trainer
