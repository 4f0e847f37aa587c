#include "common/base/unicode.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace almost {

CodePoint FirstCodePoint(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const auto trails = [&](size_t count) {
    if (text.size() <= count) return false;
    for (size_t i = 1; i <= count; ++i) {
      if ((byte(i) & 0xC0) != 0x80) return false;
    }
    return true;
  };
  if (byte(0) < 0x80) return {byte(0), 1};
  if (byte(0) >= 0xC2 && byte(0) < 0xE0 && trails(1)) return {(byte(0) & 0x1Fu) << 6 | (byte(1) & 0x3Fu), 2};
  if ((byte(0) & 0xF0) == 0xE0 && trails(2)) {
    const uint32_t value = (byte(0) & 0x0Fu) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
    if (value >= 0x800 && (value < 0xD800 || value >= 0xE000)) return {value, 3};
  }
  if ((byte(0) & 0xF8) == 0xF0 && trails(3)) {
    const uint32_t value =
        (byte(0) & 0x07u) << 18 | (byte(1) & 0x3Fu) << 12 | (byte(2) & 0x3Fu) << 6 | (byte(3) & 0x3Fu);
    if (value >= 0x10000 && value <= 0x10FFFF) return {value, 4};
  }
  return {0xFFFD, 1};
}

size_t NumCodePoints(absl::string_view text) {
  size_t count = 0;
  for (; !text.empty(); ++count) text.remove_prefix(FirstCodePoint(text).size);
  return count;
}

size_t ValidUtf8Prefix(absl::string_view text) {
  size_t size = 0;
  while (size < text.size()) {
    const CodePoint first = FirstCodePoint(text.substr(size));
    if (first.value == 0xFFFD && first.size == 1) break;
    size += first.size;
  }
  return size;
}

absl::StatusOr<absl::string_view> Utf8Text(absl::string_view name, absl::string_view bytes) {
  const absl::string_view text = absl::StripPrefix(bytes, "\xEF\xBB\xBF");
  const size_t valid = ValidUtf8Prefix(text);
  if (valid == text.size()) return text;
  const absl::string_view before = text.substr(0, valid);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  return absl::InvalidArgumentError(absl::StrCat(name, ": line ", line, " is not UTF-8"));
}

bool IsSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

namespace {

struct Block {
  uint32_t first;
  uint32_t last;
};

template <size_t N>
bool IsInOneOf(const Block (&blocks)[N], uint32_t c) {
  return std::any_of(std::begin(blocks), std::end(blocks),
                     [c](const Block& block) { return block.first <= c && c <= block.last; });
}

}  // namespace

bool IsLetterBeyondLatin(uint32_t c) {
  constexpr Block kOthers[] = {
      {0x0000, 0x036F},  // Latin, and the marks that it takes
      {0x055A, 0x055F},   {0x0589, 0x058A}, {0x05BE, 0x05BE}, {0x05C0, 0x05C0},
      {0x05C3, 0x05C3},   {0x060C, 0x060D}, {0x061B, 0x061F}, {0x066A, 0x066D},
      {0x06D4, 0x06D4},   {0x0964, 0x0965}, {0x104A, 0x104F}, {0x1360, 0x1368},
      {0x1680, 0x1680},   {0x17D4, 0x17DA}, {0x1D00, 0x1EFF},  // more of Latin
      {0x2000, 0x2BFF},                                        // punctuation, symbols
      {0x2C60, 0x2C7F},   {0x2E00, 0x2E7F}, {0x3000, 0x3004}, {0x3008, 0x3020},
      {0x3030, 0x3030},   {0x303D, 0x303F}, {0x30FB, 0x30FB}, {0x3200, 0x33FF},
      {0xA720, 0xA7FF},   {0xAB30, 0xAB6F}, {0xE000, 0xF8FF}, {0xFE00, 0xFE1F},
      {0xFE30, 0xFE6F},   {0xFEFF, 0xFF65}, {0xFFE0, 0xFFFF}, {0x1F000, 0x1FAFF},  // pictures
      {0xE0000, 0x10FFFF}};
  return !IsInOneOf(kOthers, c);
}

bool IsOfUnspacedScript(uint32_t c) {
  constexpr Block kUnspaced[] = {{0x0E00, 0x0EFF},                    // Thai, Lao
                                 {0x1000, 0x109F},                    // Burmese
                                 {0x1780, 0x17FF},                    // Khmer
                                 {0x3005, 0x3007}, {0x3040, 0x30FF},  // kana
                                 {0x3400, 0x9FFF}, {0xF900, 0xFAFF}, {0x20000, 0x3FFFF}};
  return IsInOneOf(kUnspaced, c);
}

size_t LeadingSpace(absl::string_view text) {
  size_t size = 0;
  while (size < text.size()) {
    const CodePoint first = FirstCodePoint(text.substr(size));
    if (!IsSpace(first.value)) break;
    size += first.size;
  }
  return size;
}

absl::string_view StripSpace(absl::string_view text) {
  text.remove_prefix(LeadingSpace(text));
  size_t end = 0;  // of the last character that is no blank
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = FirstCodePoint(text.substr(i));
    i += c.size;
    if (!IsSpace(c.value)) end = i;
  }
  return text.substr(0, end);
}

std::vector<absl::string_view> SplitAtSpace(absl::string_view text) {
  std::vector<absl::string_view> words;
  while (true) {
    text.remove_prefix(LeadingSpace(text));
    if (text.empty()) return words;
    size_t end = 0;
    while (end < text.size()) {
      const CodePoint c = FirstCodePoint(text.substr(end));
      if (IsSpace(c.value)) break;
      end += c.size;
    }
    words.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
}

}  // namespace almost
