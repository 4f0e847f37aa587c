#include "clients/cli/recipe_file.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "clients/cli/yaml_file.h"
#include "common/base/scratch_folder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace almost::cli {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class ReadRecipeTest : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_ / "data"); }

  void Write(const std::string& name, const std::string& text) { std::ofstream(folder_ / name) << text; }

  absl::StatusOr<orchestrator::v1::Recipe> Read(const std::string& yaml, const std::string& judge = "") {
    Write("recipe.yaml", yaml);
    return ReadRecipe(folder_ / "recipe.yaml", judge);
  }

  const ScratchFolder folder_;
};

TEST_F(ReadRecipeTest, ReplacesFilesBesideTheRecipeByTheirContents) {
  Write("data/good.txt", "instruction\n\n-----\nHuman: a\n");
  Write("seeds.txt", "\nWhat?\n");
  Write("questions.txt", "One?\r\n\nTwo?\n");
  const auto recipe = Read(
      "demonstrations: [{id: good, paths: [data/good.txt]}]\n"
      "prompts: {seed_path: seeds.txt}\n"
      "evaluation: {prompts_path: questions.txt}\n");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_THAT(recipe->demonstrations(0).texts(), ElementsAre("instruction\n\n-----\nHuman: a\n"));
  EXPECT_TRUE(recipe->demonstrations(0).paths().empty());
  EXPECT_EQ(recipe->prompts().seed_text(), "\nWhat?\n");
  EXPECT_EQ(recipe->prompts().seed_path(), "");
  EXPECT_THAT(recipe->evaluation().prompts(), ElementsAre("One?", "Two?"));
}

TEST_F(ReadRecipeTest, NamesTheFieldAndTheFileThatIsNotThere) {
  const absl::Status status = Read("demonstrations: [{id: a}, {id: b, paths: [gone.txt]}]").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(HasSubstr("demonstrations[1].paths"), HasSubstr("gone.txt")));
}

TEST_F(ReadRecipeTest, RefusesAFileWithoutPrompts) {
  Write("empty.txt", "\n\n");
  EXPECT_EQ(Read("prompts: {prompts_path: empty.txt}").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ReadRecipeTest, TakesNoByteOrderMarkForText) {
  Write("questions.txt", "\xEF\xBB\xBFOne?\r\nTwo?\r\n");
  const auto recipe = Read("evaluation: {prompts_path: questions.txt}\n");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_THAT(recipe->evaluation().prompts(), ElementsAre("One?", "Two?"));
}

TEST_F(ReadRecipeTest, NamesTheLineThatIsNotUtf8) {
  Write("latin.txt", "One?\nCaf\xe9?\n");
  for (const char* yaml : {"evaluation: {prompts_path: latin.txt}", "prompts: {seed_path: latin.txt}",
                           "demonstrations: [{id: a, paths: [latin.txt]}]"}) {
    const absl::Status status = Read(yaml).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("latin.txt: line 2 is not UTF-8"));
  }
}

TEST(IdFromFileTest, DiffersWithinTheSameSecond) {
  std::set<std::string> ids;
  for (int i = 0; i < 5; ++i) ids.insert(IdFromFile("world.yaml"));
  EXPECT_GT(ids.size(), 1u);
}

TEST(IdFromFileTest, HoldsOnlyWhatAnIdMay) {
  EXPECT_THAT(IdFromFile("a/world-7.b.yaml"), testing::MatchesRegex("world-7.b-[0-9]+-[0-9]+-[0-9a-f]+"));
  EXPECT_THAT(IdFromFile("My Räte.yaml"), testing::MatchesRegex("My-R--te-[0-9]+-[0-9]+-[0-9a-f]+"));
  EXPECT_THAT(IdFromFile("..yaml.yaml"), testing::MatchesRegex("_.yaml-[0-9]+-[0-9]+-[0-9a-f]+"));
  EXPECT_LE(IdFromFile(std::string(200, 'x')).size(), 128u);
}

TEST_F(ReadRecipeTest, PutsTheAddressOfTheJudgeInPlaceOfItsName) {
  EXPECT_EQ(Read("evaluation: {judge_target: 'up:judge'}", "127.0.0.1:7")->evaluation().judge_target(),
            "127.0.0.1:7");
  EXPECT_EQ(Read("evaluation: {judge_target: 'there:1'}", "127.0.0.1:7")->evaluation().judge_target(),
            "there:1");
  EXPECT_EQ(Read("evaluation: {judge_target: 'up:judge'}").status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace almost::cli
