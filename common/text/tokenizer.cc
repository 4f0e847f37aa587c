#include "common/text/tokenizer.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/text/hugging_face_tokenizer.h"
#include "common/text/sentencepiece_tokenizer.h"
#include "common/text/tokenizer_config.h"

namespace almost {
namespace {

constexpr absl::string_view kReplacementCharacter = "\uFFFD";
constexpr size_t kMostPartialBytes = 3;  // of a character that is not whole yet
constexpr size_t kMostLeadingBlanks = 8;

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
  const auto decode = [this](std::span<const int32_t> ids, bool skip_special_tokens = true) {
    return tokenizer_->Decode(ids, skip_special_tokens);
  };
  const auto is_special = [&decode](int32_t token) {
    return decode({&token, 1}).empty() && !decode({&token, 1}, /*skip_special_tokens=*/false).empty();
  };
  if (is_special(id)) {
    // Whether it ends what is withheld is for the tokenizer to say, and one says as much as several.
    if (ids_.size() > context_ && !is_special(ids_.back())) ids_.push_back(id);
    return "";
  }
  ids_.push_back(id);
  // Raw bytes of a fallback vocabulary are decoded as a run: a later one can still change the text of this
  // one.
  if (tokenizer_->IsBytePiece(id)) return "";
  const std::string text = decode(ids_);
  const size_t partial = absl::EndsWith(text, kReplacementCharacter) ? kReplacementCharacter.size() : 0;
  if (text.size() <= emitted_bytes_ + partial) {
    // Of blanks at the beginning, which a decoder may strip, a few tell as much as many.
    if (partial == 0 && (emitted_bytes_ > 0 || ids_.size() > kMostLeadingBlanks)) ids_.pop_back();
    return "";
  }
  std::string piece = text.substr(emitted_bytes_, text.size() - partial - emitted_bytes_);
  // The ids of the piece become the context of the next ones, in place of those before, unless they say
  // nothing by themselves: a decoder may strip a blank that its text begins with. Of a partial character,
  // which is three bytes at most, as many ids suffice.
  const size_t begin = partial > 0 ? ids_.size() - std::min(ids_.size(), kMostPartialBytes) : context_;
  const std::string context = decode(std::span(ids_).subspan(begin));
  if (partial > 0 && !absl::EndsWith(context, kReplacementCharacter)) {
    // The last ids are in no vocabulary: the character began before them.
    emitted_bytes_ = text.size() - partial;
  } else if (context.empty()) {
    ids_.resize(context_);
  } else {
    ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(begin));
    emitted_bytes_ = context.size() - partial;
  }
  context_ = ids_.size();
  return piece;
}

std::string StreamDecoder::Finish() {
  const std::string text = tokenizer_->Decode(ids_, /*skip_special_tokens=*/true);
  return text.substr(std::min(std::exchange(emitted_bytes_, text.size()), text.size()));
}

}  // namespace almost
