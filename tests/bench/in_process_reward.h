#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/engine/engine.h"
#include "common/model/model_folder.h"
#include "common/text/tokenizer.h"
#include "services/trainer/core/datasets.h"
#include "services/trainer/core/model_export.h"
#include "services/trainer/core/reward_function.h"

namespace almost::trainer {

// The reward service's part by an engine in this process. Dies where the folder is not a reward model.
inline RewardFunction InProcessReward(const std::filesystem::path& folder) {
  const auto model = ModelFolder::Open(folder).value();
  const std::shared_ptr<engine::Engine> scorer = engine::Engine::Create(model, {}).value();
  const std::shared_ptr<const Tokenizer> tokenizer = Tokenizer::Load(folder).value();
  const PromptFormat format = ChoosePromptFormat("", folder).value();
  return [=](std::span<const RewardInput> inputs) -> absl::StatusOr<std::vector<double>> {
    std::vector<std::vector<int32_t>> sequences;
    for (const RewardInput& input : inputs) {
      sequences.push_back(
          EncodeResponse(input.prompt, input.response, {format, tokenizer, model->config().max_positions})
              .value()
              .ids);
    }
    const std::vector<float> scores = scorer->ScoreSequences(sequences).value();
    return std::vector<double>(scores.begin(), scores.end());
  };
}

}  // namespace almost::trainer
