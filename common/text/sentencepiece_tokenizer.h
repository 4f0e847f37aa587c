#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/text/sentencepiece_model.h"
#include "common/text/tokenizer.h"
#include "common/text/tokenizer_config.h"

namespace almost {

// Which pieces a text begins with.
class PieceTrie {
 public:
  void Insert(absl::string_view piece, int32_t id);
  // Calls on_match(length in bytes, id) for every piece that `text` begins with, shortest first.
  template <typename OnMatch>
  void ForEachPrefix(absl::string_view text, OnMatch on_match) const {
    uint64_t node = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      const auto child = children_.find(node << 8 | static_cast<uint8_t>(text[i]));
      if (child == children_.end()) return;
      node = child->second;
      if (ids_[node] >= 0) on_match(i + 1, ids_[node]);
    }
  }

 private:
  absl::flat_hash_map<uint64_t, uint64_t> children_;  // (node << 8 | byte) -> node; the root is 0
  std::vector<int32_t> ids_ = {-1};                   // by node
};

// A SentencePiece tokenizer.model, of type BPE (Kudo and Richardson 2018, arXiv 1808.06226) or unigram (Kudo
// 2018, arXiv 1804.10959): the same ids and text as the Python package `sentencepiece`. As with it, "</s>"
// within a text is text, not end-of-text. BOS and EOS are added as LlamaTokenizer of transformers does: BOS
// unless tokenizer_config.json says add_bos_token = false, EOS only where it says add_eos_token = true.
// Tokens that added_tokens.json puts beyond the model's own are not known.
class SentencePieceTokenizer final : public Tokenizer {
 public:
  // `bytes`: the contents of a tokenizer.model.
  // kDataLoss: it does not parse; kUnimplemented: a model of words or characters, or one with a denormaliser.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Parse(absl::string_view bytes,
                                                                TokenizerConfig config);

  std::vector<int32_t> Encode(absl::string_view text, bool add_special_tokens) const override;
  // Control pieces are spelled out unless skipped; what a control piece is does not depend on the
  // configuration.
  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(model_.pieces.size()); }
  std::optional<int32_t> bos_id() const override { return special_.bos; }
  std::optional<int32_t> eos_id() const override { return special_.eos; }
  std::optional<int32_t> TokenId(absl::string_view token) const override;
  bool IsBytePiece(int32_t id) const override;

 private:
  // A stretch of normalised text and its piece.
  struct Segment {
    absl::string_view text;
    int32_t id;
  };

  SentencePieceTokenizer() = default;

  std::string Normalize(absl::string_view text) const;
  // The normalised form of what `text` begins with, and how many bytes of `text` that takes.
  std::pair<absl::string_view, size_t> NormalizePrefix(absl::string_view text) const;
  std::vector<Segment> EncodeBpe(absl::string_view normalized) const;
  std::vector<Segment> EncodeUnigram(absl::string_view normalized) const;
  // Bytes of the user-defined piece that `text` begins with; 0: none.
  size_t UserDefinedPrefix(absl::string_view text) const;
  int32_t PieceId(absl::string_view piece) const;
  SentencePieceModel::PieceType PieceTypeOf(int32_t id) const { return model_.pieces[id].type; }

  SentencePieceModel model_;
  absl::flat_hash_map<absl::string_view, int32_t> pieces_;  // normal, user-defined and unused: found in texts
  absl::flat_hash_map<absl::string_view, int32_t> reserved_;  // unknown, control and byte pieces
  PieceTrie trie_;                                            // pieces_, for unigram
  PieceTrie user_defined_;
  std::vector<int32_t> byte_ids_;  // by byte; with byte fallback only
  int32_t unknown_id_ = 0;
  float min_score_ = 0;  // of normal pieces
  float max_score_ = 0;
  std::vector<uint32_t> normalization_trie_;  // double array of Darts-clone
  absl::string_view normalization_texts_;  // zero-terminated ones, at the offsets the trie gives; in model_
  SpecialTokenIds special_;
  bool add_bos_ = true;
  bool add_eos_ = false;
};

}  // namespace almost
