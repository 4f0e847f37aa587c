#include "services/generation/core/completion_text.h"

#include <algorithm>

namespace almost::generation {

bool CompletionText::CutAtStop(size_t searched_from) {
  size_t cut = std::string::npos;
  for (const std::string& stop : stop_) {
    // A stop string may have begun in what was there before.
    const size_t from = searched_from - std::min(searched_from, stop.size() - 1);
    cut = std::min(cut, text_.find(stop, from));
  }
  if (cut == std::string::npos) return false;
  text_.resize(cut);
  ended_ = true;
  return true;
}

bool CompletionText::Append(int32_t token) {
  const size_t before = text_.size();
  text_ += decoder_.Append(token);
  return CutAtStop(before);
}

void CompletionText::Finish() {
  if (ended_) return;
  const size_t before = text_.size();
  text_ += decoder_.Finish();
  CutAtStop(before);
  ended_ = true;
}

std::string CompletionText::TakeSettled() {
  size_t settled = text_.size();
  if (!ended_) {
    for (const std::string& stop : stop_) {
      for (size_t part = std::min(stop.size() - 1, text_.size()); part > 0; --part) {
        if (text_.compare(text_.size() - part, part, stop, 0, part) == 0) {
          settled = std::min(settled, text_.size() - part);
          break;
        }
      }
    }
  }
  if (settled <= taken_) return "";
  std::string piece = text_.substr(taken_, settled - taken_);
  taken_ = settled;
  return piece;
}

}  // namespace almost::generation
