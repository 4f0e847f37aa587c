#include "common/config/yaml_message.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "almost/orchestrator/v1/recipe.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace almost {
namespace {

using orchestrator::v1::Recipe;
using testing::HasSubstr;

absl::Status Read(absl::string_view yaml, Recipe* recipe) { return ReadYaml("recipe.yaml", yaml, recipe); }

std::string ErrorOf(absl::string_view yaml) {
  Recipe recipe;
  const absl::Status status = Read(yaml, &recipe);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

TEST(ReadYamlTest, FillsEveryKindOfField) {
  Recipe recipe;
  ASSERT_TRUE(Read(R"(
display_name: Größe
seed: 18446744073709551615
models: [{id: "7B", source: a, dtype: DTYPE_BFLOAT16}]
prompts:
  numPrompts: 900
  draw_from_pool: true
  sampling: {temperature: 1.2, stop: ["\n", Human], n: 4}
rl:
  spec: {missing_stop_reward: -3, kl_coefficient: 5e-2}
)",
                   &recipe)
                  .ok());
  EXPECT_EQ(recipe.display_name(), "Größe");
  EXPECT_EQ(recipe.seed(), 18446744073709551615u);
  EXPECT_EQ(recipe.models(0).dtype(), types::v1::DTYPE_BFLOAT16);
  EXPECT_EQ(recipe.prompts().num_prompts(), 900);
  EXPECT_TRUE(recipe.prompts().draw_from_pool());
  EXPECT_THAT(recipe.prompts().sampling().stop(), testing::ElementsAre("\n", "Human"));
  EXPECT_EQ(recipe.rl().spec().missing_stop_reward(), -3);
  EXPECT_EQ(recipe.rl().spec().kl_coefficient(), 0.05);
  EXPECT_FALSE(recipe.has_sft());
}

TEST(ReadYamlTest, ASecondTextChangesWhatItNamesAndNothingElse) {
  Recipe recipe;
  ASSERT_TRUE(
      Read("seed: 7\nmodels: [{id: a}, {id: b}]\nprompts: {num_prompts: 3, draw_from_pool: true}", &recipe)
          .ok());
  ASSERT_TRUE(Read("models: [{id: c}]\nprompts: {draw_from_pool: false}", &recipe).ok());
  EXPECT_EQ(recipe.seed(), 7);
  ASSERT_EQ(recipe.models_size(), 1);
  EXPECT_EQ(recipe.models(0).id(), "c");
  EXPECT_EQ(recipe.prompts().num_prompts(), 3);
  EXPECT_FALSE(recipe.prompts().draw_from_pool());
}

TEST(ReadYamlTest, RefusesAnUnknownFieldWithLineAndSuggestion) {
  EXPECT_EQ(ErrorOf("seed: 1\nprompts:\n  num_promts: 9\n"),
            "recipe.yaml:3: prompts.num_promts: unknown field of PromptStage; did you mean num_prompts?");
}

TEST(ReadYamlTest, RefusesWrongTypesWithLineFieldAndValue) {
  EXPECT_EQ(ErrorOf("seed: -1"), "recipe.yaml:1: seed: must be a 64-bit integer of at least 0 (-1)");
  EXPECT_EQ(ErrorOf("prompts:\n  num_prompts: many"),
            "recipe.yaml:2: prompts.num_prompts: must be a 32-bit integer (many)");
  EXPECT_EQ(ErrorOf("prompts:\n  num_prompts: 3000000000"),
            "recipe.yaml:2: prompts.num_prompts: must be a 32-bit integer (3000000000)");
  EXPECT_EQ(ErrorOf("prompts: {draw_from_pool: yes}"),
            "recipe.yaml:1: prompts.draw_from_pool: must be true or false (yes)");
  EXPECT_EQ(ErrorOf("rl: {spec: {kl_coefficient: .nan}}"),
            "recipe.yaml:1: rl.spec.kl_coefficient: must be a finite number (.nan)");
  EXPECT_THAT(ErrorOf("comparisons: {rule: WORLD}"), HasSubstr("comparisons.rule: no value of Rule (WORLD)"));
  EXPECT_EQ(ErrorOf("models: {id: a}"), "recipe.yaml:1: models: must be a list");
  EXPECT_EQ(ErrorOf("models: [S]"), "recipe.yaml:1: models[0]: must be a map of VanillaModel's fields");
  EXPECT_EQ(ErrorOf("seed: [1]"), "recipe.yaml:1: seed: must be one uint64");
}

TEST(ReadYamlTest, RefusesAFieldThatIsSetTwiceOrHasNoValue) {
  EXPECT_EQ(ErrorOf("seed: 1\nseed: 2\n"), "recipe.yaml:2: seed: is set twice");
  EXPECT_EQ(ErrorOf("seed:\n"), "recipe.yaml:1: seed: has no value");
}

TEST(ReadYamlTest, RefusesASecondMemberOfAOneof) {
  trainer::v1::JobSpec spec;
  const absl::Status status = ReadYaml("job.yaml", "sft: {epochs: 1}\nppo: {epochs: 1}\n", &spec);
  EXPECT_EQ(status.message(), "job.yaml:2: ppo: excludes sft");
}

TEST(ReadYamlTest, RefusesASecondDocumentWhichWouldBeIgnored) {
  EXPECT_EQ(ErrorOf("seed: 1\n---\nseed: 2\n"), "recipe.yaml:3: a second document; there can be one");
  Recipe recipe;
  EXPECT_TRUE(Read("---\nseed: 1\n...\n", &recipe).ok());
}

TEST(ReadYamlTest, RefusesTextThatIsNotUtf8) {
  EXPECT_EQ(ErrorOf("seed: 1\ndisplay_name: Gr\xf6\xdf\n"), "recipe.yaml:2: display_name: must be UTF-8");
}

TEST(ReadYamlTest, RefusesBrokenAndEmptyYaml) {
  EXPECT_THAT(ErrorOf("seed: 1\n  models: ["), HasSubstr("recipe.yaml:2: "));
  EXPECT_EQ(ErrorOf(""), "recipe.yaml:1: is empty");
  EXPECT_EQ(ErrorOf("just words"), "recipe.yaml:1: must be a map of Recipe's fields");
}

TEST(ReadYamlTest, ReadsTheRecipesOfTheTree) {
  int read = 0;
  for (const auto& file : std::filesystem::recursive_directory_iterator(
           std::filesystem::path(std::getenv("ALMOST_SOURCE_DIR")) / "deploy/recipes")) {
    if (file.path().extension() != ".yaml") continue;
    std::ostringstream text;
    text << std::ifstream(file.path()).rdbuf();
    Recipe recipe;
    const absl::Status status = ReadYaml(file.path().filename().string(), text.str(), &recipe);
    EXPECT_TRUE(status.ok()) << status;
    ++read;
  }
  EXPECT_GE(read, 14);
}

}  // namespace
}  // namespace almost
