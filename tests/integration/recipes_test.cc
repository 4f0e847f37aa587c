// Every recipe of deploy/recipes, and every change to one, is one that the orchestrator would take, and what
// it foresees of it. The authors' files that some of them name are not ours to ship; stand-ins of the same
// form lie beside copies of the recipes here. Of the large models the sizes are enough.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "clients/cli/recipe_file.h"
#include "common/base/scratch_folder.h"
#include "services/orchestrator/core/orchestrator.h"
#include "services/orchestrator/core/recipe_check.h"
#include "services/orchestrator/core/scripted_services.h"
#include "services/orchestrator/core/stages.h"

namespace almost::orchestrator {
namespace {

namespace fs = std::filesystem;

// Knows models by their sizes; tokens are 4 bytes.
class SizedServices : public ScriptedServices {
 public:
  using ScriptedServices::ScriptedServices;
  int64_t cache_tokens = 0;
  absl::StatusOr<types::v1::Model> LoadModel(const CallOptions& options, ModelHost host,
                                             const types::v1::LoadModelRequest& request) override {
    struct Size {
      int64_t parameters;
      int32_t context;
    };
    static const std::map<std::string, Size> kSizes = {
        // of their config.json; S, M and L are the large world's
        {"llama-7b", {6'738'415'616, 2048}},
        {"llama-13b", {13'015'864'320, 2048}},
        {"llama-30b", {32'528'943'616, 2048}},
        {"pythia-1.4b", {1'414'647'808, 2048}},
        {"pythia-6.9b", {6'857'302'016, 2048}},
        {"pythia-12b", {11'846'072'320, 2048}},
        {"Qwen2.5-0.5B", {494'032'768, 32768}},
        {"Qwen2.5-1.5B", {1'543'714'304, 32768}},
        {"Qwen2.5-7B", {7'615'616'512, 32768}},
        {"common/world/models/S", {158'016, 512}},
        {"common/world/models/M", {717'696, 512}},
        {"common/world/models/L", {1'943'232, 512}},
        {"S", {10'244'160, 1024}},
        {"M", {29'893'120, 1024}},
        {"L", {98'323'200, 1024}}};
    auto model = ScriptedServices::LoadModel(options, host, request);
    const auto size = kSizes.find(request.source());
    if (!model.ok() || size == kSizes.end()) return model;
    // As the services have it: on a GPU in the checkpoint's 16 bits, and never in others than its own.
    const bool on_gpu = request.device() == "cuda:0";
    const types::v1::DType dtype = on_gpu ? types::v1::DTYPE_BFLOAT16 : types::v1::DTYPE_FLOAT32;
    if (request.dtype() != types::v1::DTYPE_UNSPECIFIED && request.dtype() != dtype) {
      return absl::InvalidArgumentError("dtype");
    }
    model->set_num_parameters(size->second.parameters);
    model->set_context_tokens(size->second.context);
    model->set_cache_tokens(cache_tokens);
    model->set_device(on_gpu ? "cuda:0" : "cpu");
    model->set_dtype(dtype);
    model->set_weight_bytes(size->second.parameters * (on_gpu ? 2 : 4));
    return model;
  }
};

class RecipesTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const fs::path source = std::getenv("ALMOST_SOURCE_DIR");
    fs::create_directories(Tree() / "common/world");
    fs::copy(source / "common/world/data", Tree() / "common/world/data", fs::copy_options::recursive);
    fs::create_directories(Tree() / "deploy");
    fs::copy(source / "deploy/recipes", Recipes(), fs::copy_options::recursive);
    std::ofstream(Recipes() / "seed_prompts.txt") << "Write questions.\n\n" << Questions(12);
    std::ofstream(Recipes() / "questions.txt") << "Why is the sky blue?\n";
    Demonstrations("HHH_prompt.txt", 5);
    Demonstrations("Faithful_prompt.txt", 3);
  }

  static const fs::path& Tree() {
    static const ScratchFolder tree;
    return tree;
  }
  static fs::path Recipes() { return Tree() / "deploy/recipes"; }
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

  // What the orchestrator answers to CreateRun with validate_only.
  static absl::StatusOr<v1::Run> DryRun(const v1::Recipe& recipe, const HostMemory& memory = {},
                                        int64_t cache_tokens = 1 << 20) {
    const fs::path folder = Tree() / "orchestrator";
    const auto store = ArtifactStore::Open(folder / "store").value();
    const auto journal = Journal::Open(folder / "journal.db").value();
    SizedServices services(store.get());
    services.cache_tokens = cache_tokens;
    ModelPlacement placement(&services);
    RunObserver observer;
    RunEnvironment environment;
    environment.journal = journal.get();
    environment.store = store.get();
    environment.services = &services;
    environment.placement = &placement;
    environment.observer = &observer;
    environment.make_stages = [](const v1::Recipe& of) { return MakeStages(of, {"reward:1"}); };
    Orchestrator orchestrator(environment, [&](const v1::Recipe& checked) -> absl::Status {
      if (const absl::Status status = CheckRecipe(checked); !status.ok()) return status;
      return CheckModels(checked, services, [](const std::string&) { return false; }, memory);
    });
    v1::CreateRunRequest request;
    request.set_run_id("plan");
    *request.mutable_recipe() = recipe;
    request.set_validate_only(true);
    return orchestrator.Create(request);
  }
};

// Bytes of weights that a stage has in memory at once on a service.
int64_t BytesOn(const v1::Run& run, const std::string& stage, const std::string& service) {
  std::map<int, int64_t> by_turn;
  int64_t most = 0;
  for (const v1::Stage& each : run.stages()) {
    if (each.id() != stage) continue;
    for (const v1::PlannedModel& model : each.plan().models()) {
      if (model.service() == service) most = std::max(most, by_turn[model.turn()] += model.weight_bytes());
    }
  }
  return most;
}

int64_t MostTokens(const v1::Run& run, const std::string& stage) {
  for (const v1::Stage& each : run.stages()) {
    if (each.id() == stage) return each.plan().max_generated_tokens();
  }
  return -1;
}

TEST_F(RecipesTest, EachIsForeseenAsItsModelsAre) {
  struct Wanted {
    const char* recipe;
    double responses_gb, dialogues_gb, reward_gb;  // in memory at once
    int64_t response_tokens, dialogue_tokens;      // drawn at most
  };
  for (const Wanted& wanted : {
           // All three at once, or one after the other, then the player alone, and the reward model as large
           // as what it is trained from.
           Wanted{"llama.yaml", 65.1, 65.1, 13.5, 10'000 * (768 + 4 * 384), 20'000 * 768 * (2 * 4 + 1)},
           Wanted{"pythia.yaml", 40.2, 23.7, 2.8, 10'000 * (768 + 4 * 384), 20'000 * 768 * (2 * 4 + 1)},
           Wanted{"qwen2.5.yaml", 19.3, 15.2, 3.1, 10'000 * (768 + 4 * 384), 20'000 * 768 * (2 * 4 + 1)},
       }) {
    const auto run = DryRun(Checked(wanted.recipe).value());
    ASSERT_TRUE(run.ok()) << wanted.recipe << ": " << run.status();
    EXPECT_EQ(run->stages_size(), 9) << wanted.recipe;
    const auto gigabytes = [&](const char* stage, const char* service) {
      return static_cast<double>(BytesOn(*run, stage, service)) / 1e9;
    };
    EXPECT_NEAR(gigabytes("responses", "generation"), wanted.responses_gb, 0.05) << wanted.recipe;
    EXPECT_NEAR(gigabytes("demonstrations", "generation"), wanted.dialogues_gb, 0.05) << wanted.recipe;
    EXPECT_NEAR(gigabytes("demonstrations", "reward"), wanted.reward_gb, 0.05) << wanted.recipe;
    EXPECT_EQ(MostTokens(*run, "responses"), wanted.response_tokens) << wanted.recipe;
    EXPECT_EQ(MostTokens(*run, "demonstrations"), wanted.dialogue_tokens) << wanted.recipe;
  }
  for (const char* const recipe : {"world.yaml", "world-smoke.yaml", "world-large.yaml"}) {
    const auto run = DryRun(Checked(recipe).value());
    ASSERT_TRUE(run.ok()) << recipe << ": " << run.status();
    EXPECT_GT(BytesOn(*run, "responses", "generation"), 0) << recipe;
  }
}

TEST_F(RecipesTest, ATrainedModelHasTheWidthOfItsTraining) {
  v1::Recipe llama = Checked("llama.yaml").value();
  llama.mutable_reward_model()->clear_memory();
  EXPECT_NEAR(static_cast<double>(BytesOn(*DryRun(llama), "demonstrations", "reward")) / 1e9, 27.0, 0.05);
  EXPECT_EQ(DryRun(llama, {.reward = 24'000'000'000}).status().code(), absl::StatusCode::kFailedPrecondition);
  // Nor does its base's dtype, where the recipe names one, become its own.
  for (v1::VanillaModel& model : *llama.mutable_models()) model.set_dtype(types::v1::DTYPE_BFLOAT16);
  const ModelNeed need = {"reward_model", ModelHost::kReward, "", "reward_model"};
  const auto request = LoadRequest(need, llama, {{"reward_model/model", "0123"}});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->source(), "artifacts/0123");
  EXPECT_EQ(request->device(), "cuda:0");
  EXPECT_EQ(request->dtype(), types::v1::DTYPE_UNSPECIFIED);
}

TEST_F(RecipesTest, TheLargeWorldsDryRunChangesAmountsAlone) {
  const auto whole = Checked("world-large.yaml");
  const auto little = Checked("world-large.yaml", {Recipes() / "world-large-dry-run.yaml"});
  ASSERT_TRUE(whole.ok() && little.ok()) << whole.status() << little.status();
  EXPECT_TRUE(DryRun(*little).ok());
  EXPECT_EQ(whole->prompts().filter().world(), "large");
  EXPECT_EQ(little->prompts().filter().world(), "large");
  EXPECT_EQ(little->evaluation().world(), "large");
  EXPECT_EQ(little->models_size(), whole->models_size());
  EXPECT_EQ(little->responses().configurations_size(), whole->responses().configurations_size());
  EXPECT_EQ(little->evaluation().grid_size(), whole->evaluation().grid_size());
  EXPECT_LT(MostTokens(*DryRun(*little), "responses"), MostTokens(*DryRun(*whole), "responses") / 100);
  v1::Recipe unknown = *whole;
  unknown.mutable_evaluation()->set_world("huge");
  EXPECT_THAT(std::string(DryRun(unknown).status().message()), ::testing::HasSubstr("evaluation.world: "));
}

TEST_F(RecipesTest, WhatDoesNotFitAHostIsRefusedByItsStage) {
  v1::Recipe llama = Checked("llama.yaml").value();
  constexpr int64_t kGigabyte = 1'000'000'000;
  EXPECT_TRUE(DryRun(llama, {.generation = 70 * kGigabyte, .reward = 24 * kGigabyte}).ok());
  llama.mutable_responses()->set_one_model_at_a_time(false);
  EXPECT_TRUE(DryRun(llama, {.generation = 141 * kGigabyte, .reward = 24 * kGigabyte}).ok());
  const absl::Status one_gpu = DryRun(llama, {.generation = 80 * kGigabyte}).status();
  EXPECT_EQ(one_gpu.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(one_gpu.message()),
              ::testing::AllOf(::testing::StartsWith("responses: has 13B, 30B, 7B in memory at once, 105 GB"),
                               ::testing::HasSubstr("80 GB (--generation_memory_gigabytes)")));
  const absl::Status small_scorer = DryRun(llama, {.reward = 8 * kGigabyte}).status();
  EXPECT_THAT(std::string(small_scorer.message()), ::testing::StartsWith("demonstrations: has reward_model"));
}

TEST_F(RecipesTest, WhatDoesNotFitTheCacheIsRefusedByItsField) {
  EXPECT_THAT(std::string(DryRun(Checked("llama.yaml").value(), {}, 512).status().message()),
              ::testing::AllOf(::testing::HasSubstr("do not fit the 512 of the cache"),
                               ::testing::HasSubstr("--kv_cache_bytes")));
}

TEST_F(RecipesTest, WhatDoesNotFitAContextIsRefusedByItsField) {
  v1::Recipe llama = Checked("llama.yaml").value();  // models that read 2,048 tokens
  llama.mutable_responses()->mutable_configurations(4)->set_max_new_tokens(2'040);
  EXPECT_THAT(std::string(DryRun(llama).status().message()),
              ::testing::StartsWith("responses.configurations[4]: "));
  llama = Checked("llama.yaml").value();
  llama.mutable_reward_model()->mutable_spec()->set_max_tokens(4'096);
  EXPECT_THAT(std::string(DryRun(llama).status().message()),
              ::testing::StartsWith("reward_model.spec.max_tokens: "));
}

// What the files beside the recipes change; as_is_filter.yaml and the ablations have tests of their own.
TEST_F(RecipesTest, EachTakesAnotherAlgorithm) {
  for (const char* const recipe :
       {"world.yaml", "world-smoke.yaml", "world-large.yaml", "llama.yaml", "pythia.yaml", "qwen2.5.yaml"}) {
    const auto grpo = Checked(recipe, {Recipes() / "grpo.yaml"});
    ASSERT_TRUE(grpo.ok()) << recipe << ": " << grpo.status();
    EXPECT_EQ(grpo->rl().algorithm(), v1::RlStage::ALGORITHM_GRPO);
    const auto dpo = Checked(recipe, {Recipes() / "dpo.yaml"});
    ASSERT_TRUE(dpo.ok()) << recipe << ": " << dpo.status();
    EXPECT_EQ(dpo->rl().algorithm(), v1::RlStage::ALGORITHM_DPO);
    EXPECT_TRUE(DryRun(*dpo).ok()) << recipe;
    EXPECT_EQ(Checked(recipe)->rl().algorithm(), v1::RlStage::ALGORITHM_PPO);
  }
  const auto world_dpo = Checked("world.yaml", {Recipes() / "dpo.yaml", Recipes() / "world-dpo.yaml"});
  ASSERT_TRUE(world_dpo.ok()) << world_dpo.status();
  EXPECT_EQ(world_dpo->rl().optimizer().learning_rate(), 1e-4);
}

TEST_F(RecipesTest, EachIsComplete) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(Recipes())) {
    const fs::path& file = entry.path();
    static const std::set<std::string> kChanges = {"as_is_filter.yaml", "dpo.yaml", "grpo.yaml",
                                                   "world-dpo.yaml", "world-large-dry-run.yaml"};
    if (file.extension() != ".yaml" || kChanges.contains(file.filename().string())) continue;
    const auto recipe = Checked(file.filename().string());
    ASSERT_TRUE(recipe.ok()) << file << ": " << recipe.status();
    EXPECT_TRUE(recipe->has_prompts() && recipe->has_responses() && recipe->has_comparisons() &&
                recipe->has_reward_model() && recipe->has_demonstration() && recipe->has_sft() &&
                recipe->has_rl() && recipe->has_evaluation())
        << file << " leaves a stage out";
    ++count;
  }
  EXPECT_EQ(count, 6);
}

TEST_F(RecipesTest, EachAblationChangesTheWorldsRecipeAndNothingButWhatItSays) {
  const v1::Recipe world = Checked("world.yaml").value();
  const std::map<std::string, std::vector<std::string>> touched = {
      {"without_size", {"responses", "comparisons"}},  // the ranking is that of the configurations
      {"without_shots", {"responses", "comparisons"}},
      {"without_demonstration_quality", {"responses", "comparisons"}},
      {"without_prompt_filter", {"prompts"}},
      {"without_response_filter", {"responses", "demonstration"}},
      {"without_length_filter", {}},     // the world has none; see below
      {"without_low_score_filter", {}},  // nor this
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
    EXPECT_FALSE(
        Checked(recipe, {Recipes() / "ablations/without_length_filter.yaml"})->comparisons().length_filter());
    for (const char* const name : {"without_response_filter", "without_best_of_n"}) {
      EXPECT_TRUE(Checked(recipe, {Recipes() / "ablations" / absl::StrCat(name, ".yaml")}).ok())
          << recipe << name;
    }
  }
}

}  // namespace
}  // namespace almost::orchestrator
