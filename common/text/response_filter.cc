#include "common/text/response_filter.h"

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "common/base/unicode.h"

namespace almost {
namespace {

// (don't|don’t|do not)\s+know
bool SaysItDoesNotKnow(absl::string_view lower) {
  for (const absl::string_view negation : {"don't", "don\u2019t", "do not"}) {
    for (size_t at = lower.find(negation); at != absl::string_view::npos; at = lower.find(negation, at + 1)) {
      const absl::string_view rest = lower.substr(at + negation.size());
      const size_t space = LeadingSpace(rest);
      if (space > 0 && absl::StartsWith(rest.substr(space), "know")) return true;
    }
  }
  return false;
}

// Sentences end at blanks after ".", "!" or "?".
bool HasDuplicateSentence(absl::string_view text) {
  std::set<absl::string_view> seen;
  size_t begin = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    if (!absl::StrContains(".!?", text.substr(i - 1, 1))) continue;
    const size_t space = LeadingSpace(text.substr(i));
    if (space == 0) continue;
    if (!seen.insert(text.substr(begin, i - begin)).second) return true;
    begin = i + space;
    i = begin;
  }
  return !seen.insert(text.substr(begin)).second;
}

}  // namespace

absl::string_view Name(BadReason reason) {
  switch (reason) {
    case BadReason::kUnfinished:
      return "unfinished";
    case BadReason::kTooShort:
      return "too_short";
    case BadReason::kEndsOpen:
      return "ends_open";
    case BadReason::kBeginsWithFiller:
      return "begins_with_filler";
    case BadReason::kNoFinalPunctuation:
      return "no_final_punctuation";
    case BadReason::kDoesNotKnow:
      return "does_not_know";
    case BadReason::kMarkerText:
      return "marker_text";
    case BadReason::kDuplicateSentence:
      return "duplicate_sentence";
  }
  return "unknown";
}

ResponseFilter ResponseFilter::Paper() {
  ResponseFilter filter;
  filter.cut_at = {"\n\n-----", "Assistant:", "Human:"};
  filter.min_characters = 50;
  filter.refused_endings = "?:";
  filter.refused_openings = {"well"};
  filter.final_punctuation = ".!";
  filter.refuses_not_knowing = true;
  filter.markers = {"human:", "<image>"};
  filter.markers_in_any_case = true;
  return filter;
}

ResponseFilter ResponseFilter::World() {
  ResponseFilter filter;
  filter.cut_at = {"\n"};
  filter.requires_finish = true;
  filter.min_characters = 3;
  filter.final_punctuation = ".!?";
  filter.markers = {"Human", "Assistant", "Query"};
  filter.refuses_duplicate_sentences = true;
  return filter;
}

std::optional<ResponseFilter> ResponseFilter::Named(absl::string_view name, absl::string_view prompt_format) {
  if (name == "paper") return Paper();
  if (name == "world") return World();
  if (name != "none") return std::nullopt;
  ResponseFilter filter;
  filter.cut_at = (prompt_format == "world" ? World() : Paper()).cut_at;
  return filter;
}

std::string ResponseFilter::Extract(absl::string_view completion) const {
  for (const std::string& mark : cut_at) completion = completion.substr(0, completion.find(mark));
  completion.remove_prefix(std::min(completion.find_first_not_of("\n "), completion.size()));
  const size_t last = completion.find_last_not_of("\n ");
  return std::string(completion.substr(0, last == absl::string_view::npos ? 0 : last + 1));
}

std::optional<BadReason> ResponseFilter::Check(absl::string_view response, bool finished) const {
  const std::string lower = absl::AsciiStrToLower(response);
  const auto ends_in_one_of = [&](const std::string& characters) {
    return !response.empty() && absl::StrContains(characters, response.back());
  };
  if (requires_finish && !finished) return BadReason::kUnfinished;
  if (NumCodePoints(response) < static_cast<size_t>(std::max(min_characters, 0))) return BadReason::kTooShort;
  if (ends_in_one_of(refused_endings)) return BadReason::kEndsOpen;
  for (const std::string& opening : refused_openings) {
    if (absl::StartsWith(lower, absl::AsciiStrToLower(opening))) return BadReason::kBeginsWithFiller;
  }
  if (!final_punctuation.empty() && !ends_in_one_of(final_punctuation)) return BadReason::kNoFinalPunctuation;
  if (refuses_not_knowing && SaysItDoesNotKnow(lower)) return BadReason::kDoesNotKnow;
  for (const std::string& marker : markers) {
    if (markers_in_any_case ? absl::StrContains(lower, absl::AsciiStrToLower(marker))
                            : absl::StrContains(response, marker)) {
      return BadReason::kMarkerText;
    }
  }
  if (refuses_duplicate_sentences && HasDuplicateSentence(response)) return BadReason::kDuplicateSentence;
  return std::nullopt;
}

}  // namespace almost
