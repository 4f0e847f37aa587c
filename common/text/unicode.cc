#include "common/text/unicode.h"

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

bool IsSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
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
