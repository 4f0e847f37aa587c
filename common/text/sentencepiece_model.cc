#include "common/text/sentencepiece_model.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace almost {
namespace {

// One field of a protobuf message in the wire format.
struct Field {
  int number = 0;
  uint64_t varint = 0;
  float fixed32 = 0;
  absl::string_view bytes;
};

absl::StatusOr<uint64_t> TakeVarint(absl::string_view& in) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && !in.empty(); shift += 7) {
    const auto byte = static_cast<uint8_t>(in.front());
    in.remove_prefix(1);
    value |= uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return value;
  }
  return absl::DataLossError("a number is cut off");
}

absl::StatusOr<absl::string_view> TakeBytes(absl::string_view& in, uint64_t size) {
  if (size > in.size())
    return absl::DataLossError(absl::StrCat("ends ", size - in.size(), " bytes too early"));
  const absl::string_view bytes = in.substr(0, size);
  in.remove_prefix(size);
  return bytes;
}

absl::StatusOr<Field> TakeField(absl::string_view& in) {
  ALMOST_ASSIGN_OR_RETURN(const uint64_t tag, TakeVarint(in));
  Field field;
  field.number = static_cast<int>(tag >> 3);
  switch (tag & 7) {
    case 0: {
      ALMOST_ASSIGN_OR_RETURN(field.varint, TakeVarint(in));
      return field;
    }
    case 1: {
      ALMOST_ASSIGN_OR_RETURN(field.bytes, TakeBytes(in, 8));
      return field;
    }
    case 2: {
      ALMOST_ASSIGN_OR_RETURN(const uint64_t size, TakeVarint(in));
      ALMOST_ASSIGN_OR_RETURN(field.bytes, TakeBytes(in, size));
      return field;
    }
    case 5: {
      static_assert(std::endian::native == std::endian::little);
      ALMOST_ASSIGN_OR_RETURN(field.bytes, TakeBytes(in, sizeof(float)));
      std::memcpy(&field.fixed32, field.bytes.data(), sizeof(float));
      return field;
    }
    default:
      return absl::DataLossError(absl::StrCat("unknown wire type ", tag & 7));
  }
}

template <typename OnField>
absl::Status ForEachField(absl::string_view message, OnField on_field) {
  while (!message.empty()) {
    ALMOST_ASSIGN_OR_RETURN(const Field field, TakeField(message));
    ALMOST_RETURN_IF_ERROR(on_field(field));
  }
  return absl::OkStatus();
}

absl::Status ParsePiece(absl::string_view message, SentencePieceModel::Piece& piece) {
  return ForEachField(message, [&](const Field& field) -> absl::Status {
    switch (field.number) {
      case 1:
        piece.text = std::string(field.bytes);
        break;
      case 2:
        piece.score = field.fixed32;
        break;
      case 3:
        if (field.varint < 1 || field.varint > 6) {
          return absl::DataLossError(absl::StrCat("piece \"", piece.text, "\": unknown type ", field.varint));
        }
        piece.type = static_cast<SentencePieceModel::PieceType>(field.varint);
        break;
      default:
        break;
    }
    return absl::OkStatus();
  });
}

absl::Status ParseTrainerSpec(absl::string_view message, SentencePieceModel& model) {
  return ForEachField(message, [&](const Field& field) -> absl::Status {
    switch (field.number) {
      case 3:
        if (field.varint < 1 || field.varint > 4) {
          return absl::DataLossError(absl::StrCat("unknown model type ", field.varint));
        }
        model.type = static_cast<SentencePieceModel::Type>(field.varint);
        break;
      case 24:
        model.treat_whitespace_as_suffix = field.varint != 0;
        break;
      case 35:
        model.byte_fallback = field.varint != 0;
        break;
      case 44:
        model.unknown_surface = std::string(field.bytes);
        break;
      case 46:
        model.bos_piece = std::string(field.bytes);
        break;
      case 47:
        model.eos_piece = std::string(field.bytes);
        break;
      default:
        break;
    }
    return absl::OkStatus();
  });
}

absl::Status ParseNormalizerSpec(absl::string_view message, SentencePieceModel& model) {
  return ForEachField(message, [&](const Field& field) -> absl::Status {
    switch (field.number) {
      case 2:
        model.precompiled_charsmap = std::string(field.bytes);
        break;
      case 3:
        model.add_dummy_prefix = field.varint != 0;
        break;
      case 4:
        model.remove_extra_whitespaces = field.varint != 0;
        break;
      case 5:
        model.escape_whitespaces = field.varint != 0;
        break;
      default:
        break;
    }
    return absl::OkStatus();
  });
}

}  // namespace

absl::StatusOr<SentencePieceModel> SentencePieceModel::Parse(absl::string_view bytes) {
  SentencePieceModel model;
  ALMOST_RETURN_IF_ERROR(ForEachField(bytes, [&](const Field& field) -> absl::Status {
    switch (field.number) {
      case 1:
        return ParsePiece(field.bytes, model.pieces.emplace_back());
      case 2:
        return ParseTrainerSpec(field.bytes, model);
      case 3:
        return ParseNormalizerSpec(field.bytes, model);
      case 5:
        return ForEachField(field.bytes, [&](const Field& denormalizer) -> absl::Status {
          if (denormalizer.number == 2 && !denormalizer.bytes.empty()) model.has_denormalizer = true;
          return absl::OkStatus();
        });
      default:
        return absl::OkStatus();
    }
  }));
  const auto unknown = std::count_if(model.pieces.begin(), model.pieces.end(),
                                     [](const Piece& piece) { return piece.type == PieceType::kUnknown; });
  if (unknown != 1) {
    return absl::DataLossError(absl::StrCat("must hold one unknown piece, holds ", unknown, " among ",
                                            model.pieces.size(), " pieces"));
  }
  return model;
}

}  // namespace almost
