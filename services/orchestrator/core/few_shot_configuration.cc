#include "services/orchestrator/core/few_shot_configuration.h"

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"

namespace almost::orchestrator {

uint64_t SampleSeed(uint64_t recipe_seed, absl::string_view purpose, absl::string_view configuration,
                    int64_t prompt_id) {
  return DeriveSeed(DeriveSeed(recipe_seed, absl::StrCat(purpose, "/", configuration)),
                    static_cast<uint64_t>(prompt_id));
}

absl::StatusOr<FewShotConfiguration> FewShotConfiguration::Create(absl::string_view field,
                                                                  const v1::Recipe& recipe,
                                                                  const v1::Configuration& configuration) {
  FewShotConfiguration made;
  made.id_ = configuration.id();
  made.model_ = configuration.model();
  made.shots_ = configuration.shots();
  made.max_new_tokens_ = configuration.max_new_tokens();
  auto format = PromptFormat::Named(recipe.prompt_format());
  if (!format.ok())
    return absl::InvalidArgumentError(absl::StrCat("prompt_format: ", format.status().message()));
  made.format_ = *std::move(format);
  if (made.shots_ < 0) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".shots: must be at least 0, is ", made.shots_));
  }
  if (made.shots_ == 0) return made;
  for (const v1::DemonstrationSet& set : recipe.demonstrations()) {
    if (set.id() != configuration.demonstrations()) continue;
    for (int i = 0; i < set.texts_size(); ++i) {
      auto file = Demonstrations::Parse(set.texts(i));
      const std::string name = absl::StrCat("demonstrations[", set.id(), "].texts[", i, "]");
      if (!file.ok()) return absl::InvalidArgumentError(absl::StrCat(name, ": ", file.status().message()));
      if (static_cast<int>(file->examples.size()) < made.shots_) {
        return absl::FailedPreconditionError(absl::StrCat(field, ".shots: asks for ", made.shots_,
                                                          " demonstrations, ", name, " holds ",
                                                          file->examples.size()));
      }
      made.files_.push_back(*std::move(file));
    }
    if (made.files_.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("demonstrations[", set.id(), "].texts: must hold the files' contents, is empty"));
    }
    return made;
  }
  return absl::InvalidArgumentError(absl::StrCat(field,
                                                 ".demonstrations: must be an id of demonstrations, is \"",
                                                 configuration.demonstrations(), "\""));
}

absl::StatusOr<std::string> FewShotConfiguration::Prompt(int64_t prompt_id, const std::string& prompt) const {
  if (files_.empty()) return format_.RenderForCompletion({{"user", prompt}});
  return FewShotPrompt(format_, files_[static_cast<size_t>(prompt_id) % files_.size()], shots_,
                       {{"user", prompt}});
}

absl::StatusOr<std::vector<std::string>> FewShotConfiguration::AllPrompts(const std::string& prompt) const {
  std::vector<std::string> prompts;
  for (size_t file = 0; file < std::max<size_t>(files_.size(), 1); ++file) {
    ALMOST_ASSIGN_OR_RETURN(std::string text, Prompt(static_cast<int64_t>(file), prompt));
    prompts.push_back(std::move(text));
  }
  return prompts;
}

types::v1::SamplingParams FewShotConfiguration::Sampling(const types::v1::SamplingParams& sampling,
                                                         uint64_t recipe_seed, absl::string_view purpose,
                                                         int64_t prompt_id) const {
  types::v1::SamplingParams own = sampling;
  own.set_seed(SampleSeed(recipe_seed, purpose, id_, prompt_id));
  if (max_new_tokens_ > 0) own.set_max_new_tokens(max_new_tokens_);
  if (own.stop().empty()) {
    for (const std::string& stop : format_.stop) own.add_stop(stop);
  }
  return own;
}

}  // namespace almost::orchestrator
