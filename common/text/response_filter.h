#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace almost {

// Why a response is BAD: the rules in the order in which they are tried.
enum class BadReason {
  kUnfinished,
  kTooShort,
  kEndsOpen,
  kBeginsWithFiller,
  kNoFinalPunctuation,
  kDoesNotKnow,
  kMarkerText,
  kDuplicateSentence,
};
inline constexpr std::array kBadReasons = {BadReason::kUnfinished,         BadReason::kTooShort,
                                           BadReason::kEndsOpen,           BadReason::kBeginsWithFiller,
                                           BadReason::kNoFinalPunctuation, BadReason::kDoesNotKnow,
                                           BadReason::kMarkerText,         BadReason::kDuplicateSentence};
// In snake_case, for labels and files: "too_short".
absl::string_view Name(BadReason reason);

// Which part of a model's completion is its response, and which responses are BAD. A field at its default
// switches its rule off. Case is folded for A-Z only.
struct ResponseFilter {
  std::vector<std::string> cut_at;  // the response ends before the first of these

  bool requires_finish = false;               // kUnfinished: generation ended at its limit, not at a stop
  int min_characters = 0;                     // kTooShort: fewer code points
  std::string refused_endings;                // kEndsOpen: the last character is one of these (ASCII)
  std::vector<std::string> refused_openings;  // kBeginsWithFiller: begins with one of these, in any case
  std::string final_punctuation;     // kNoFinalPunctuation: the last character is none of these (ASCII)
  bool refuses_not_knowing = false;  // kDoesNotKnow: "don't know", "do not know", in any case
  std::vector<std::string> markers;  // kMarkerText: contains one of these,
  bool markers_in_any_case = false;  //
  bool refuses_duplicate_sentences = false;  // kDuplicateSentence: a sentence twice, to the letter

  // METHOD.md section 2, as the official code has it.
  static ResponseFilter Paper();
  // The tiny world's answers, of which the paper would call most too short.
  static ResponseFilter World();
  // "paper", "world", or "none": nothing is BAD, and a response ends where one of that prompt format does.
  // Nothing: another name.
  static std::optional<ResponseFilter> Named(absl::string_view name, absl::string_view prompt_format);

  // The response that `completion` begins with, without newlines and blanks at its ends.
  std::string Extract(absl::string_view completion) const;

  // Why `response` (as Extract gives it) is BAD; nothing: it is not. `finished`: a stop string or end-of-text
  // was met.
  std::optional<BadReason> Check(absl::string_view response, bool finished) const;
};

}  // namespace almost
