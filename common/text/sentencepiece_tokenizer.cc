#include "common/text/sentencepiece_tokenizer.h"

#include <algorithm>
#include <cfloat>
#include <cstring>
#include <queue>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/base/unicode.h"

namespace almost {
namespace {

using PieceType = SentencePieceModel::PieceType;

constexpr absl::string_view kSpaceSymbol = "\u2581";  // stands for a blank within pieces
constexpr absl::string_view kReplacementCharacter = "\uFFFD";

// Bytes of the character that begins with `lead`, judged by that byte alone.
size_t CharacterLength(char lead) {
  return "\1\1\1\1\1\1\1\1\1\1\1\1\2\2\3\4"[static_cast<uint8_t>(lead) >> 4];
}

}  // namespace

void PieceTrie::Insert(absl::string_view piece, int32_t id) {
  uint64_t node = 0;
  for (const char c : piece) {
    const auto [child, inserted] = children_.try_emplace(node << 8 | static_cast<uint8_t>(c), ids_.size());
    if (inserted) ids_.push_back(-1);
    node = child->second;
  }
  ids_[node] = id;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> SentencePieceTokenizer::Parse(absl::string_view bytes,
                                                                               TokenizerConfig config) {
  std::shared_ptr<SentencePieceTokenizer> tokenizer(new SentencePieceTokenizer);
  SentencePieceTokenizer& t = *tokenizer;
  ALMOST_ASSIGN_OR_RETURN(t.model_, SentencePieceModel::Parse(bytes));
  if (t.model_.type != SentencePieceModel::Type::kBpe &&
      t.model_.type != SentencePieceModel::Type::kUnigram) {
    return absl::UnimplementedError("only models of type BPE and unigram can be read");
  }
  if (t.model_.has_denormalizer)
    return absl::UnimplementedError("a model with a denormaliser cannot be read");

  t.min_score_ = FLT_MAX;
  t.max_score_ =
      FLT_MIN;  // sic: the smallest positive one, as in the original, where it decides between symbols
  for (int32_t id = 0; id < t.vocab_size(); ++id) {
    const SentencePieceModel::Piece& piece = t.model_.pieces[id];
    const bool in_texts = piece.type == PieceType::kNormal || piece.type == PieceType::kUserDefined ||
                          piece.type == PieceType::kUnused;
    if (piece.text.empty()) return absl::DataLossError(absl::StrCat("piece ", id, " is empty"));
    if (!(in_texts ? t.pieces_ : t.reserved_).emplace(piece.text, id).second) {
      return absl::DataLossError(absl::StrCat("piece ", id, ": \"", piece.text, "\" is there twice"));
    }
    if (in_texts && t.model_.type == SentencePieceModel::Type::kUnigram) t.trie_.Insert(piece.text, id);
    if (piece.type == PieceType::kUserDefined) t.user_defined_.Insert(piece.text, id);
    if (piece.type == PieceType::kUnknown) t.unknown_id_ = id;
    if (piece.type == PieceType::kNormal) {
      t.min_score_ = std::min(t.min_score_, piece.score);
      t.max_score_ = std::max(t.max_score_, piece.score);
    }
  }
  if (t.model_.byte_fallback) {
    for (int byte = 0; byte < 256; ++byte) {
      const auto it = t.reserved_.find(absl::StrFormat("<0x%02X>", byte));
      if (it == t.reserved_.end() || t.PieceTypeOf(it->second) != PieceType::kByte) {
        return absl::DataLossError(absl::StrFormat("byte fallback without a piece <0x%02X>", byte));
      }
      t.byte_ids_.push_back(it->second);
    }
  }

  if (!t.model_.precompiled_charsmap.empty()) {
    const std::string& map = t.model_.precompiled_charsmap;
    uint32_t trie_bytes = 0;
    if (map.size() > sizeof(trie_bytes)) std::memcpy(&trie_bytes, map.data(), sizeof(trie_bytes));
    if (trie_bytes == 0 || trie_bytes % sizeof(uint32_t) != 0 ||
        trie_bytes >= map.size() - sizeof(trie_bytes) || map.back() != '\0') {
      return absl::DataLossError("the normalisation rules are damaged");
    }
    t.normalization_trie_.resize(trie_bytes / sizeof(uint32_t));
    std::memcpy(t.normalization_trie_.data(), map.data() + sizeof(trie_bytes), trie_bytes);
    t.normalization_texts_ = absl::string_view(map).substr(sizeof(trie_bytes) + trie_bytes);
  }

  const auto control = [&](const std::string& piece) -> std::optional<int32_t> {
    const auto it = t.reserved_.find(piece);
    if (it == t.reserved_.end() || t.PieceTypeOf(it->second) != PieceType::kControl) return std::nullopt;
    return it->second;
  };
  if (!config.bos_token_id.has_value()) config.bos_token_id = control(t.model_.bos_piece);
  if (!config.eos_token_id.has_value()) config.eos_token_id = control(t.model_.eos_piece);
  ALMOST_ASSIGN_OR_RETURN(t.special_, ResolveSpecialTokens(config, t));
  t.add_bos_ = config.add_bos_token;
  t.add_eos_ = config.add_eos_token;
  return tokenizer;
}

std::optional<int32_t> SentencePieceTokenizer::TokenId(absl::string_view token) const {
  for (const auto* ids : {&reserved_, &pieces_}) {
    const auto it = ids->find(token);
    if (it != ids->end()) return it->second;
  }
  return std::nullopt;
}

bool SentencePieceTokenizer::IsBytePiece(int32_t id) const {
  return id >= 0 && id < vocab_size() && PieceTypeOf(id) == PieceType::kByte;
}

int32_t SentencePieceTokenizer::PieceId(absl::string_view piece) const {
  return TokenId(piece).value_or(unknown_id_);
}

size_t SentencePieceTokenizer::UserDefinedPrefix(absl::string_view text) const {
  size_t longest = 0;
  user_defined_.ForEachPrefix(text, [&](size_t length, int32_t) { longest = length; });
  return longest;
}

// ---- Normalisation
// ---------------------------------------------------------------------------------------------

std::pair<absl::string_view, size_t> SentencePieceTokenizer::NormalizePrefix(absl::string_view text) const {
  if (const size_t length = UserDefinedPrefix(text); length > 0) return {text.substr(0, length), length};
  // The longest rule, by the double array of Darts-clone: a unit holds a label in its low byte, whether a
  // value follows in bit 8, and the offset of its children.
  if (!normalization_trie_.empty()) {
    const auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
    size_t longest = 0;
    uint32_t value = 0;
    uint32_t node = offset(normalization_trie_[0]);
    for (size_t i = 0; i < text.size(); ++i) {
      const auto byte = static_cast<uint8_t>(text[i]);
      node ^= byte;
      if (node >= normalization_trie_.size()) break;
      const uint32_t unit = normalization_trie_[node];
      if ((unit & 0x800000FFu) != byte) break;
      node ^= offset(unit);
      if (node >= normalization_trie_.size()) break;
      if ((unit >> 8 & 1) != 0) {
        longest = i + 1;
        value = normalization_trie_[node] & 0x7FFFFFFFu;
      }
    }
    if (longest > 0 && value < normalization_texts_.size())
      return {normalization_texts_.data() + value, longest};
  }
  const CodePoint first = FirstCodePoint(text);
  const bool is_character = first.value != 0xFFFD || first.size == 3;
  return {is_character ? text.substr(0, first.size) : kReplacementCharacter, first.size};
}

std::string SentencePieceTokenizer::Normalize(absl::string_view text) const {
  const bool remove_extra = model_.remove_extra_whitespaces;
  while (remove_extra && !text.empty()) {
    const auto [normalized, length] = NormalizePrefix(text);
    if (normalized != " ") break;
    text.remove_prefix(length);
  }
  if (text.empty()) return "";
  const absl::string_view space = model_.escape_whitespaces ? kSpaceSymbol : absl::string_view(" ");
  std::string out;
  if (model_.add_dummy_prefix && !model_.treat_whitespace_as_suffix) absl::StrAppend(&out, space);
  bool after_space = remove_extra;
  while (!text.empty()) {
    auto [normalized, length] = NormalizePrefix(text);
    while (after_space && absl::ConsumePrefix(&normalized, " ")) {
    }
    if (!normalized.empty()) {
      for (const char c : normalized) {
        if (c == ' ') {
          absl::StrAppend(&out, space);
        } else {
          out += c;
        }
      }
      after_space = remove_extra && absl::EndsWith(normalized, " ");
    }
    text.remove_prefix(length);
  }
  if (remove_extra) {
    while (absl::EndsWith(out, space)) out.resize(out.size() - space.size());
  }
  if (model_.add_dummy_prefix && model_.treat_whitespace_as_suffix) absl::StrAppend(&out, space);
  return out;
}

// ---- Encoding
// --------------------------------------------------------------------------------------------------

std::vector<int32_t> SentencePieceTokenizer::Encode(absl::string_view text, bool add_special_tokens) const {
  std::vector<int32_t> ids;
  if (add_special_tokens && add_bos_ && special_.bos.has_value()) ids.push_back(*special_.bos);
  const std::string normalized = Normalize(text);
  bool after_unknown = false;
  for (const Segment& segment :
       model_.type == SentencePieceModel::Type::kBpe ? EncodeBpe(normalized) : EncodeUnigram(normalized)) {
    const bool unknown = segment.id == unknown_id_;
    if (unknown && model_.byte_fallback) {
      for (const char byte : segment.text) ids.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
    } else if (!unknown || !after_unknown) {  // a run of unknown pieces is one
      ids.push_back(segment.id);
    }
    after_unknown = unknown;
  }
  if (add_special_tokens && add_eos_ && special_.eos.has_value()) ids.push_back(*special_.eos);
  return ids;
}

std::vector<SentencePieceTokenizer::Segment> SentencePieceTokenizer::EncodeBpe(
    absl::string_view normalized) const {
  struct Symbol {
    absl::string_view text;  // empty: merged into the one before
    int prev;
    int next;
    bool frozen;  // user-defined: never merged
  };
  struct Merge {
    float score;
    int left;
    int right;
    size_t size;  // of the merged text: tells whether the two are still as they were
    bool operator<(const Merge& other) const {
      return score < other.score || (score == other.score && left > other.left);
    }
  };
  std::vector<Symbol> symbols;
  while (!normalized.empty()) {
    const size_t user_defined = UserDefinedPrefix(normalized);
    const size_t length =
        user_defined > 0 ? user_defined : std::min(CharacterLength(normalized[0]), normalized.size());
    const int index = static_cast<int>(symbols.size());
    symbols.push_back({normalized.substr(0, length), index - 1, index + 1, user_defined > 0});
    normalized.remove_prefix(length);
  }
  if (symbols.empty()) return {};
  symbols.back().next = -1;

  std::priority_queue<Merge> agenda;
  // The parts of unused pieces, which are taken apart again at the end.
  absl::flat_hash_map<absl::string_view, std::pair<absl::string_view, absl::string_view>> parts;
  const auto consider = [&](int left, int right) {
    if (left < 0 || right < 0 || symbols[left].frozen || symbols[right].frozen) return;
    const absl::string_view merged(symbols[left].text.data(),
                                   symbols[left].text.size() + symbols[right].text.size());
    const auto it = pieces_.find(merged);
    if (it == pieces_.end()) return;
    agenda.push({model_.pieces[it->second].score, left, right, merged.size()});
    if (PieceTypeOf(it->second) == PieceType::kUnused)
      parts[merged] = {symbols[left].text, symbols[right].text};
  };
  for (size_t i = 1; i < symbols.size(); ++i) consider(static_cast<int>(i) - 1, static_cast<int>(i));
  while (!agenda.empty()) {
    const Merge merge = agenda.top();
    agenda.pop();
    Symbol& left = symbols[merge.left];
    Symbol& right = symbols[merge.right];
    if (left.text.empty() || right.text.empty() || left.text.size() + right.text.size() != merge.size)
      continue;
    left.text = absl::string_view(left.text.data(), merge.size);
    left.next = right.next;
    if (right.next >= 0) symbols[right.next].prev = merge.left;
    right.text = {};
    consider(left.prev, merge.left);
    consider(merge.left, left.next);
  }

  std::vector<Segment> segments;
  std::vector<absl::string_view> pending;  // a stack
  for (int index = 0; index != -1; index = symbols[index].next) {
    pending.push_back(symbols[index].text);
    while (!pending.empty()) {
      const absl::string_view text = pending.back();
      pending.pop_back();
      const int32_t id = PieceId(text);
      const auto split = PieceTypeOf(id) == PieceType::kUnused ? parts.find(text) : parts.end();
      if (split == parts.end()) {
        segments.push_back({text, id});
      } else {
        pending.push_back(split->second.second);
        pending.push_back(split->second.first);
      }
    }
  }
  return segments;
}

std::vector<SentencePieceTokenizer::Segment> SentencePieceTokenizer::EncodeUnigram(
    absl::string_view normalized) const {
  // Viterbi over the bytes at which characters begin. Float and double are mixed as in the original: it
  // decides ties.
  struct Best {
    int32_t id = -1;
    float score = 0;
    int64_t begin = -1;
  };
  constexpr float kUnknownPenalty = 10.0;
  const float unknown_score = min_score_ - kUnknownPenalty;
  std::vector<Best> best(normalized.size() + 1);
  for (size_t begin = 0; begin < normalized.size();) {
    const float score_here = best[begin].score;
    const size_t character = std::min(CharacterLength(normalized[begin]), normalized.size() - begin);
    bool has_character = false;
    trie_.ForEachPrefix(normalized.substr(begin), [&](size_t length, int32_t id) {
      if (PieceTypeOf(id) == PieceType::kUnused) return;
      const double piece_score = PieceTypeOf(id) == PieceType::kUserDefined
                                     ? static_cast<float>(length) * max_score_ - 0.1
                                     : model_.pieces[id].score;
      const double score = piece_score + score_here;
      Best& end = best[begin + length];
      if (end.begin == -1 || score > end.score)
        end = {id, static_cast<float>(score), static_cast<int64_t>(begin)};
      has_character |= length == character;
    });
    if (!has_character) {
      const float score = unknown_score + score_here;
      Best& end = best[begin + character];
      if (end.begin == -1 || score > end.score) end = {unknown_id_, score, static_cast<int64_t>(begin)};
    }
    begin += character;
  }
  std::vector<Segment> segments;
  for (size_t end = normalized.size(); end > 0;) {
    const size_t begin = static_cast<size_t>(best[end].begin);
    segments.push_back({normalized.substr(begin, end - begin), best[end].id});
    end = begin;
  }
  std::reverse(segments.begin(), segments.end());
  return segments;
}

// ---- Decoding
// --------------------------------------------------------------------------------------------------

std::string SentencePieceTokenizer::Decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string out;
  std::string bytes;   // of the run of byte pieces under way
  bool begun = false;  // whether a visible piece, or the blank that begins every text, has been seen
  const auto flush_bytes = [&] {
    for (absl::string_view rest = bytes; !rest.empty();) {
      const CodePoint first = FirstCodePoint(rest);
      absl::StrAppend(&out, first.value == 0xFFFD ? kReplacementCharacter : rest.substr(0, first.size));
      rest.remove_prefix(first.size);
      begun = true;
    }
    bytes.clear();
  };
  bool consumed_blank = false;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size()) continue;
    const SentencePieceModel::Piece& piece = model_.pieces[id];
    if (piece.type == PieceType::kByte) {
      bytes += static_cast<char>(std::find(byte_ids_.begin(), byte_ids_.end(), id) - byte_ids_.begin());
      continue;
    }
    flush_bytes();
    begun |= consumed_blank;
    consumed_blank = false;
    if (piece.type == PieceType::kControl) {
      if (!skip_special_tokens) out += piece.text;
      continue;
    }
    if (piece.type == PieceType::kUnknown) {
      out += model_.unknown_surface;
      begun = true;
      continue;
    }
    absl::string_view text = piece.text;
    if (!begun && (model_.add_dummy_prefix || model_.remove_extra_whitespaces)) {
      // Of extra blanks at the beginning all are left out, otherwise the one that encoding put there.
      consumed_blank = absl::ConsumePrefix(&text, kSpaceSymbol) && !model_.remove_extra_whitespaces;
    }
    absl::StrAppend(&out, absl::StrReplaceAll(text, {{kSpaceSymbol, " "}}));
    begun |= !text.empty();
  }
  flush_bytes();
  return out;
}

}  // namespace almost
