// Every recipe of deploy/recipes, and every change to one, is one that the orchestrator would take. The
// authors' files that some of them name are not ours to ship; stand-ins of the same form lie beside copies of
// the recipes here.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "clients/cli/recipe_file.h"
#include "services/orchestrator/core/recipe_check.h"

namespace almost::orchestrator {
namespace {

namespace fs = std::filesystem;

class RecipesTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const fs::path source = std::getenv("ALMOST_SOURCE_DIR");
    tree_ = fs::path(::testing::TempDir()) / "almost_recipes_test";
    fs::remove_all(tree_);
    fs::create_directories(tree_ / "common/world");
    fs::copy(source / "common/world/data", tree_ / "common/world/data");
    fs::create_directories(tree_ / "deploy");
    fs::copy(source / "deploy/recipes", Recipes(), fs::copy_options::recursive);
    std::ofstream(Recipes() / "seed_prompts.txt") << "Write questions.\n\n" << Questions(12);
    std::ofstream(Recipes() / "questions.txt") << "Why is the sky blue?\n";
    Demonstrations("HHH_prompt.txt", 5);
    Demonstrations("Faithful_prompt.txt", 3);
  }
  static void TearDownTestSuite() { fs::remove_all(tree_); }

  static fs::path Recipes() { return tree_ / "deploy/recipes"; }
  static std::string Questions(int count) {
    std::string lines;
    for (int i = 0; i < count; ++i) absl::StrAppend(&lines, "What is number ", i, "?\n");
    return lines;
  }
  static void Demonstrations(const std::string& name, int count) {
    std::ofstream file(Recipes() / name);
    file << "Below are conversations.";
    for (int i = 0; i < count; ++i)
      file << "\n\n-----\n\nHuman: Question " << i << "?\n\nAssistant: Answer " << i << ".";
    file << "\n";
  }
  static absl::StatusOr<v1::Recipe> Checked(const std::string& recipe,
                                            const std::vector<fs::path>& changes = {}) {
    absl::StatusOr<v1::Recipe> read = cli::ReadRecipe(Recipes() / recipe, "127.0.0.1:1", changes);
    if (!read.ok()) return read.status();
    *read = WithDefaults(*read);
    if (const absl::Status status = CheckRecipe(*read); !status.ok()) return status;
    return read;
  }

  inline static fs::path tree_;
};

TEST_F(RecipesTest, EachIsComplete) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(Recipes())) {
    const fs::path& file = entry.path();
    if (file.extension() != ".yaml" || file.filename() == "as_is_filter.yaml") continue;
    const auto recipe = Checked(file.filename().string());
    ASSERT_TRUE(recipe.ok()) << file << ": " << recipe.status();
    EXPECT_TRUE(recipe->has_prompts() && recipe->has_responses() && recipe->has_comparisons() &&
                recipe->has_reward_model() && recipe->has_demonstration() && recipe->has_sft() &&
                recipe->has_rl() && recipe->has_evaluation())
        << file << " leaves a stage out";
    ++count;
  }
  EXPECT_EQ(count, 5);
}

TEST_F(RecipesTest, EachAblationChangesTheWorldsRecipeAndNothingButWhatItSays) {
  const v1::Recipe world = Checked("world.yaml").value();
  const std::map<std::string, std::vector<std::string>> touched = {
      {"without_size", {"responses", "comparisons"}},  // the ranking is that of the configurations
      {"without_shots", {"responses", "comparisons"}},
      {"without_demonstration_quality", {"responses", "comparisons"}},
      {"without_prompt_filter", {"prompts"}},
      {"without_response_filter", {"responses", "demonstration"}},
      {"without_length_filter", {"comparisons"}},
      {"without_low_score_filter", {}},  // the world's drops none; see below
      {"without_best_of_n", {"demonstration"}},
  };
  std::set<std::string> found;
  for (const auto& entry : fs::directory_iterator(Recipes() / "ablations")) {
    const std::string name = entry.path().stem().string();
    found.insert(name);
    const auto changed = Checked("world.yaml", {entry.path()});
    ASSERT_TRUE(changed.ok()) << name << ": " << changed.status();
    ASSERT_TRUE(touched.contains(name)) << name;
    std::vector<std::string> differs;
    const auto& reflection = *world.GetReflection();
    for (int i = 0; i < world.GetDescriptor()->field_count(); ++i) {
      const auto& field = *world.GetDescriptor()->field(i);
      if (field.is_repeated() || field.cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE)
        continue;
      if (reflection.GetMessage(world, &field).SerializeAsString() !=
          reflection.GetMessage(*changed, &field).SerializeAsString()) {
        differs.push_back(field.name());
      }
    }
    EXPECT_THAT(differs, ::testing::UnorderedElementsAreArray(touched.at(name))) << name;
  }
  EXPECT_EQ(found.size(), touched.size());
}

TEST_F(RecipesTest, ChangesOfTheLargeRecipesAreTaken) {
  for (const char* const recipe : {"llama.yaml", "pythia.yaml", "qwen2.5.yaml"}) {
    EXPECT_EQ(Checked(recipe, {Recipes() / "as_is_filter.yaml"})->comparisons().agreeing_source(),
              "as-is-reward-model");
    EXPECT_EQ(Checked(recipe)->demonstration().drop_lowest_share(), 0.1);
    EXPECT_EQ(Checked(recipe, {Recipes() / "ablations/without_low_score_filter.yaml"})
                  ->demonstration()
                  .drop_lowest_share(),
              0);
    for (const char* const name : {"without_response_filter", "without_length_filter", "without_best_of_n"}) {
      EXPECT_TRUE(Checked(recipe, {Recipes() / "ablations" / absl::StrCat(name, ".yaml")}).ok())
          << recipe << name;
    }
  }
}

}  // namespace
}  // namespace almost::orchestrator
