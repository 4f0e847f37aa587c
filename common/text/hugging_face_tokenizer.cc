#include "common/text/hugging_face_tokenizer.h"

#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace almost {
namespace {

const uint8_t* Data(absl::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

std::string TakeString(AlmostBytes bytes) {
  std::string text(reinterpret_cast<const char*>(bytes.data), bytes.size);
  almost_tokenizer_free_bytes(bytes);
  return text;
}

// Parse has shown that the vocabulary encodes any text, so a failure later is a defect of the crate.
[[noreturn]] void Die(const char* what, absl::string_view error) {
  std::fprintf(stderr, "tokenizers crate: %s failed: %.*s\n", what, static_cast<int>(error.size()),
               error.data());
  std::abort();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> HuggingFaceTokenizer::Parse(absl::string_view json,
                                                                             const TokenizerConfig& config) {
  AlmostBytes error;
  AlmostTokenizer* handle = almost_tokenizer_parse(Data(json), json.size(), &error);
  if (handle == nullptr) return absl::DataLossError(TakeString(error));
  std::shared_ptr<HuggingFaceTokenizer> tokenizer(new HuggingFaceTokenizer(handle));
  // A word-level vocabulary without an unknown token fails only once it meets a word it lacks.
  const absl::StatusOr<std::vector<int32_t>> probe = tokenizer->TryEncode("\x01 \U0010FFFD", true);
  if (!probe.ok()) {
    return absl::DataLossError(
        absl::StrCat("its vocabulary cannot encode every text: ", probe.status().message()));
  }
  ALMOST_ASSIGN_OR_RETURN(tokenizer->special_, ResolveSpecialTokens(config, *tokenizer));
  const SpecialTokenIds& special = tokenizer->special_;
  const bool known = (!config.add_bos_token || special.bos.has_value()) &&
                     (!config.add_eos_token || special.eos.has_value());
  if (config.replaces_template && known) {
    tokenizer->around_ = {.bos = config.add_bos_token ? special.bos : std::nullopt,
                          .eos = config.add_eos_token ? special.eos : std::nullopt};
  }
  for (int byte = 0; byte < 256; ++byte) {
    const std::optional<int32_t> id = tokenizer->TokenId(absl::StrFormat("<0x%02X>", byte));
    if (id.has_value()) tokenizer->byte_pieces_.insert(*id);
  }
  return tokenizer;
}

absl::StatusOr<std::vector<int32_t>> HuggingFaceTokenizer::TryEncode(absl::string_view text,
                                                                     bool add_special_tokens) const {
  AlmostIds ids;
  AlmostBytes error;
  if (!almost_tokenizer_encode(handle_, Data(text), text.size(), add_special_tokens, &ids, &error)) {
    return absl::InternalError(TakeString(error));
  }
  std::vector<int32_t> out(ids.data, ids.data + ids.size);
  almost_tokenizer_free_ids(ids);
  return out;
}

std::vector<int32_t> HuggingFaceTokenizer::Encode(absl::string_view text, bool add_special_tokens) const {
  const bool around = add_special_tokens && around_.has_value();
  absl::StatusOr<std::vector<int32_t>> ids = TryEncode(text, add_special_tokens && !around);
  if (!ids.ok()) Die("encode", ids.status().message());
  if (around && around_->bos.has_value()) ids->insert(ids->begin(), *around_->bos);
  if (around && around_->eos.has_value()) ids->push_back(*around_->eos);
  return *std::move(ids);
}

std::string HuggingFaceTokenizer::Decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  AlmostBytes text;
  AlmostBytes error;
  // A negative id becomes one beyond every vocabulary.
  if (!almost_tokenizer_decode(handle_, reinterpret_cast<const uint32_t*>(ids.data()), ids.size(),
                               skip_special_tokens, &text, &error)) {
    Die("decode", TakeString(error));
  }
  return TakeString(text);
}

std::optional<int32_t> HuggingFaceTokenizer::TokenId(absl::string_view token) const {
  const int64_t id = almost_tokenizer_token_id(handle_, Data(token), token.size());
  if (id < 0) return std::nullopt;
  return static_cast<int32_t>(id);
}

absl::StatusOr<std::string> TrainByteLevelBpe(std::span<const std::string> texts, int vocab_size,
                                              absl::string_view end_of_text) {
  if (vocab_size < 257) {
    return absl::InvalidArgumentError(absl::StrCat(
        "vocab_size must be at least 257 (256 bytes and the end-of-text token), got ", vocab_size));
  }
  if (end_of_text.empty()) return absl::InvalidArgumentError("end_of_text must not be empty");
  std::vector<AlmostSlice> slices;
  slices.reserve(texts.size());
  for (const std::string& text : texts) slices.push_back({Data(text), text.size()});
  AlmostBytes json;
  AlmostBytes error;
  if (!almost_tokenizer_train_bpe(slices.data(), slices.size(), static_cast<size_t>(vocab_size),
                                  {Data(end_of_text), end_of_text.size()}, &json, &error)) {
    return absl::InternalError(absl::StrCat("training the tokenizer: ", TakeString(error)));
  }
  return TakeString(json);
}

}  // namespace almost
