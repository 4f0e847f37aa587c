#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

// ROUGE-L (Lin 2004): how much two texts have in common, as the longest common subsequence (LCS) of their
// words.
namespace almost {

// The words that Python's rouge_score compares, without stemming: lower case, [a-z0-9]+. Of other scripts
// than Latin it has none, so that prompts of theirs would never be like each other; here their letters,
// digits and marks make words, in the case they have, and each character of scripts without blanks is one.
std::vector<std::string> RougeTokens(absl::string_view text);

// F1 of precision = lcs / num_a and recall = lcs / num_b, rounded as rouge_score's doubles are; 0 without
// words.
double RougeLF1(size_t lcs, size_t num_a, size_t num_b);

// ROUGE-L F1 of two texts, of those in Latin script equal to the last bit to rouge_score's
// RougeScorer(["rougeL"], use_stemmer=False).
double RougeL(absl::string_view a, absl::string_view b);

// A growing list of texts, asked which of them are near another one. Exact: an inverted index counts the
// words that two texts share, which bounds their LCS from above, and only texts that could matter are
// compared, by bit-parallel LCS (Crochemore et al. 2001; Hyyrö 2004), 64 words of the query at a time. Not
// thread-safe, queries neither.
class RougeLIndex {
 public:
  struct Match {
    size_t index;  // counted from 0 in the order of Add
    double f1;
  };

  void Add(absl::string_view text);
  size_t size() const { return texts_.size(); }

  // The first text whose F1 with `text` is at least `threshold`, which is above 0; nothing: there is none.
  std::optional<Match> FirstAtLeast(absl::string_view text, double threshold);
  // The text with the highest F1, the first of equals; nothing: the index is empty.
  std::optional<Match> Nearest(absl::string_view text);

 private:
  struct Posting {
    uint32_t text;
    uint32_t count;  // of the word in that text
  };

  // Ids of the words of `text`; a word that no text holds yet gets -1, or with `intern` a new id.
  std::vector<int32_t> Words(absl::string_view text, bool intern);
  // Fills shared_ with the number of words that `query` and each text share, and masks_ for Lcs.
  void Prepare(std::vector<int32_t> query);
  // LCS of the prepared query and a text.
  size_t Lcs(size_t text);

  absl::flat_hash_map<std::string, int32_t> ids_;
  std::vector<std::vector<Posting>> postings_;  // by word
  std::vector<std::vector<int32_t>> texts_;     // words of each

  // Of the query under way.
  std::vector<int32_t> query_;     // its words
  std::vector<uint32_t> shared_;   // by text
  std::vector<int32_t> slots_;     // by word: its row in masks_, -1: not in the query
  std::vector<uint64_t> masks_;    // rows: at which positions of the query the word stands
  std::vector<uint64_t> columns_;  // the bit vector of Lcs
};

}  // namespace almost
