#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace almost {

// Text to token ids and back, as the model's own folder defines it. Immutable and thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // From a Hugging Face model folder: tokenizer.json (the `tokenizers` crate) where there is one, else
  // tokenizer.model (SentencePiece). Special token ids come from tokenizer_config.json and, where that is
  // silent, from config.json.
  // kNotFound: neither file; kDataLoss: a file that does not parse; each names the path.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Load(const std::filesystem::path& folder);

  // `text` must be valid UTF-8. With `add_special_tokens` the model's own markers (usually BOS) come too.
  virtual std::vector<int32_t> Encode(absl::string_view text, bool add_special_tokens) const = 0;

  // Valid UTF-8; bytes that end inside a character become U+FFFD. Ids out of range are skipped.
  virtual std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const = 0;

  virtual int32_t vocab_size() const = 0;
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;
  // The id of a token as the vocabulary spells it, e.g. "<|endoftext|>".
  virtual std::optional<int32_t> TokenId(absl::string_view token) const = 0;
  // Whether `id` is a single raw byte of a byte-fallback vocabulary ("<0xE4>"). A run of these is decoded
  // together, so the text of one depends on those beside it.
  virtual bool IsBytePiece(int32_t /*id*/) const { return false; }
};

// Decodes a growing sequence of ids piece by piece: the pieces joined equal Decode of the whole (special
// tokens skipped), and no piece ends inside a character. An id costs the same however many came before. Not
// thread-safe; the tokenizer must outlive it.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  // The text that `id` completes; empty while a character is still partial.
  std::string Append(int32_t id);
  // What is still withheld, with U+FFFD for a partial character.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  std::vector<int32_t> ids_;  // the context in which new ids are decoded, and those whose text is withheld
  size_t context_ = 0;        // how many of them are context
  size_t emitted_bytes_ = 0;  // of the text of ids_
};

}  // namespace almost
