#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace almost {

// What encoding and decoding need of a SentencePiece `tokenizer.model` (message ModelProto of
// sentencepiece_model.proto). Read without protobuf: Debian's libsentencepiece exports a protobuf 3.14 of its
// own, whose symbols clash with gRPC's 3.21 in one process.
struct SentencePieceModel {
  // The values of the file format.
  enum class Type { kUnigram = 1, kBpe = 2, kWord = 3, kChar = 4 };
  enum class PieceType { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
  struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::kNormal;
  };

  std::vector<Piece> pieces;  // an id is an index here
  Type type = Type::kUnigram;
  bool byte_fallback = false;
  bool treat_whitespace_as_suffix = false;
  std::string unknown_surface = " \u2047 ";
  std::string bos_piece = "<s>";
  std::string eos_piece = "</s>";

  std::string precompiled_charsmap;  // normalisation rules; empty: none
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool has_denormalizer = false;

  // kDataLoss: `bytes` is not such a message, or holds no piece or not exactly one unknown one.
  static absl::StatusOr<SentencePieceModel> Parse(absl::string_view bytes);
};

}  // namespace almost
