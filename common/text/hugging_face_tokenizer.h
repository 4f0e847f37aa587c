#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/text/tokenizer.h"
#include "common/text/tokenizer_config.h"
#include "common/text/tokenizers_c/tokenizers_c.h"

namespace almost {

// A tokenizer.json, by the Hugging Face `tokenizers` crate: the same ids and the same text as the Python
// package of that name.
class HuggingFaceTokenizer final : public Tokenizer {
 public:
  // `json`: the contents of a tokenizer.json.
  // kDataLoss: it does not parse, its vocabulary cannot encode every text, or lacks a token that `config`
  // names.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Parse(absl::string_view json,
                                                                const TokenizerConfig& config);
  ~HuggingFaceTokenizer() override { almost_tokenizer_free(handle_); }
  HuggingFaceTokenizer(const HuggingFaceTokenizer&) = delete;
  HuggingFaceTokenizer& operator=(const HuggingFaceTokenizer&) = delete;

  std::vector<int32_t> Encode(absl::string_view text, bool add_special_tokens) const override;
  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(almost_tokenizer_vocab_size(handle_)); }
  std::optional<int32_t> bos_id() const override { return special_.bos; }
  std::optional<int32_t> eos_id() const override { return special_.eos; }
  std::optional<int32_t> TokenId(absl::string_view token) const override;
  bool IsBytePiece(int32_t id) const override { return byte_pieces_.contains(id); }

 private:
  explicit HuggingFaceTokenizer(AlmostTokenizer* handle) : handle_(handle) {}

  absl::StatusOr<std::vector<int32_t>> TryEncode(absl::string_view text, bool add_special_tokens) const;

  AlmostTokenizer* const handle_;  // owned
  SpecialTokenIds special_;
  // Around a text with special tokens, in place of what tokenizer.json says; nothing: that holds.
  std::optional<SpecialTokenIds> around_;
  absl::flat_hash_set<int32_t> byte_pieces_;  // "<0x00>" … "<0xFF>"
};

// The contents of a tokenizer.json: a byte-level BPE learnt from `texts`, at most `vocab_size` tokens. Every
// byte is a token, so nothing is unknown. Id 0 is `end_of_text`, which Encode puts in front when special
// tokens are asked for. Equal inputs give equal bytes. kInvalidArgument: `vocab_size` below 257, or an empty
// `end_of_text`.
absl::StatusOr<std::string> TrainByteLevelBpe(std::span<const std::string> texts, int vocab_size,
                                              absl::string_view end_of_text);

}  // namespace almost
