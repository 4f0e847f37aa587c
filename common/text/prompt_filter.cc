#include "common/text/prompt_filter.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/unicode.h"

namespace almost {
namespace {

constexpr absl::string_view kPrefix = "Query:";

// `line` up to "query:" or "query :", in any case.
absl::string_view CutAtQuery(absl::string_view line) {
  const std::string lower = absl::AsciiStrToLower(line);
  for (size_t at = lower.find("query"); at != std::string::npos; at = lower.find("query", at + 1)) {
    absl::string_view rest = absl::string_view(lower).substr(at + 5);
    if (!rest.empty()) {
      const CodePoint first = FirstCodePoint(rest);
      if (IsSpace(first.value)) rest.remove_prefix(first.size);
    }
    if (absl::StartsWith(rest, ":")) return line.substr(0, at);
  }
  return line;
}

bool EndsInPunctuation(absl::string_view text) {
  return !text.empty() && absl::ascii_ispunct(static_cast<unsigned char>(text.back()));
}

std::string Opening(absl::string_view prompt) {
  const std::vector<absl::string_view> words = SplitAtSpace(prompt);
  if (words.size() < 2) return std::string(prompt);
  return absl::StrCat(words[0], " ", words[1]);
}

}  // namespace

absl::StatusOr<PromptSeeds> PromptSeeds::Parse(absl::string_view text) {
  PromptSeeds seeds;
  bool first = true;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    absl::ConsumeSuffix(&line, "\r");
    const bool blank = StripSpace(line).empty();
    if (std::exchange(first, false)) {
      if (!blank) seeds.instruction = std::string(line);
    } else if (!blank) {
      seeds.prompts.emplace_back(line);
    }
  }
  if (seeds.prompts.empty()) {
    return absl::InvalidArgumentError(
        "seeds: no prompt; the first line is the instruction, each other one a prompt");
  }
  return seeds;
}

std::string PromptRequest(absl::string_view instruction, std::span<const std::string> shots) {
  std::string text;
  if (!instruction.empty()) absl::StrAppend(&text, instruction, "\n\n");
  for (const std::string& shot : shots) absl::StrAppend(&text, kPrefix, " ", shot, "\n");
  return absl::StrCat(text, kPrefix);
}

absl::string_view Name(PromptDropReason reason) {
  switch (reason) {
    case PromptDropReason::kEmpty:
      return "empty";
    case PromptDropReason::kTooShort:
      return "too_short";
    case PromptDropReason::kCutOff:
      return "cut_off";
    case PromptDropReason::kNoQuestionMark:
      return "no_question_mark";
    case PromptDropReason::kNoCapital:
      return "no_capital";
    case PromptDropReason::kWordCount:
      return "word_count";
    case PromptDropReason::kColon:
      return "colon";
    case PromptDropReason::kTooSimilar:
      return "too_similar";
    case PromptDropReason::kRepeated:
      return "repeated";
    case PromptDropReason::kCommonOpening:
      return "common_opening";
  }
  return "unknown";
}

PromptFilter PromptFilter::Paper() {
  PromptFilter filter;
  filter.min_characters = 30;
  filter.max_characters = 250;
  filter.max_rouge_l = 0.5;
  return filter;
}

PromptFilter PromptFilter::World() {
  PromptFilter filter;
  filter.takes_every_line = true;
  filter.must_be_a_question = true;
  filter.min_words = 3;
  filter.max_words = 12;
  filter.refuses_colons = true;
  filter.max_repeats = 6;
  filter.max_opening_share = 0.22;
  return filter;
}

std::vector<std::string> PromptFilter::Extract(absl::string_view continuation) const {
  const std::vector<absl::string_view> lines = absl::StrSplit(continuation, '\n');
  std::vector<std::string> prompts;
  if (takes_every_line) {
    // What follows the last newline is cut off.
    for (size_t i = 0; i + 1 < lines.size(); ++i) {
      const std::string line = absl::StrReplaceAll(lines[i], {{kPrefix, ""}});
      if (const absl::string_view prompt = StripSpace(line); !prompt.empty()) prompts.emplace_back(prompt);
    }
    return prompts;
  }
  const auto begins_with_prefix = [](absl::string_view line) {
    return absl::StartsWith(StripSpace(line), kPrefix);
  };
  const auto found = std::find_if(lines.begin(), lines.end(), begins_with_prefix);
  absl::string_view line = StripSpace(found == lines.end() ? lines.front() : *found);
  absl::ConsumePrefix(&line, kPrefix);
  if (const absl::string_view prompt = StripSpace(CutAtQuery(line)); !prompt.empty())
    prompts.emplace_back(prompt);
  return prompts;
}

std::optional<PromptDropReason> PromptFilter::CheckForm(absl::string_view prompt) const {
  if (prompt.empty()) return PromptDropReason::kEmpty;
  const auto characters = static_cast<int64_t>(NumCodePoints(prompt));
  if (characters < min_characters && !EndsInPunctuation(prompt)) return PromptDropReason::kTooShort;
  if (max_characters > 0 && characters > max_characters && !EndsInPunctuation(prompt))
    return PromptDropReason::kCutOff;
  if (must_be_a_question) {
    if (prompt.back() != '?') return PromptDropReason::kNoQuestionMark;
    if (!absl::ascii_isupper(static_cast<unsigned char>(prompt.front()))) return PromptDropReason::kNoCapital;
  }
  if (min_words > 0 || max_words > 0) {
    const auto words = static_cast<int64_t>(SplitAtSpace(prompt).size());
    if (words < min_words || (max_words > 0 && words > max_words)) return PromptDropReason::kWordCount;
  }
  if (refuses_colons && absl::StrContains(prompt, ':')) return PromptDropReason::kColon;
  return std::nullopt;
}

PromptPool::PromptPool(PromptFilter filter, std::vector<std::string> seeds, int64_t wanted)
    : filter_(filter), seeds_(std::move(seeds)), wanted_(wanted) {
  if (filter_.max_rouge_l > 0) {
    for (const std::string& seed : seeds_) index_.Add(seed);
  }
}

std::optional<PromptDropReason> PromptPool::Offer(absl::string_view prompt) {
  if (const auto reason = filter_.CheckForm(prompt)) return reason;
  if (filter_.max_rouge_l > 0 && index_.FirstAtLeast(prompt, filter_.max_rouge_l).has_value()) {
    return PromptDropReason::kTooSimilar;
  }
  const auto count = [](const auto& counts, absl::string_view key) {
    const auto found = counts.find(key);
    return found == counts.end() ? int64_t{0} : found->second;
  };
  if (filter_.max_repeats > 0 && count(repeats_, prompt) >= filter_.max_repeats) {
    return PromptDropReason::kRepeated;
  }
  if (filter_.max_opening_share > 0 && static_cast<double>(count(openings_, Opening(prompt))) >=
                                           filter_.max_opening_share * static_cast<double>(wanted_)) {
    return PromptDropReason::kCommonOpening;
  }
  Keep(prompt);
  return std::nullopt;
}

void PromptPool::Keep(absl::string_view prompt) {
  ++repeats_[prompt];
  ++openings_[Opening(prompt)];
  if (filter_.max_rouge_l > 0) index_.Add(prompt);
  kept_.emplace_back(prompt);
}

}  // namespace almost
