#include "common/text/rouge_l.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/unicode.h"

namespace almost {
namespace {

// The LCS of a query of `num_words` words and a text, whose words are given as masks (`blocks` words of 64
// bits each, null: not in the query). `columns` is scratch. Bit j of the vector is 0 where the LCS of the
// text so far and the query's first j + 1 words exceeds that with its first j; so the zeros are the LCS
// (Hyyrö 2004, figure 2).
template <typename MaskOf>
size_t BitParallelLcs(size_t num_words, const std::vector<int32_t>& text, std::vector<uint64_t>& columns,
                      MaskOf mask_of) {
  const size_t blocks = (num_words + 63) / 64;
  if (blocks == 1) {
    uint64_t v = ~uint64_t{0};
    for (const int32_t word : text) {
      const uint64_t* mask = mask_of(word);
      if (mask == nullptr) continue;
      v = (v + (v & *mask)) | (v & ~*mask);
    }
    return static_cast<size_t>(std::popcount(~v));
  }
  columns.assign(blocks, ~uint64_t{0});
  for (const int32_t word : text) {
    const uint64_t* mask = mask_of(word);
    if (mask == nullptr) continue;
    uint64_t carry = 0;
    for (size_t b = 0; b < blocks; ++b) {
      const uint64_t v = columns[b];
      const uint64_t matches = v & mask[b];
      const uint64_t sum = v + matches;
      const uint64_t total = sum + carry;
      carry = static_cast<uint64_t>(sum < v) | static_cast<uint64_t>(total < sum);
      columns[b] = total | (v & ~mask[b]);
    }
  }
  size_t zeros = 0;
  for (const uint64_t v : columns) zeros += static_cast<size_t>(std::popcount(~v));
  return zeros;
}

}  // namespace

std::vector<std::string> RougeTokens(absl::string_view text) {
  std::vector<std::string> tokens;
  std::string token;
  const auto end_token = [&] {
    if (!token.empty()) tokens.push_back(std::exchange(token, {}));
  };
  while (!text.empty()) {
    const CodePoint c = FirstCodePoint(text);
    const absl::string_view character = text.substr(0, c.size);
    text.remove_prefix(c.size);
    if (c.value < 0x80 && absl::ascii_isalnum(static_cast<unsigned char>(c.value))) {
      token += absl::ascii_tolower(static_cast<unsigned char>(c.value));
    } else if (c.value == 0x212A) {  // the Kelvin sign, whose lower case is "k"
      token += 'k';
    } else if (c.value == 0x0130) {  // İ, whose lower case is "i" and a combining dot
      token += 'i';
      end_token();
    } else if (!IsLetterBeyondLatin(c.value)) {
      end_token();
    } else if (IsOfUnspacedScript(c.value)) {
      end_token();
      tokens.emplace_back(character);
    } else {
      absl::StrAppend(&token, character);
    }
  }
  end_token();
  return tokens;
}

double RougeLF1(size_t lcs, size_t num_a, size_t num_b) {
  if (lcs == 0) return 0;
  const double precision = static_cast<double>(lcs) / static_cast<double>(num_a);
  const double recall = static_cast<double>(lcs) / static_cast<double>(num_b);
  return 2 * precision * recall / (precision + recall);
}

double RougeL(absl::string_view a, absl::string_view b) {
  RougeLIndex index;
  index.Add(a);
  return index.Nearest(b)->f1;
}

std::vector<int32_t> RougeLIndex::Words(absl::string_view text, bool intern) {
  std::vector<int32_t> words;
  for (std::string& token : RougeTokens(text)) {
    const auto it = ids_.find(token);
    if (it != ids_.end()) {
      words.push_back(it->second);
    } else if (intern) {
      words.push_back(static_cast<int32_t>(ids_.size()));
      ids_.emplace(std::move(token), words.back());
    } else {
      words.push_back(-1);
    }
  }
  return words;
}

void RougeLIndex::Add(absl::string_view text) {
  std::vector<int32_t> words = Words(text, /*intern=*/true);
  postings_.resize(ids_.size());
  slots_.resize(ids_.size(), -1);
  const auto index = static_cast<uint32_t>(texts_.size());
  for (const int32_t word : words) {
    std::vector<Posting>& postings = postings_[word];
    if (postings.empty() || postings.back().text != index) postings.push_back({index, 0});
    ++postings.back().count;
  }
  texts_.push_back(std::move(words));
}

void RougeLIndex::Prepare(std::vector<int32_t> query) {
  for (const int32_t word : query_) {
    if (word >= 0) slots_[word] = -1;
  }
  query_ = std::move(query);
  const size_t blocks = (query_.size() + 63) / 64;
  shared_.assign(texts_.size(), 0);
  masks_.clear();
  std::vector<std::pair<int32_t, uint32_t>> counts;  // of the query's distinct known words
  for (size_t i = 0; i < query_.size(); ++i) {
    if (query_[i] < 0) continue;
    int32_t& slot = slots_[query_[i]];
    if (slot < 0) {
      slot = static_cast<int32_t>(counts.size());
      counts.push_back({query_[i], 0});
      masks_.resize(masks_.size() + blocks, 0);
    }
    ++counts[slot].second;
    masks_[static_cast<size_t>(slot) * blocks + i / 64] |= uint64_t{1} << (i % 64);
  }
  for (const auto& [word, count] : counts) {
    for (const Posting& posting : postings_[word]) shared_[posting.text] += std::min(count, posting.count);
  }
}

size_t RougeLIndex::Lcs(size_t text) {
  const size_t blocks = (query_.size() + 63) / 64;
  return BitParallelLcs(query_.size(), texts_[text], columns_, [&](int32_t word) -> const uint64_t* {
    const int32_t slot = slots_[word];
    return slot < 0 ? nullptr : &masks_[static_cast<size_t>(slot) * blocks];
  });
}

std::optional<RougeLIndex::Match> RougeLIndex::FirstAtLeast(absl::string_view text, double threshold) {
  Prepare(Words(text, /*intern=*/false));
  // F1 = 2 lcs / (num_a + num_b); a little less is asked for here, since RougeLF1 rounds differently.
  const double bound = threshold / 2 * (1 - 1e-12);
  for (size_t i = 0; i < texts_.size(); ++i) {
    const size_t sum = query_.size() + texts_[i].size();
    if (shared_[i] == 0 || static_cast<double>(shared_[i]) < bound * static_cast<double>(sum)) continue;
    const double f1 = RougeLF1(Lcs(i), query_.size(), texts_[i].size());
    if (f1 >= threshold) return Match{i, f1};
  }
  return std::nullopt;
}

std::optional<RougeLIndex::Match> RougeLIndex::Nearest(absl::string_view text) {
  if (texts_.empty()) return std::nullopt;
  Prepare(Words(text, /*intern=*/false));
  Match best{0, 0};
  for (size_t i = 0; i < texts_.size(); ++i) {
    if (shared_[i] == 0) continue;
    const double most =
        2 * static_cast<double>(shared_[i]) / static_cast<double>(query_.size() + texts_[i].size());
    if (most * (1 + 1e-12) <= best.f1) continue;
    const double f1 = RougeLF1(Lcs(i), query_.size(), texts_[i].size());
    if (f1 > best.f1) best = {i, f1};
  }
  return best;
}

}  // namespace almost
