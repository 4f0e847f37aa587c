#include "services/orchestrator/core/recipe_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/scratch_folder.h"
#include "common/storage/fault_env.h"
#include "google/protobuf/util/json_util.h"
#include "services/orchestrator/core/scripted_services.h"

namespace almost::orchestrator {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kRecipe[] = R"json({
  "seed": 7, "prompt_format": "world",
  "models": [{"id": "S", "source": "tiny/S"}, {"id": "L", "source": "tiny/L"}],
  "demonstrations": [{"id": "good", "texts": ["\n\n-----\n\nHuman: Who?\n\nAssistant: Me."]}],
  "prompts": {"model": "L", "seed_text": "\nWhat is a?\nWhat is b?\n", "num_prompts": 20,
              "attempts_per_round": 10, "max_rounds": 9, "num_shots": 2},
  "responses": {"sampling": {"max_new_tokens": 20}, "configurations": [
    {"id": "L-1-good", "model": "L", "demonstrations": "good", "shots": 1}, {"id": "S-0", "model": "S"}]},
  "comparisons": {},
  "reward_model": {"base_model": "S", "spec": {"epochs": 1, "batch_size": 8, "max_tokens": 64},
                   "optimizer": {"learning_rate": 0.001}},
  "demonstration": {"assistant": {"id": "p", "model": "L"}},
  "sft": {"base_model": "S", "spec": {"epochs": 1, "batch_size": 8, "max_tokens": 64},
          "optimizer": {"learning_rate": 0.001}},
  "rl": {"spec": {"num_iterations": 1, "rollouts": 4, "epochs": 1, "minibatch_size": 4, "max_new_tokens": 8,
                  "value_learning_rate": 0.001},
         "optimizer": {"learning_rate": 0.001}},
  "evaluation": {"baseline": {"id": "L-0", "model": "L"}, "prompts": ["Why?"]}
})json";

v1::Recipe Recipe() {
  v1::Recipe recipe;
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(kRecipe, &recipe).ok());
  return WithDefaults(recipe);
}

std::string Error(const v1::Recipe& recipe) { return std::string(CheckRecipe(recipe).message()); }

TEST(RecipeCheckTest, FillsInTheStatedDefaults) {
  const v1::Recipe recipe = Recipe();
  EXPECT_EQ(recipe.comparisons().rule(), v1::ComparisonStage::RULE_PAPER);
  EXPECT_EQ(recipe.comparisons().rubric_size(), 2);
  EXPECT_EQ(recipe.demonstration().num_candidates(), 4);
  EXPECT_EQ(recipe.demonstration().max_turns(), 2);
  EXPECT_EQ(recipe.responses().filter(), "world");
  EXPECT_EQ(recipe.rl().algorithm(), v1::RlStage::ALGORITHM_PPO);
  EXPECT_EQ(recipe.evaluation().bootstrap(), 2000);
  EXPECT_EQ(CheckRecipe(recipe), absl::OkStatus());
}

TEST(RecipeCheckTest, LeavesOutWhatNeedsAStageThatIsNotThere) {
  v1::Recipe recipe = Recipe();
  recipe.clear_sft();
  EXPECT_FALSE(WithDefaults(recipe).has_rl());
  EXPECT_TRUE(WithDefaults(recipe).has_demonstration());
  recipe = Recipe();
  recipe.clear_responses();
  recipe = WithDefaults(recipe);
  EXPECT_FALSE(recipe.has_comparisons() || recipe.has_reward_model() || recipe.has_demonstration() ||
               recipe.has_sft() || recipe.has_rl());
  EXPECT_TRUE(recipe.has_prompts() && recipe.has_evaluation());
  EXPECT_EQ(CheckRecipe(recipe), absl::OkStatus());
}

TEST(RecipeCheckTest, NamesTheFieldThatIsWrong) {
  const auto expect = [](const char* start, const std::function<void(v1::Recipe&)>& change) {
    v1::Recipe recipe = Recipe();
    change(recipe);
    EXPECT_THAT(Error(recipe), StartsWith(start));
    EXPECT_EQ(CheckRecipe(recipe).code(), absl::StatusCode::kInvalidArgument);
  };
  expect("prompt_format: ", [](auto& r) { r.set_prompt_format("papper"); });
  expect("models: ", [](auto& r) { r.clear_models(); });
  expect("models[1].id: ", [](auto& r) { r.mutable_models(1)->set_id("S"); });
  expect("models[0].id: ", [](auto& r) { r.mutable_models(0)->set_id("../S"); });
  expect("models[0].source: ", [](auto& r) { r.mutable_models(0)->clear_source(); });
  expect("prompts: ", [](auto& r) { r.clear_prompts(); });
  expect("prompts.model: ", [](auto& r) { r.mutable_prompts()->set_model("XL"); });
  expect("prompts.num_prompts: ", [](auto& r) { r.mutable_prompts()->set_num_prompts(0); });
  expect("prompts.num_shots: ", [](auto& r) { r.mutable_prompts()->set_num_shots(3); });
  expect("prompts.seed_text: ", [](auto& r) { r.mutable_prompts()->clear_seed_text(); });
  expect("prompts.sampling.top_p: ", [](auto& r) { r.mutable_prompts()->mutable_sampling()->set_top_p(0); });
  expect("prompts.sampling.temperature: ",
         [](auto& r) { r.mutable_prompts()->mutable_sampling()->set_temperature(std::nan("")); });
  expect("responses.configurations[1].id: ",
         [](auto& r) { r.mutable_responses()->mutable_configurations(1)->set_id("L-1-good"); });
  expect("responses.configurations[1].model: ",
         [](auto& r) { r.mutable_responses()->mutable_configurations(1)->set_model("M"); });
  expect("responses.configurations[0].demonstrations: ",
         [](auto& r) { r.mutable_responses()->mutable_configurations(0)->set_demonstrations("bad"); });
  expect("comparisons.agreeing_source: ", [](auto& r) {
    r.mutable_comparisons()->set_agreeing_scorer("models/as-is");
    r.mutable_comparisons()->set_agreeing_source("as-is");
    r.mutable_comparisons()->set_agreeing_target("127.0.0.1:1");
  });
  expect("comparisons.agreeing_scorer: ",
         [](auto& r) { r.mutable_comparisons()->set_agreeing_source("as-is"); });
  expect("responses.filter: ", [](auto& r) { r.mutable_responses()->set_filter("strict"); });
  expect("comparisons.rubric[0].configurations: ",
         [](auto& r) { r.mutable_comparisons()->mutable_rubric(0)->set_configurations(0, "X"); });
  expect("reward_model.spec.epochs: ",
         [](auto& r) { r.mutable_reward_model()->mutable_spec()->set_epochs(0); });
  expect("reward_model.spec.dataset: ",
         [](auto& r) { r.mutable_reward_model()->mutable_spec()->set_dataset("x"); });
  expect("demonstration.drop_lowest_share: ",
         [](auto& r) { r.mutable_demonstration()->set_drop_lowest_share(1); });
  expect("sft.optimizer.learning_rate: ", [](auto& r) { r.mutable_sft()->clear_optimizer(); });
  expect("rl.spec.minibatch_size: ", [](auto& r) { r.mutable_rl()->mutable_spec()->set_minibatch_size(5); });
  expect("rl.spec.value_learning_rate: ",
         [](auto& r) { r.mutable_rl()->mutable_spec()->clear_value_learning_rate(); });
  expect("rl.algorithm: ",
         [](auto& r) { r.mutable_rl()->set_algorithm(static_cast<v1::RlStage::Algorithm>(9)); });
  expect("evaluation.prompts: ", [](auto& r) { r.mutable_evaluation()->clear_prompts(); });
}

v1::Recipe GrpoRecipe() {
  v1::Recipe recipe = Recipe();
  recipe.mutable_rl()->set_algorithm(v1::RlStage::ALGORITHM_GRPO);
  recipe.mutable_rl()->mutable_spec()->set_group_size(2);
  recipe.mutable_rl()->mutable_spec()->clear_value_learning_rate();
  return recipe;
}

v1::Recipe DpoRecipe() {  // as a change to a recipe makes it: what PPO was to be is still there
  v1::Recipe recipe = Recipe();
  recipe.mutable_rl()->set_algorithm(v1::RlStage::ALGORITHM_DPO);
  trainer::v1::DpoSpec& dpo = *recipe.mutable_rl()->mutable_dpo();
  dpo.set_epochs(1);
  dpo.set_batch_size(8);
  dpo.set_max_tokens(64);
  dpo.set_beta(0.1);
  return recipe;
}

TEST(RecipeCheckTest, EachAlgorithmHasItsOwnFields) {
  EXPECT_EQ(CheckRecipe(GrpoRecipe()), absl::OkStatus());
  EXPECT_EQ(CheckRecipe(DpoRecipe()), absl::OkStatus());
  const auto expect = [](v1::Recipe recipe, const char* start,
                         const std::function<void(v1::RlStage&)>& change) {
    change(*recipe.mutable_rl());
    EXPECT_THAT(Error(recipe), StartsWith(start));
  };
  expect(Recipe(), "rl.spec.group_size: ", [](auto& rl) { rl.mutable_spec()->set_group_size(2); });
  expect(Recipe(),
         "rl.spec.scale_advantages: ", [](auto& rl) { rl.mutable_spec()->set_scale_advantages(false); });
  expect(Recipe(), "rl.dpo: ", [](auto& rl) { rl.mutable_dpo()->set_beta(0.1); });
  expect(Recipe(), "rl.min_margin: ", [](auto& rl) { rl.set_min_margin(0.5); });
  expect(GrpoRecipe(), "rl.spec.group_size: must be in [2, ",
         [](auto& rl) { rl.mutable_spec()->clear_group_size(); });
  expect(GrpoRecipe(), "rl.spec.group_size: must divide rl.spec.rollouts, 4, is 3",
         [](auto& rl) { rl.mutable_spec()->set_group_size(3); });
  expect(GrpoRecipe(), "rl.spec.value_learning_rate: ", [](auto& rl) {
    rl.mutable_spec()->set_value_learning_rate(0.001);
  });
  expect(GrpoRecipe(), "rl.spec.value_model: ", [](auto& rl) { rl.mutable_spec()->set_value_model("RM"); });
  expect(GrpoRecipe(), "rl.dpo: ", [](auto& rl) { rl.mutable_dpo()->set_beta(0.1); });
  expect(DpoRecipe(), "rl.dpo.epochs: ", [](auto& rl) { rl.mutable_dpo()->clear_epochs(); });
  expect(DpoRecipe(), "rl.dpo.beta: ", [](auto& rl) { rl.mutable_dpo()->clear_beta(); });
  expect(DpoRecipe(), "rl.dpo.dataset: ", [](auto& rl) { rl.mutable_dpo()->set_dataset("pairs"); });
  expect(DpoRecipe(), "rl.min_margin: ", [](auto& rl) { rl.set_min_margin(-1); });
  expect(DpoRecipe(), "rl.only_unseen_prompts: ", [](auto& rl) { rl.set_only_unseen_prompts(true); });
  v1::Recipe one_candidate = DpoRecipe();
  one_candidate.mutable_demonstration()->set_num_candidates(1);
  EXPECT_THAT(Error(one_candidate), StartsWith("demonstration.num_candidates: must be at least 2"));
}

TEST(RecipeCheckTest, RefusesMoreShotsThanAFileHolds) {
  v1::Recipe recipe = Recipe();
  recipe.mutable_responses()->mutable_configurations(0)->set_shots(2);
  EXPECT_EQ(CheckRecipe(recipe).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Error(recipe), StartsWith("responses.configurations[0].shots: asks for 2"));
}

TEST(RecipeCheckTest, LoadsEveryModelAndMeasuresWhatItWillRead) {
  const ScratchFolder folder;
  const auto store = ArtifactStore::Open(folder).value();
  ScriptedServices services(store.get());
  const auto holds_none = [](const std::string&) { return false; };
  EXPECT_EQ(CheckModels(Recipe(), services, holds_none), absl::OkStatus());
  EXPECT_EQ(services.calls("LoadModel"), 2);
  EXPECT_TRUE(services.models().empty());

  v1::Recipe too_long = Recipe();  // the scripted models read 512 tokens of 4 bytes
  too_long.mutable_responses()->mutable_sampling()->set_max_new_tokens(500);
  absl::Status status = CheckModels(too_long, services, holds_none);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), StartsWith("responses.configurations["));
  EXPECT_TRUE(services.models().empty());

  const auto expect_refused = [&](const v1::Recipe& recipe, const char* message) {
    const absl::Status refused = CheckModels(recipe, services, holds_none);
    EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(refused.message()), StartsWith(message));
  };
  v1::Recipe own_length = Recipe();
  own_length.mutable_responses()->mutable_configurations(1)->set_max_new_tokens(510);
  expect_refused(own_length, "responses.configurations[1]: ");
  v1::Recipe rollouts = Recipe();
  rollouts.mutable_rl()->mutable_spec()->set_max_new_tokens(510);
  expect_refused(rollouts, "rl.spec: ");
  v1::Recipe short_reader = Recipe();  // that scores what a model with a longer context answers
  short_reader.mutable_models(0)->set_source("short");
  short_reader.mutable_responses()->mutable_configurations()->RemoveLast();
  short_reader.mutable_sft()->set_base_model("L");
  EXPECT_EQ(CheckModels(short_reader, services, holds_none), absl::OkStatus());
  v1::Recipe long_rollouts = short_reader;
  long_rollouts.mutable_rl()->mutable_spec()->set_max_new_tokens(100);
  expect_refused(long_rollouts, "rl.spec: ");
  v1::Recipe long_candidates = short_reader;
  long_candidates.mutable_demonstration()->mutable_sampling()->set_max_new_tokens(100);
  expect_refused(long_candidates, "demonstration: ");
  v1::Recipe long_pairs = Recipe();
  long_pairs.mutable_reward_model()->mutable_spec()->set_max_tokens(513);
  expect_refused(long_pairs, "reward_model.spec.max_tokens: 513 tokens do not fit the 512 of model S");
  v1::Recipe long_dialogues = Recipe();
  long_dialogues.mutable_sft()->mutable_spec()->set_max_tokens(513);
  expect_refused(long_dialogues, "sft.spec.max_tokens: ");
  v1::Recipe long_answers = DpoRecipe();
  long_answers.mutable_rl()->mutable_spec()->set_max_new_tokens(510);  // unused
  EXPECT_EQ(CheckModels(long_answers, services, holds_none), absl::OkStatus());
  long_answers.mutable_rl()->mutable_dpo()->set_max_tokens(513);
  expect_refused(long_answers, "rl.dpo.max_tokens: ");

  v1::Recipe no_policy = Recipe();
  no_policy.clear_sft();  // from which RL begins, and which the evaluation asks
  EXPECT_EQ(CheckModels(WithDefaults(no_policy), services, holds_none), absl::OkStatus());

  v1::Recipe missing = Recipe();
  missing.mutable_models(1)->set_source("missing");
  status = CheckModels(missing, services, holds_none);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("models[1]: "));
}

}  // namespace
}  // namespace almost::orchestrator
