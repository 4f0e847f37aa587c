#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/text/prompt_format.h"

// The files that benchmarks come in, plain or gzip. Every reader refuses what is not of its shape with
// kInvalidArgument, naming file, line (from 1) and field, and a file without an item; kNotFound: no such
// file.
namespace almost {

// Two dialogues of which the first was preferred; each ends in the assistant's answer.
struct Preference {
  std::vector<Message> chosen;
  std::vector<Message> rejected;
  std::string type;  // the file's category; may be empty
};

enum class PreferenceFormat {
  // hhh_eval.json of naver-ai/ALMoST: a JSON list of {chosen, rejected, type}, whole dialogues written as
  // "\n\nHuman: …\n\nAssistant: …", the context to the letter the same on both sides.
  kHhh,
  // JSON Lines of {chosen, rejected}, whole dialogues as above whose contexts may differ.
  kHhRlhf,
  // JSON Lines of {prompt, chosen, rejected, subset}, single turns; the subset is the type.
  kRewardBench,
  // JSON Lines of {prompt, chosen, rejected}: comparisons.jsonl of a run; `meta`, where it is there, the
  // type.
  kComparisons,
};
// "hhh", "hh-rlhf", "rewardbench", "comparisons"; kInvalidArgument: none of these.
absl::StatusOr<PreferenceFormat> PreferenceFormatNamed(absl::string_view name);

absl::StatusOr<std::vector<Preference>> ReadPreferences(const std::filesystem::path& file,
                                                        PreferenceFormat format);

// A dialogue written as above in turns. One blank after each marker belongs to the marker, everything else to
// the turn. kInvalidArgument: it does not begin with a human turn or not end with the assistant's.
absl::StatusOr<std::vector<Message>> ParseDialogue(absl::string_view text);

// The answers' difference in length, in code points: above 0 where the chosen one is longer.
int64_t LengthDifference(const Preference& preference);

// A question to be answered.
struct BenchmarkPrompt {
  std::string id;
  std::string text;
  std::string category;  // may be empty
};

// .jsonl: Vicuna's {question_id, text, category}, or a run's {prompt}, numbered by line from 0 where it has
// no id. Any other name: a prompt a line.
absl::StatusOr<std::vector<BenchmarkPrompt>> ReadPromptFile(const std::filesystem::path& file);

// Answers to the questions of a prompt file: JSON Lines {question_id, text} of the official code, or {id,
// text}, in any order. kInvalidArgument: also an answer twice or one that is missing.
absl::StatusOr<std::vector<std::string>> ReadAnswers(const std::filesystem::path& file,
                                                     const std::vector<BenchmarkPrompt>& prompts);

struct TruthfulQuestion {
  std::string question;
  std::vector<std::string> choices;
  size_t truth = 0;  // the index of the one true choice
};

// mc_task.json of the official TruthfulQA: a list of {question, mc1_targets: {choice: 0 or 1}}, one of each
// question's choices true.
absl::StatusOr<std::vector<TruthfulQuestion>> ReadTruthfulQa(const std::filesystem::path& file);

// Documents whose perplexity is asked for. .jsonl: {text} a line; any other name: the whole file is one.
absl::StatusOr<std::vector<std::string>> ReadDocuments(const std::filesystem::path& file);

}  // namespace almost
