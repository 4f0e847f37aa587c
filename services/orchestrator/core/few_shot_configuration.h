#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "almost/orchestrator/v1/recipe.pb.h"
#include "almost/types/v1/content.pb.h"
#include "common/text/prompt_format.h"

namespace almost::orchestrator {

// The seed of a sample: of the recipe's seed, what it is for, the configuration that answers, and the prompt.
uint64_t SampleSeed(uint64_t recipe_seed, absl::string_view purpose, absl::string_view configuration,
                    int64_t prompt_id);

// A Configuration of the recipe, ready to write prompts: the demonstrations it puts in front, and what ends
// an answer. Immutable.
class FewShotConfiguration {
 public:
  // kInvalidArgument names what the recipe lacks, beneath `field`; kFailedPrecondition: a demonstration file
  // holds fewer demonstrations than shots are asked for.
  static absl::StatusOr<FewShotConfiguration> Create(absl::string_view field, const v1::Recipe& recipe,
                                                     const v1::Configuration& configuration);

  const std::string& id() const { return id_; }
  // Of Recipe.models.
  const std::string& model() const { return model_; }
  // The text for generation to continue. Prompt i is shown demonstration file i modulo their number.
  absl::StatusOr<std::string> Prompt(int64_t prompt_id, const std::string& prompt) const;
  // One text for each demonstration file, with `prompt` at its end.
  absl::StatusOr<std::vector<std::string>> AllPrompts(const std::string& prompt) const;
  // `sampling` for candidate numbers from 0 of one prompt: its SampleSeed, this configuration's length if it
  // has one, and the format's stop strings where there are none.
  types::v1::SamplingParams Sampling(const types::v1::SamplingParams& sampling, uint64_t recipe_seed,
                                     absl::string_view purpose, int64_t prompt_id) const;

 private:
  FewShotConfiguration() = default;
  std::string id_;
  std::string model_;
  int shots_ = 0;
  int max_new_tokens_ = 0;  // 0: as the stage says
  PromptFormat format_;
  std::vector<Demonstrations> files_;  // empty without shots
};

}  // namespace almost::orchestrator
