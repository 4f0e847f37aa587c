#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/text/rouge_l.h"

// Prompt generation by dynamic self-instruct (METHOD.md section 1): what a model is asked, and which of its
// continuations become prompts.
namespace almost {

// A seed file: the first line an instruction (none when it is blank), each other line a prompt. Blank lines
// are left out.
struct PromptSeeds {
  std::string instruction;
  std::vector<std::string> prompts;

  // kInvalidArgument: no prompt after the first line.
  static absl::StatusOr<PromptSeeds> Parse(absl::string_view text);
};

// The text to continue: the instruction and a blank line (unless it is empty), a line "Query: …" for each
// shot, and "Query:".
std::string PromptRequest(absl::string_view instruction, std::span<const std::string> shots);

// Why a prompt is dropped: the rules in the order in which they are tried.
enum class PromptDropReason {
  kEmpty,
  kTooShort,
  kCutOff,
  kNoQuestionMark,
  kNoCapital,
  kWordCount,
  kColon,
  kTooSimilar,
  kRepeated,
  kCommonOpening,
};
inline constexpr std::array kPromptDropReasons = {
    PromptDropReason::kEmpty,          PromptDropReason::kTooShort,   PromptDropReason::kCutOff,
    PromptDropReason::kNoQuestionMark, PromptDropReason::kNoCapital,  PromptDropReason::kWordCount,
    PromptDropReason::kColon,          PromptDropReason::kTooSimilar, PromptDropReason::kRepeated,
    PromptDropReason::kCommonOpening};
// In snake_case, for labels and files: "too_similar".
absl::string_view Name(PromptDropReason reason);

// Which part of a continuation is a prompt, and which prompts are dropped. A field at its default switches
// its rule off. Characters are code points; punctuation is ASCII's.
struct PromptFilter {
  // Every complete line of the continuation is a prompt of its own; otherwise the first line that begins with
  // "Query:" is, or where none does the continuation's first line, cut at a further "query:".
  bool takes_every_line = false;

  int min_characters = 0;           // kTooShort: fewer, and no punctuation at the end
  int max_characters = 0;           // kCutOff: more, and no punctuation at the end
  bool must_be_a_question = false;  // kNoQuestionMark, kNoCapital (A-Z in front)
  int min_words = 0;                // kWordCount
  int max_words = 0;                //
  bool refuses_colons = false;      // kColon
  double max_rouge_l = 0;           // kTooSimilar: F1 with a seed or a kept prompt reaches this
  int max_repeats = 0;              // kRepeated: kept this often already, to the letter
  double max_opening_share =
      0;  // kCommonOpening: as many of the wanted prompts begin with the same two words

  // METHOD.md section 1. A long prompt is dropped when it does not end in punctuation: the official code, by
  // a double negation, drops it when it does.
  static PromptFilter Paper();
  // The tiny world's questions, which are too few for a threshold on ROUGE-L.
  static PromptFilter World();

  // The prompts in a continuation of PromptRequest, none checked yet; blank ones are left out.
  std::vector<std::string> Extract(absl::string_view continuation) const;

  // The rules that look at one prompt alone; nothing: it keeps them.
  std::optional<PromptDropReason> CheckForm(absl::string_view prompt) const;
};

// The seeds and the prompts kept so far. Which ones are kept depends on the order of the offers. Not
// thread-safe.
class PromptPool {
 public:
  // `wanted`: how many prompts are to be kept; the quota of an opening is a share of it.
  PromptPool(PromptFilter filter, std::vector<std::string> seeds, int64_t wanted);

  // Keeps `prompt`, or says why not.
  std::optional<PromptDropReason> Offer(absl::string_view prompt);
  // Keeps it unchecked: it was offered to an earlier pool, and kept.
  void Keep(absl::string_view prompt);

  const std::vector<std::string>& seeds() const { return seeds_; }
  const std::vector<std::string>& kept() const { return kept_; }
  bool full() const { return static_cast<int64_t>(kept_.size()) >= wanted_; }

 private:
  const PromptFilter filter_;
  const std::vector<std::string> seeds_;
  const int64_t wanted_;
  std::vector<std::string> kept_;
  RougeLIndex index_;  // seeds, then kept prompts
  absl::flat_hash_map<std::string, int64_t> repeats_;
  absl::flat_hash_map<std::string, int64_t> openings_;
};

}  // namespace almost
