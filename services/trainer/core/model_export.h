#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/model_config.h"
#include "common/text/prompt_format.h"
#include "common/text/tokenizer.h"
#include "nlohmann/json.hpp"
#include "services/trainer/core/job_spec.h"

// What lies beside the weights in a Hugging Face folder.
namespace almost::trainer {

// The format named by the job, else by the folder's almost.json, else the paper's.
// kInvalidArgument: no such format; kDataLoss: almost.json is not what we write.
absl::StatusOr<PromptFormat> ChoosePromptFormat(const std::string& name, const std::filesystem::path& folder);

struct ExportedModel {
  ModelConfig config;
  PromptFormat format;
  std::filesystem::path tokenizer_folder;
  std::shared_ptr<const Tokenizer> tokenizer;
  nlohmann::json
      training;           // how it was trained; no path and no time, so that equal trainings give equal bytes
  nlohmann::json reward;  // {"mean", "std"} of a reward model's raw scores over its training set, or null
};

// Writes into the existing `folder`: tokenizer files as they were, tokenizer_config.json with the dialogue
// layout as chat_template, generation_config.json with the end-of-text ids, and almost.json. A vanilla
// model (`is_chat` false) gets no chat_template. Errors name the file.
absl::Status WriteModelFiles(const ExportedModel& model, bool is_chat, const std::filesystem::path& folder);

}  // namespace almost::trainer
