#include "services/orchestrator/core/recipe_check.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/ids.h"
#include "common/base/status_macros.h"
#include "common/text/prompt_filter.h"
#include "common/text/prompt_format.h"
#include "common/text/response_filter.h"
#include "common/world/world.h"
#include "services/orchestrator/core/few_shot_configuration.h"
#include "services/orchestrator/core/model_placement.h"
#include "services/orchestrator/core/stages.h"

namespace almost::orchestrator {
namespace {

// The first thing wrong, found while walking the recipe.
class Checker {
 public:
  explicit Checker(const v1::Recipe& recipe) : recipe_(recipe) {}

  absl::Status Run() {
    if (const auto format = PromptFormat::Named(recipe_.prompt_format()); !format.ok()) {
      Fail("prompt_format", format.status().message());
    }
    Models();
    for (int i = 0; i < recipe_.demonstrations_size(); ++i) {
      Unique(absl::StrCat("demonstrations[", i, "].id"), recipe_.demonstrations(i).id(), demonstrations_);
    }
    if (recipe_.has_prompts()) Prompts(recipe_.prompts());
    if (recipe_.has_responses()) Responses(recipe_.responses());
    if (recipe_.has_comparisons()) Comparisons(recipe_.comparisons());
    if (recipe_.has_reward_model()) RewardModel(recipe_.reward_model());
    if (recipe_.has_demonstration()) Demonstration(recipe_.demonstration());
    if (recipe_.has_sft()) Sft(recipe_.sft());
    if (recipe_.has_rl()) Rl(recipe_.rl());
    if (recipe_.has_evaluation()) Evaluation(recipe_.evaluation());
    if (!recipe_.has_prompts()) Fail("prompts", "a recipe needs at least this stage");
    return status_;
  }

 private:
  void Fail(absl::string_view field, absl::string_view rule) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(field, ": ", rule));
  }
  // Range [low, high].
  template <typename T>
  void Range(absl::string_view field, T value, T low, T high) {
    if (!(value >= low && value <= high)) {
      Fail(field, absl::StrCat("must be in [", low, ", ", high, "], is ", value));
    }
  }
  template <typename T>
  void Positive(absl::string_view field, T value) {
    if (!(value > T{0})) Fail(field, absl::StrCat("must be above 0, is ", value));
  }
  template <typename T>
  void NotNegative(absl::string_view field, T value) {
    if (!(value >= T{0})) Fail(field, absl::StrCat("must be at least 0, is ", value));
  }
  void Unique(const std::string& field, const std::string& id, std::set<std::string>& ids) {
    status_.Update(ValidateId(field, id));
    if (!ids.insert(id).second) Fail(field, absl::StrCat("\"", id, "\" is there twice"));
  }
  void Known(absl::string_view field, const std::string& id, const std::set<std::string>& ids,
             absl::string_view of) {
    if (!ids.contains(id)) {
      Fail(field,
           absl::StrCat("must be an id of ", of, " (", absl::StrJoin(ids, ", "), "), is \"", id, "\""));
    }
  }
  void Filter(absl::string_view field, const std::string& name) {
    if (!ResponseFilter::Named(name, recipe_.prompt_format()).has_value()) {
      Fail(field, absl::StrCat("must be \"paper\", \"world\" or \"none\", is \"", name, "\""));
    }
  }

  void World(absl::string_view field, const std::string& name) {
    if (world::World::Named(name) == nullptr) {
      Fail(field, absl::StrCat("must be \"tiny\" or \"large\", is \"", name, "\""));
    }
  }

  void Models() {
    if (recipe_.models().empty()) Fail("models", "must hold at least one");
    for (int i = 0; i < recipe_.models_size(); ++i) {
      Unique(absl::StrCat("models[", i, "].id"), recipe_.models(i).id(), models_);
      if (recipe_.models(i).source().empty()) {
        Fail(absl::StrCat("models[", i, "].source"), "must name artifacts/{digest} or a folder, is empty");
      }
    }
  }

  void Sampling(const std::string& field, const types::v1::SamplingParams& sampling) {
    Range(field + ".temperature", sampling.has_temperature() ? sampling.temperature() : 1.0, 0.0, 10.0);
    const double top_p = sampling.has_top_p() ? sampling.top_p() : 1.0;
    if (!(top_p > 0 && top_p <= 1)) Fail(field + ".top_p", absl::StrCat("must be in (0, 1], is ", top_p));
    NotNegative(field + ".top_k", sampling.top_k());
    if (!(sampling.min_p() >= 0 && sampling.min_p() < 1)) {
      Fail(field + ".min_p", absl::StrCat("must be in [0, 1), is ", sampling.min_p()));
    }
    if (sampling.has_max_new_tokens()) Positive(field + ".max_new_tokens", sampling.max_new_tokens());
    if (sampling.has_n() && sampling.n() != 1) Fail(field + ".n", "is the stage's own, must be unset");
    if (sampling.seed() != 0) Fail(field + ".seed", "derives from the recipe's seed, must be unset");
    Range(field + ".stop", sampling.stop_size(), 0, 16);
  }

  void Configuration(const std::string& field, const v1::Configuration& configuration) {
    status_.Update(ValidateId(field + ".id", configuration.id()));
    Known(field + ".model", configuration.model(), models_, "models");
    NotNegative(field + ".shots", configuration.shots());
    NotNegative(field + ".max_new_tokens", configuration.max_new_tokens());
    if (configuration.shots() > 0) {
      Known(field + ".demonstrations", configuration.demonstrations(), demonstrations_, "demonstrations");
    }
    if (status_.ok()) status_ = FewShotConfiguration::Create(field, recipe_, configuration).status();
  }

  void Prompts(const v1::PromptStage& prompts) {
    if (!prompts.given_prompts().empty()) {
      for (int i = 0; i < prompts.given_prompts_size(); ++i) {
        if (prompts.given_prompts(i).empty()) {
          Fail(absl::StrCat("prompts.given_prompts[", i, "]"), "must not be empty");
        }
      }
      return;
    }
    Known("prompts.model", prompts.model(), models_, "models");
    Range("prompts.num_prompts", prompts.num_prompts(), 1, 10'000'000);
    Range("prompts.attempts_per_round", prompts.attempts_per_round(), 1, 4096);
    Positive("prompts.max_rounds", prompts.max_rounds());
    const auto seeds = PromptSeeds::Parse(prompts.seed_text());
    if (!seeds.ok()) {
      Fail("prompts.seed_text", absl::StrCat("must hold the seed file: ", seeds.status().message()));
    } else {
      Range("prompts.num_shots", prompts.num_shots(), 1, static_cast<int>(seeds->prompts.size()));
    }
    if (prompts.filter().has_max_rouge_l())
      Positive("prompts.filter.max_rouge_l", prompts.filter().max_rouge_l());
    if (prompts.filter().has_max_repeats())
      NotNegative("prompts.filter.max_repeats", prompts.filter().max_repeats());
    if (prompts.filter().has_max_opening_share()) {
      const double share = prompts.filter().max_opening_share();
      if (!(share > 0 && share <= 1)) Fail("prompts.filter.max_opening_share", "must be in (0, 1]");
    }
    World("prompts.filter.world", prompts.filter().world());
    Sampling("prompts.sampling", prompts.sampling());
  }

  void Responses(const v1::ResponseStage& responses) {
    NotNegative("responses.num_prompts", responses.num_prompts());
    if (responses.configurations().empty()) Fail("responses.configurations", "must hold at least one");
    for (int i = 0; i < responses.configurations_size(); ++i) {
      const std::string field = absl::StrCat("responses.configurations[", i, "]");
      Unique(field + ".id", responses.configurations(i).id(), configurations_);
      Configuration(field, responses.configurations(i));
    }
    Sampling("responses.sampling", responses.sampling());
    Filter("responses.filter", responses.filter());
  }

  void Comparisons(const v1::ComparisonStage& comparisons) {
    std::set<std::string> ranked;
    for (int i = 0; i < comparisons.rubric_size(); ++i) {
      const std::string field = absl::StrCat("comparisons.rubric[", i, "].configurations");
      if (comparisons.rubric(i).configurations().empty()) Fail(field, "must hold at least one");
      for (const std::string& id : comparisons.rubric(i).configurations()) {
        Known(field, id, configurations_, "responses.configurations");
        if (!ranked.insert(id).second) Fail(field, absl::StrCat("\"", id, "\" is ranked twice"));
      }
    }
    if (recipe_.has_responses() && comparisons.rubric_size() < 2) {
      Fail("comparisons.rubric", "must have at least two ranks");
    }
    Range("comparisons.min_rank_gap", comparisons.min_rank_gap(), 1, 1000);
    NotNegative("comparisons.max_pairs", comparisons.max_pairs());
    const bool source = !comparisons.agreeing_source().empty();
    const bool target = !comparisons.agreeing_target().empty();
    if (source && target) Fail("comparisons.agreeing_source", "excludes agreeing_target");
    if ((source || target) && comparisons.agreeing_scorer().empty()) {
      Fail("comparisons.agreeing_scorer", "must name the scorer, as models/{id}");
    }
  }

  void Optimizer(const std::string& field, const trainer::v1::OptimizerSpec& optimizer) {
    Positive(field + ".learning_rate", optimizer.learning_rate());
    NotNegative(field + ".weight_decay", optimizer.weight_decay());
    NotNegative(field + ".warmup_steps", optimizer.warmup_steps());
    Range(field + ".final_fraction", optimizer.final_fraction(), 0.0, 1.0);
    NotNegative(field + ".max_grad_norm", optimizer.max_grad_norm());
  }

  template <typename Spec>
  void Training(const std::string& field, const Spec& spec) {
    if (!spec.dataset().empty()) Fail(field + ".dataset", "is the stage's own, must be unset");
    Positive(field + ".epochs", spec.epochs());
    Positive(field + ".batch_size", spec.batch_size());
    Positive(field + ".max_tokens", spec.max_tokens());
  }

  void RewardModel(const v1::RewardModelStage& stage) {
    Known("reward_model.base_model", stage.base_model(), models_, "models");
    Training("reward_model.spec", stage.spec());
    Range("reward_model.spec.held_out_fraction", stage.spec().held_out_fraction(), 0.0, 0.5);
    Optimizer("reward_model.optimizer", stage.optimizer());
  }

  void Demonstration(const v1::DemonstrationStage& stage) {
    Configuration("demonstration.assistant", stage.assistant());
    NotNegative("demonstration.num_prompts", stage.num_prompts());
    Range("demonstration.num_candidates", stage.num_candidates(), 1, 64);
    Range("demonstration.max_turns", stage.max_turns(), 1, 8);
    Sampling("demonstration.sampling", stage.sampling());
    Filter("demonstration.filter", stage.filter());
    if (!(stage.drop_lowest_share() >= 0 && stage.drop_lowest_share() < 1)) {
      Fail("demonstration.drop_lowest_share",
           absl::StrCat("must be in [0, 1), is ", stage.drop_lowest_share()));
    }
  }

  void Sft(const v1::SftStage& stage) {
    Known("sft.base_model", stage.base_model(), models_, "models");
    Training("sft.spec", stage.spec());
    Optimizer("sft.optimizer", stage.optimizer());
  }

  void Rl(const v1::RlStage& stage) {
    Optimizer("rl.optimizer", stage.optimizer());
    if (stage.algorithm() == v1::RlStage::ALGORITHM_DPO) return Pairs(stage);
    if (stage.has_dpo()) Fail("rl.dpo", "is of rl.algorithm ALGORITHM_DPO alone, must be unset");
    if (stage.min_margin() != 0) {
      Fail("rl.min_margin", "is of rl.algorithm ALGORITHM_DPO alone, must be unset");
    }
    switch (stage.algorithm()) {
      case v1::RlStage::ALGORITHM_UNSPECIFIED:
      case v1::RlStage::ALGORITHM_PPO:
        ValueFunction(stage.spec());
        break;
      case v1::RlStage::ALGORITHM_GRPO:
        Groups(stage.spec());
        break;
      default:
        Fail("rl.algorithm", absl::StrCat("is unknown: ", static_cast<int>(stage.algorithm())));
    }
    Rollouts(stage.spec());
  }

  void ValueFunction(const trainer::v1::PpoSpec& spec) {
    if (spec.group_size() != 0) {
      Fail("rl.spec.group_size", "is of rl.algorithm ALGORITHM_GRPO alone, must be unset");
    }
    if (spec.has_scale_advantages()) {
      Fail("rl.spec.scale_advantages", "is of rl.algorithm ALGORITHM_GRPO alone, must be unset");
    }
    Positive("rl.spec.value_learning_rate", spec.value_learning_rate());
    NotNegative("rl.spec.value_warmup_iterations", spec.value_warmup_iterations());
  }

  void Groups(const trainer::v1::PpoSpec& spec) {
    const auto unset = [this](absl::string_view field, bool is) {
      if (!is) Fail(field, "must be 0 or unset: rl.algorithm ALGORITHM_GRPO has no value function");
    };
    Range("rl.spec.group_size", spec.group_size(), 2, 1'000'000);
    if (spec.group_size() > 0 && spec.rollouts() % spec.group_size() != 0) {
      Fail("rl.spec.group_size",
           absl::StrCat("must divide rl.spec.rollouts, ", spec.rollouts(), ", is ", spec.group_size()));
    }
    unset("rl.spec.value_learning_rate", spec.value_learning_rate() == 0);
    unset("rl.spec.value_warmup_iterations", spec.value_warmup_iterations() == 0);
    unset("rl.spec.value_model", spec.value_model().empty());
  }

  void Pairs(const v1::RlStage& stage) {
    Training("rl.dpo", stage.dpo());
    Positive("rl.dpo.beta", stage.dpo().beta());
    NotNegative("rl.min_margin", stage.min_margin());
    if (stage.only_unseen_prompts()) {
      Fail("rl.only_unseen_prompts",
           "must be false with rl.algorithm ALGORITHM_DPO: its pairs are answers to the prompts that SFT "
           "uses");
    }
    if (recipe_.has_demonstration() && recipe_.demonstration().num_candidates() < 2) {
      Fail("demonstration.num_candidates",
           absl::StrCat("must be at least 2 with rl.algorithm ALGORITHM_DPO, whose pairs they are, is ",
                        recipe_.demonstration().num_candidates()));
    }
  }

  void Rollouts(const trainer::v1::PpoSpec& spec) {
    if (!spec.dataset().empty() || !spec.reward_model().empty() || !spec.reward_target().empty()) {
      Fail("rl.spec", "dataset, reward_model and reward_target are the stage's own, must be unset");
    }
    Positive("rl.spec.num_iterations", spec.num_iterations());
    Positive("rl.spec.rollouts", spec.rollouts());
    Positive("rl.spec.epochs", spec.epochs());
    Range("rl.spec.minibatch_size", spec.minibatch_size(), 1, std::max(spec.rollouts(), 1));
    Positive("rl.spec.max_new_tokens", spec.max_new_tokens());
    NotNegative("rl.spec.kl_coefficient", spec.kl_coefficient());
    NotNegative("rl.spec.kl_target", spec.kl_target());
  }

  void Evaluation(const v1::EvaluationStage& stage) {
    Configuration("evaluation.baseline", stage.baseline());
    std::set<std::string> ids;
    for (int i = 0; i < stage.grid_size(); ++i) {
      const std::string field = absl::StrCat("evaluation.grid[", i, "]");
      Unique(field + ".id", stage.grid(i).id(), ids);
      Configuration(field, stage.grid(i));
    }
    NotNegative("evaluation.world_questions", stage.world_questions());
    World("evaluation.world", stage.world());
    if (stage.prompts().empty() && stage.world_questions() == 0) {
      Fail("evaluation.prompts", "must hold prompts, or world_questions be above 0");
    }
    NotNegative("evaluation.grid_prompts", stage.grid_prompts());
    Sampling("evaluation.sampling", stage.sampling());
    Range("evaluation.best_of", stage.best_of(), 0, 64);
    Range("evaluation.bootstrap", stage.bootstrap(), 1, 1'000'000);
    NotNegative("evaluation.num_pairs", stage.num_pairs());
  }

  const v1::Recipe& recipe_;
  absl::Status status_;
  std::set<std::string> models_;
  std::set<std::string> demonstrations_;
  std::set<std::string> configurations_;
};

// A prompt that some model will continue, or score with its answer, as long as it can be foreseen.
struct ForeseenText {
  std::string field;
  std::string text;
  int64_t new_tokens = 0;
  bool scored = false;  // by what is trained from the model
};

std::string Longest(const google::protobuf::RepeatedPtrField<std::string>& texts) {
  std::string longest;
  for (const std::string& text : texts) {
    if (text.size() > longest.size()) longest = text;
  }
  return longest;
}

// By model. Mined prompts are not there yet; the longest seed stands for them.
absl::StatusOr<std::map<std::string, std::vector<ForeseenText>>> ForeseenTexts(const v1::Recipe& recipe) {
  std::map<std::string, std::vector<ForeseenText>> texts;
  std::string prompt = Longest(recipe.prompts().given_prompts());
  if (prompt.empty()) {
    ALMOST_ASSIGN_OR_RETURN(const PromptSeeds seeds, PromptSeeds::Parse(recipe.prompts().seed_text()));
    for (const std::string& seed : seeds.prompts)
      prompt = std::max(prompt, seed, [](const auto& a, const auto& b) { return a.size() < b.size(); });
    const std::vector<std::string> shots(static_cast<size_t>(recipe.prompts().num_shots()), prompt);
    texts[recipe.prompts().model()].push_back(
        {"prompts", PromptRequest(seeds.instruction, shots), recipe.prompts().sampling().max_new_tokens()});
  }
  const auto add = [&](const std::string& field, const v1::Configuration& configuration,
                       const std::string& longest,
                       const types::v1::SamplingParams& sampling) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(const FewShotConfiguration few_shot,
                            FewShotConfiguration::Create(field, recipe, configuration));
    ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> all, few_shot.AllPrompts(longest));
    for (const std::string& text : all) {
      const int64_t own = configuration.max_new_tokens();
      texts[configuration.model()].push_back({field, text, own > 0 ? own : sampling.max_new_tokens()});
    }
    return absl::OkStatus();
  };
  for (int i = 0; i < recipe.responses().configurations_size(); ++i) {
    ALMOST_RETURN_IF_ERROR(add(absl::StrCat("responses.configurations[", i, "]"),
                               recipe.responses().configurations(i), prompt, recipe.responses().sampling()));
  }
  ALMOST_ASSIGN_OR_RETURN(const PromptFormat format, PromptFormat::Named(recipe.prompt_format()));
  ALMOST_ASSIGN_OR_RETURN(const std::string text, format.RenderForCompletion({{"user", prompt}}));
  const auto score = [&](const std::string& field, int64_t new_tokens) {
    const int64_t with_end_of_text = new_tokens + 1;
    texts[recipe.reward_model().base_model()].push_back({field, text, with_end_of_text, /*scored=*/true});
  };
  if (recipe.has_demonstration()) {
    const v1::DemonstrationStage& stage = recipe.demonstration();
    ALMOST_RETURN_IF_ERROR(add("demonstration.assistant", stage.assistant(), prompt, stage.sampling()));
    const int64_t own = stage.assistant().max_new_tokens();
    score("demonstration", own > 0 ? own : stage.sampling().max_new_tokens());
  }
  if (recipe.has_rl() && recipe.rl().algorithm() != v1::RlStage::ALGORITHM_DPO) {
    const int64_t new_tokens = recipe.rl().spec().max_new_tokens();
    texts[recipe.sft().base_model()].push_back({"rl.spec", text, new_tokens});
    score("rl.spec", new_tokens);
  }
  if (recipe.has_evaluation()) {
    const std::string longest = Longest(recipe.evaluation().prompts());
    const v1::EvaluationStage& stage = recipe.evaluation();
    ALMOST_RETURN_IF_ERROR(
        add("evaluation.baseline", stage.baseline(), longest.empty() ? prompt : longest, stage.sampling()));
    for (int i = 0; i < stage.grid_size(); ++i) {
      ALMOST_RETURN_IF_ERROR(add(absl::StrCat("evaluation.grid[", i, "]"), stage.grid(i),
                                 longest.empty() ? prompt : longest, stage.sampling()));
    }
  }
  return texts;
}

// What is learned from is cut to max_tokens, and no model can read more than its context.
absl::Status CheckTrainingLengths(const v1::Recipe& recipe,
                                  const std::map<std::string, types::v1::Model>& models) {
  const auto check = [&](absl::string_view spec, const std::string& model, int64_t tokens) -> absl::Status {
    const int64_t context = models.at(model).context_tokens();
    if (tokens <= context) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(spec, ".max_tokens: ", tokens, " tokens do not fit the ", context, " of model ", model));
  };
  if (recipe.has_reward_model()) {
    const v1::RewardModelStage& stage = recipe.reward_model();
    ALMOST_RETURN_IF_ERROR(check("reward_model.spec", stage.base_model(), stage.spec().max_tokens()));
  }
  if (recipe.has_sft()) {
    ALMOST_RETURN_IF_ERROR(check("sft.spec", recipe.sft().base_model(), recipe.sft().spec().max_tokens()));
    ALMOST_RETURN_IF_ERROR(check("rl.dpo", recipe.sft().base_model(), recipe.rl().dpo().max_tokens()));
  }
  return absl::OkStatus();
}

std::string GigabytesText(int64_t bytes) {
  return absl::StrFormat("%.3g GB", static_cast<double>(bytes) / 1e9);
}

// What each stage has in memory at once, against what a host can hold. A scorer of its own source is not
// counted: what it is shows when it is loaded.
absl::Status CheckMemory(const v1::Recipe& recipe, const std::map<std::string, types::v1::Model>& models,
                         const HostMemory& memory) {
  for (const std::unique_ptr<Stage>& stage : MakeStages(recipe, {})) {
    struct AtOnce {
      int64_t bytes = 0;
      std::vector<std::string> names;
    };
    std::map<std::pair<ModelHost, int>, AtOnce> by_turn;
    for (const ModelNeed& need : stage->models()) {
      if (!need.source.empty()) continue;
      AtOnce& at_once = by_turn[{need.host, need.turn}];
      at_once.bytes += Foreseen(need, recipe, models.at(BaseModel(need, recipe))).weight_bytes();
      at_once.names.push_back(need.stage.empty() ? need.recipe_model : need.stage);
    }
    for (const auto& [place, at_once] : by_turn) {
      const auto& [bytes, names] = at_once;
      const bool generation = place.first == ModelHost::kGeneration;
      const int64_t most = generation ? memory.generation : memory.reward;
      if (most == 0 || bytes <= most) continue;
      return absl::FailedPreconditionError(
          absl::StrCat(std::string(stage->id()), ": has ", absl::StrJoin(names, ", "), " in memory at once, ",
                       GigabytesText(bytes), " of weights; a replica of ",
                       generation ? "generation" : "reward", " has room for ", GigabytesText(most), " (--",
                       generation ? "generation" : "reward", "_memory_gigabytes)"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

v1::Recipe WithDefaults(v1::Recipe recipe) {
  // Stages that are not there are left out together with what needs them, as MakeStages does.
  if (!recipe.has_prompts()) recipe.clear_responses();
  if (!recipe.has_responses()) recipe.clear_comparisons();
  if (!recipe.has_comparisons()) recipe.clear_reward_model();
  if (!recipe.has_reward_model()) recipe.clear_demonstration();
  if (!recipe.has_demonstration()) recipe.clear_sft();
  if (!recipe.has_sft()) recipe.clear_rl();
  if (recipe.prompt_format().empty()) recipe.set_prompt_format("paper");
  const std::string filter = recipe.prompt_format() == "world" ? "world" : "paper";
  if (recipe.has_prompts() && !recipe.prompts().has_num_shots()) recipe.mutable_prompts()->set_num_shots(10);
  if (recipe.has_responses() && recipe.responses().filter().empty()) {
    recipe.mutable_responses()->set_filter(filter);
  }
  if (recipe.has_comparisons()) {
    v1::ComparisonStage& comparisons = *recipe.mutable_comparisons();
    if (comparisons.rule() == v1::ComparisonStage::RULE_UNSPECIFIED) {
      comparisons.set_rule(v1::ComparisonStage::RULE_PAPER);
    }
    if (!comparisons.has_min_rank_gap()) comparisons.set_min_rank_gap(2);
    if (comparisons.rubric().empty()) {
      for (const v1::Configuration& each : recipe.responses().configurations()) {
        comparisons.add_rubric()->add_configurations(each.id());
      }
    }
  }
  if (recipe.has_demonstration()) {
    v1::DemonstrationStage& demonstration = *recipe.mutable_demonstration();
    if (!demonstration.has_num_candidates()) demonstration.set_num_candidates(4);
    if (!demonstration.has_max_turns()) demonstration.set_max_turns(2);
    if (demonstration.filter().empty()) demonstration.set_filter(filter);
  }
  if (recipe.has_rl() && recipe.rl().algorithm() == v1::RlStage::ALGORITHM_UNSPECIFIED) {
    recipe.mutable_rl()->set_algorithm(v1::RlStage::ALGORITHM_PPO);
  }
  if (recipe.has_evaluation() && !recipe.evaluation().has_bootstrap()) {
    recipe.mutable_evaluation()->set_bootstrap(2000);
  }
  return recipe;
}

absl::Status CheckRecipe(const v1::Recipe& recipe) { return Checker(recipe).Run(); }

absl::Status CheckModels(const v1::Recipe& recipe, Services& services,
                         const std::function<bool(const std::string& model_name)>& holds,
                         const HostMemory& memory) {
  ALMOST_ASSIGN_OR_RETURN(const auto texts, ForeseenTexts(recipe));
  std::map<std::string, types::v1::Model> models;  // by id
  for (int i = 0; i < recipe.models_size(); ++i) {
    const std::string& id = recipe.models(i).id();
    const std::string field = absl::StrCat("models[", i, "]");
    ModelNeed need;
    need.role = id;
    need.recipe_model = id;
    ALMOST_ASSIGN_OR_RETURN(const types::v1::LoadModelRequest load, LoadRequest(need, recipe, {}));
    const auto model = services.LoadModel({absl::Minutes(10), {}}, ModelHost::kGeneration, load);
    if (!model.ok()) return Annotate(model.status(), field);
    models[id] = *model;
    const absl::Status fits = [&]() -> absl::Status {
      const auto of_model = texts.find(id);
      if (of_model == texts.end()) return absl::OkStatus();
      for (const ForeseenText& each : of_model->second) {
        types::v1::Input input;
        input.set_text(each.text);
        generation::v1::TokenizeRequest request;
        request.set_model(load.name());
        *request.add_inputs() = input;
        ALMOST_ASSIGN_OR_RETURN(const auto answer, services.Tokenize({}, request));
        if (answer.inputs_size() != 1) return absl::InternalError("generation tokenized nothing");
        const int64_t tokens = answer.inputs(0).token_ids_size();
        const bool fits_context = tokens + each.new_tokens <= model->context_tokens();
        const bool fits_cache = each.scored || tokens + each.new_tokens <= model->cache_tokens();
        if (!fits_context || !fits_cache) {
          return absl::FailedPreconditionError(absl::StrCat(
              each.field, ": ", tokens, " tokens of prompt and ", each.new_tokens,
              " new ones do not fit the ", fits_context ? model->cache_tokens() : model->context_tokens(),
              fits_context ? " of the cache (generation's --kv_cache_bytes)" : "", " of model ", id));
        }
      }
      return absl::OkStatus();
    }();
    if (!holds(load.name())) {
      types::v1::UnloadModelRequest unload;
      unload.set_name(load.name());
      services.UnloadModel({absl::Seconds(10), {}}, ModelHost::kGeneration, unload).IgnoreError();
    }
    ALMOST_RETURN_IF_ERROR(fits);
  }
  ALMOST_RETURN_IF_ERROR(CheckTrainingLengths(recipe, models));
  return CheckMemory(recipe, models, memory);
}

}  // namespace almost::orchestrator
