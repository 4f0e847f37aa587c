#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

// UTF-8, and of Unicode what filters and files need, as Python's str has it: lengths in code points, blanks
// of every kind.
namespace almost {

// The first code point of `text` (not empty) and its size in bytes. Bytes that are no character count as one
// of U+FFFD each.
struct CodePoint {
  uint32_t value;
  size_t size;
};
CodePoint FirstCodePoint(absl::string_view text);

// Python's len().
size_t NumCodePoints(absl::string_view text);

// How many bytes of `text` are UTF-8, up to the first that is not.
size_t ValidUtf8Prefix(absl::string_view text);

// The text of a file of `name` that holds `bytes`: without a byte order mark. kInvalidArgument: it is not
// UTF-8; names the line.
absl::StatusOr<absl::string_view> Utf8Text(absl::string_view name, absl::string_view bytes);

// Python's str.isspace() for one character: what \s matches and split() splits at.
bool IsSpace(uint32_t code_point);

// Whether it is a letter, digit or mark of a script other than Latin. By blocks, so that rare punctuation
// within a script's own block counts as its letters.
bool IsLetterBeyondLatin(uint32_t code_point);

// Whether its script is written without blanks between words: Chinese characters, kana, Thai and its
// neighbours.
bool IsOfUnspacedScript(uint32_t code_point);

// How many bytes of blanks `text` begins with.
size_t LeadingSpace(absl::string_view text);

// Python's strip() and split().
absl::string_view StripSpace(absl::string_view text);
std::vector<absl::string_view> SplitAtSpace(absl::string_view text);

}  // namespace almost
