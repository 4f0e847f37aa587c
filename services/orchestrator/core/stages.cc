#include "services/orchestrator/core/stages.h"

namespace almost::orchestrator {

std::vector<std::unique_ptr<Stage>> MakeStages(const v1::Recipe& recipe, const StageSettings& settings) {
  const bool prompts = recipe.has_prompts();
  const bool responses = prompts && recipe.has_responses();
  const bool comparisons = responses && recipe.has_comparisons();
  const bool reward_model = comparisons && recipe.has_reward_model();
  const bool demonstrations = reward_model && recipe.has_demonstration();
  const bool sft = demonstrations && recipe.has_sft();
  const bool rl = sft && recipe.has_rl();
  std::vector<std::unique_ptr<Stage>> stages;
  if (prompts) stages.push_back(MakePromptStage(recipe));
  if (responses) stages.push_back(MakeResponseStage(recipe));
  if (comparisons) stages.push_back(MakeComparisonStage(recipe));
  if (reward_model) stages.push_back(MakeRewardModelStage());
  if (demonstrations) stages.push_back(MakeDemonstrationStage(recipe));
  if (sft) stages.push_back(MakeSftStage());
  if (rl) stages.push_back(MakeRlStage(recipe, settings));
  if (prompts && recipe.has_evaluation()) stages.push_back(MakeEvaluationStage(recipe));
  if (prompts) stages.push_back(MakeReportStage());
  return stages;
}

}  // namespace almost::orchestrator
