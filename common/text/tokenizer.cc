#include "common/text/tokenizer.h"

#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/text/hugging_face_tokenizer.h"
#include "common/text/sentencepiece_tokenizer.h"
#include "common/text/tokenizer_config.h"

namespace almost {
namespace {

constexpr absl::string_view kReplacementCharacter = "\uFFFD";

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream contents;
  contents << in.rdbuf();
  if (!in) return absl::DataLossError("cannot be read");
  return std::move(contents).str();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::Load(const std::filesystem::path& folder) {
  ALMOST_ASSIGN_OR_RETURN(const TokenizerConfig config, TokenizerConfig::Read(folder));
  const std::filesystem::path hugging_face = folder / "tokenizer.json";
  std::error_code ignored;
  if (std::filesystem::exists(hugging_face, ignored)) {
    absl::StatusOr<std::string> json = ReadFile(hugging_face);
    if (!json.ok()) return Annotate(json.status(), hugging_face.string());
    auto tokenizer = HuggingFaceTokenizer::Parse(*json, config);
    if (!tokenizer.ok()) return Annotate(tokenizer.status(), hugging_face.string());
    return tokenizer;
  }
  const std::filesystem::path sentencepiece = folder / "tokenizer.model";
  if (std::filesystem::exists(sentencepiece, ignored)) {
    absl::StatusOr<std::string> bytes = ReadFile(sentencepiece);
    if (!bytes.ok()) return Annotate(bytes.status(), sentencepiece.string());
    auto tokenizer = SentencePieceTokenizer::Parse(*bytes, config);
    if (!tokenizer.ok()) return Annotate(tokenizer.status(), sentencepiece.string());
    return tokenizer;
  }
  return absl::NotFoundError(absl::StrCat("neither tokenizer.json nor tokenizer.model in ", folder.string()));
}

std::string StreamDecoder::Append(int32_t id) {
  ids_.push_back(id);
  // Raw bytes of a fallback vocabulary are decoded as a run: a later one can still change the text of this
  // one.
  if (tokenizer_->IsBytePiece(id)) return "";
  const std::span<const int32_t> ids(ids_);
  const std::string emitted = tokenizer_->Decode(ids.first(emitted_end_), /*skip_special_tokens=*/true);
  const std::string now = tokenizer_->Decode(ids, /*skip_special_tokens=*/true);
  if (now.size() <= emitted.size() || absl::EndsWith(now, kReplacementCharacter)) return "";
  std::string piece = now.substr(emitted.size());
  // The piece becomes the context of the next ones, and what lies before it is not needed any more: unless it
  // is blank, since a decoder may strip the blanks that its text begins with.
  if (piece.find_first_not_of(' ') != std::string::npos) {
    ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(emitted_end_));
  }
  emitted_end_ = ids_.size();
  return piece;
}

std::string StreamDecoder::Finish() {
  const std::span<const int32_t> ids(ids_);
  const std::string emitted = tokenizer_->Decode(ids.first(emitted_end_), /*skip_special_tokens=*/true);
  const std::string now = tokenizer_->Decode(ids, /*skip_special_tokens=*/true);
  emitted_end_ = ids_.size();
  return now.substr(std::min(emitted.size(), now.size()));
}

}  // namespace almost
