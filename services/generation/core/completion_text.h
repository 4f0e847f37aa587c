#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/text/tokenizer.h"

namespace almost::generation {

// The text of one completion as its tokens come: whole characters, cut before the first stop string, and
// nothing handed out that may yet turn out to be the beginning of one. Not thread-safe; the tokenizer must
// outlive it.
class CompletionText {
 public:
  CompletionText(const Tokenizer& tokenizer, std::vector<std::string> stop)
      : decoder_(tokenizer), stop_(std::move(stop)) {}

  // Takes the next token; true when a stop string is complete: the text has ended.
  bool Append(int32_t token);
  // No token follows: what was withheld is text after all.
  void Finish();

  // All text so far; after the end, all there is.
  const std::string& text() const { return text_; }
  // The part of it not handed out yet that no later token can take back.
  std::string TakeSettled();

 private:
  bool CutAtStop(size_t searched_from);

  StreamDecoder decoder_;
  std::vector<std::string> stop_;
  std::string text_;
  size_t taken_ = 0;
  bool ended_ = false;
};

}  // namespace almost::generation
