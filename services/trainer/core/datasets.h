#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/text/prompt_format.h"
#include "common/text/tokenizer.h"
#include "services/trainer/core/job_spec.h"
#include "services/trainer/core/json_lines_file.h"

// Training data from JSON Lines files, as token ids. Each reader goes through its whole file: it refuses one
// without a sample (kInvalidArgument) and names file, line (from 1) and reason of one it cannot use. Samples
// stay in the file until they are asked for.
namespace almost::trainer {

// A token sequence and which of its tokens are to be learned.
struct Sample {
  std::vector<int32_t> ids;
  std::vector<bool> is_target;  // as long as ids; never the first, which nothing predicts
  int64_t num_targets() const;
  // How many tokens come before the one that predicts the first target; 0 where nothing is to be learned. All
  // that samples with one prompt have to compute alike.
  int64_t num_prompt_tokens() const;
};

struct PreferencePair {
  Sample chosen;
  Sample rejected;
  size_t chosen_characters = 0;
  size_t rejected_characters = 0;
  double margin = 0;  // by how much the scores are to differ; 0 where the line does not say
};

// How text becomes samples.
struct Encoding {
  PromptFormat format;
  std::shared_ptr<const Tokenizer> tokenizer;
  int max_tokens;
};

struct Dialogues {
  Dataset<Sample> samples;
  int64_t num_cut = 0;              // longer than max_tokens
  int64_t num_without_targets = 0;  // left out: nothing of the assistant's before the cut
};

// Lines {"messages": [{"role", "content"}]}: targets are the assistant's tokens with the end-of-text of each
// turn. Cut at the end to max_tokens.
absl::StatusOr<Dialogues> ReadDialogues(const std::filesystem::path& file, const Encoding& encoding);

struct Comparisons {
  Dataset<PreferencePair> pairs;
  std::vector<uint64_t> prompts;  // by pair; equal ones for equal prompts
};

// Lines {"prompt", "chosen", "rejected"} and, where it has one, "margin": targets are the response's tokens
// and its end-of-text. One that is too long is cut so that the end-of-text can be put back: what a reward
// model reads its score from.
absl::StatusOr<Comparisons> ReadComparisons(const std::filesystem::path& file, const Encoding& encoding);

// Lines {"text"}: documents between the tokenizer's markers, cut to max_tokens; every token but the first is
// a target. One of fewer than two tokens is refused.
absl::StatusOr<Dataset<Sample>> ReadTexts(const std::filesystem::path& file,
                                          std::shared_ptr<const Tokenizer> tokenizer, int max_tokens);

// Lines {"prompt"}: whatever else a line holds is not looked at. One that leaves no room for an answer of
// `max_new_tokens` within max_tokens, which is that of `reader`, is refused.
absl::StatusOr<Dataset<std::string>> ReadPrompts(const std::filesystem::path& file, const Encoding& encoding,
                                                 int max_new_tokens, absl::string_view reader = "model");

// Whether the job's datasets are there, not empty, and have a first line of their kind: what can be said
// about a dataset of any size before the job's turn comes. OK where it has none. kInvalidArgument:
// "<kind>.dataset", file and reason.
absl::Status CheckDataset(const KindSpec& kind);

// Prompt and response as a reward model reads them.
absl::StatusOr<Sample> EncodeResponse(const std::string& prompt, const std::string& response,
                                      const Encoding& encoding);

// Whether a prompt, of Comparisons::prompts, belongs to the share held out: a function of the prompt alone,
// so that every pair of a prompt is on the same side.
bool IsHeldOut(uint64_t prompt, double fraction);
uint64_t HashOfPrompt(const std::string& prompt);

}  // namespace almost::trainer
