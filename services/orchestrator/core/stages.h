#pragma once

#include <memory>
#include <string>
#include <vector>

#include "services/orchestrator/core/stage.h"

namespace almost::orchestrator {

// What stages must know of where they run, besides the recipe.
struct StageSettings {
  std::string reward_target;  // where the trainer finds the reward service
};

// Prompts of an item of the response stage, whose item c * chunks + n is configuration c's answers to the
// n-th chunk; and of the comparison stage. No answer depends on it.
inline constexpr int64_t kPromptChunk = 64;
inline int64_t NumPromptChunks(int64_t num_prompts) {
  return (num_prompts + kPromptChunk - 1) / kPromptChunk;
}

// Mines prompts round by round, or takes the recipe's. METHOD.md section 1.
std::unique_ptr<Stage> MakePromptStage(const v1::Recipe& recipe);
// An item is a configuration's answers to a chunk of the prompts. Section 2.
std::unique_ptr<Stage> MakeResponseStage(const v1::Recipe& recipe);
// Pairs from the ranking; an item is the pairs of a chunk of the prompts. Section 3.
std::unique_ptr<Stage> MakeComparisonStage(const v1::Recipe& recipe);
// A training job each. Sections 4, 6 and 7.
std::unique_ptr<Stage> MakeRewardModelStage();
std::unique_ptr<Stage> MakeSftStage();
// By rollouts or by pairs, as the recipe chooses.
std::unique_ptr<Stage> MakeRlStage(const v1::Recipe& recipe, const StageSettings& settings);
// An item is a chunk of dialogues; what the whole set decides is decided at the end. Section 5.
std::unique_ptr<Stage> MakeDemonstrationStage(const v1::Recipe& recipe);

// Asks models, reward model and judge about the evaluation prompts; an item is a chunk of these. Section 8.
std::unique_ptr<Stage> MakeEvaluationStage(const v1::Recipe& recipe);
// Leaves report.html and summary.json of whatever the stages before it came to. No items.
std::unique_ptr<Stage> MakeReportStage();

// The stages that `recipe` (defaults filled in) has, in the order of the method: those it sets and whose
// inputs it makes.
std::vector<std::unique_ptr<Stage>> MakeStages(const v1::Recipe& recipe, const StageSettings& settings);

}  // namespace almost::orchestrator
