#include "services/trainer/core/document_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "services/trainer/core/json_lines_file.h"

namespace almost::trainer {

absl::StatusOr<DocumentSource> ReadDocuments(const std::filesystem::path& json_lines) {
  using Json = JsonLinesFile::Json;
  const auto parse = [](const Json& line) -> absl::StatusOr<std::string> {
    const auto text = line.find("text");
    if (text == line.end() || !text->is_string()) {
      return absl::InvalidArgumentError("needs \"text\", a string");
    }
    return text->get<std::string>();
  };
  ALMOST_ASSIGN_OR_RETURN(std::shared_ptr<const JsonLinesFile> file,
                          JsonLinesFile::Open(json_lines, [&](const Json& line) -> absl::StatusOr<bool> {
                            ALMOST_RETURN_IF_ERROR(parse(line).status());
                            return true;
                          }));
  const Dataset<std::string> texts(std::move(file), parse);
  return DocumentSource([texts](int64_t index) { return texts.Read(index % texts.size()); });
}

absl::StatusOr<std::vector<int32_t>> DocumentStream::Next(int64_t count) {
  std::vector<int32_t>& buffer = position_.left_over;
  int without_tokens = 0;
  while (static_cast<int64_t>(buffer.size()) < count) {
    ALMOST_ASSIGN_OR_RETURN(const std::string text, source_(position_.next_document));
    const std::vector<int32_t> ids = tokenizer_->Encode(text, /*add_special_tokens=*/true);
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
