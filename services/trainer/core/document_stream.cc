#include "services/trainer/core/document_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/storage/env.h"
#include "common/storage/json_lines.h"

namespace almost::trainer {

absl::StatusOr<DocumentSource> ReadDocuments(const std::filesystem::path& json_lines) {
  ALMOST_ASSIGN_OR_RETURN(const std::string lines, Env::Posix()->Read(json_lines));
  auto texts = std::make_shared<std::vector<std::string>>();
  ALMOST_RETURN_IF_ERROR(ForEachJsonLine(
      json_lines.string(), lines, [&](int64_t number, const nlohmann::ordered_json& line) -> absl::Status {
        const auto text = line.find("text");
        if (text == line.end() || !text->is_string()) {
          return absl::InvalidArgumentError(
              absl::StrCat(json_lines.string(), " line ", number + 1, ": needs \"text\", a string"));
        }
        texts->push_back(text->get<std::string>());
        return absl::OkStatus();
      }));
  if (texts->empty()) return absl::InvalidArgumentError(absl::StrCat(json_lines.string(), ": is empty"));
  return DocumentSource([texts](int64_t index) { return (*texts)[index % texts->size()]; });
}

absl::StatusOr<std::vector<int32_t>> DocumentStream::Next(int64_t count) {
  std::vector<int32_t>& buffer = position_.left_over;
  int without_tokens = 0;
  while (static_cast<int64_t>(buffer.size()) < count) {
    const std::vector<int32_t> ids =
        tokenizer_->Encode(source_(position_.next_document), /*add_special_tokens=*/true);
    ++position_.next_document;
    buffer.insert(buffer.end(), ids.begin(), ids.end());
    if (tokenizer_->eos_id() && !(tokenizer_->eos_id() == tokenizer_->bos_id() && !ids.empty() &&
                                  ids.front() == *tokenizer_->bos_id())) {
      buffer.push_back(*tokenizer_->eos_id());
    }
    without_tokens = ids.empty() ? without_tokens + 1 : 0;
    if (without_tokens == 1000) {
      return absl::InvalidArgumentError(
          absl::StrCat("documents up to ", position_.next_document, ": a thousand in a row without a token"));
    }
  }
  std::vector<int32_t> next(buffer.begin(), buffer.begin() + count);
  buffer.erase(buffer.begin(), buffer.begin() + count);
  return next;
}

}  // namespace almost::trainer
