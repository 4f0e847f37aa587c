#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

// Comparison synthesis (METHOD.md section 3): which of two responses is better follows from the
// configurations that wrote them.
namespace almost {

// Configurations, best first; those of one rank tie.
struct Rubric {
  std::vector<std::vector<std::string>> ranks;

  // From a JSON list, best first, a nested list for a tie: ["a", ["b", "c"], "d"].
  // kInvalidArgument: not such a list, empty, an empty name or tie, or a name that is there twice.
  static absl::StatusOr<Rubric> Parse(absl::string_view json);

  // The names in order, ties from left to right.
  std::vector<std::string> Configurations() const;
};

struct SynthesisResponse {
  std::string text;
  bool bad = false;  // what a ResponseFilter says of it
};

// Which pairs are formed. The two presets are the paper's and the tiny world's.
struct PairRule {
  // A configuration, and a rank, gives at most one pair as the better side: the first that nothing else
  // forbids.
  bool one_pair_per_rank = false;
  // A pair needs at least so many ranks between its sides; at least 1, so that ties never form one.
  int min_rank_gap = 1;
  bool skips_identical = false;
  // Whether a BAD response may be the worse side. The better side never is BAD.
  bool rejects_bad = false;

  // Lengths are code points, their standard deviation that of the population.
  enum class Length {
    kAny,
    // Not shorter than the worse side, or at least mean - std / 2 of this prompt's responses, BAD ones left
    // out.
    kPaper,
    // Not shorter than the worse side's - std / 2 of the responses to all prompts, BAD ones too.
    kWorld,
  };
  Length length = Length::kAny;

  static PairRule Paper();
  static PairRule World();
};

struct Comparison {
  size_t prompt_index;
  size_t better;  // indices of Rubric::Configurations()
  size_t worse;
  std::string chosen;
  std::string rejected;
  std::string meta;  // "better-vs-worse", by the configurations' names
};

// What did not make a pair. Responses first, each counted once; then pairs, counted by the first rule that
// forbids them, in this order.
enum class ComparisonDropReason {
  kBadResponse,
  kBlankResponse,
  kRankUsed,
  kTie,
  kRankGap,
  kIdentical,
  kBadBetterSide,
  kShorter,
};
inline constexpr std::array kComparisonDropReasons = {
    ComparisonDropReason::kBadResponse,   ComparisonDropReason::kBlankResponse,
    ComparisonDropReason::kRankUsed,      ComparisonDropReason::kTie,
    ComparisonDropReason::kRankGap,       ComparisonDropReason::kIdentical,
    ComparisonDropReason::kBadBetterSide, ComparisonDropReason::kShorter};
// In snake_case, for labels and files: "rank_used".
absl::string_view Name(ComparisonDropReason reason);

struct SynthesizedComparisons {
  std::vector<Comparison> comparisons;  // by prompt, then in the order in which the pairs are walked
  std::array<int64_t, kComparisonDropReasons.size()> dropped{};  // by ComparisonDropReason
  // Those of them that the ranking would have made and a filter forbade: kIdentical, kBadBetterSide,
  // kShorter.
  std::vector<std::pair<Comparison, ComparisonDropReason>> filtered;
};

// `responses`[configuration][prompt], configurations as in Rubric::Configurations(); nothing: a response that
// was dropped and whose text is not at hand. Per prompt, responses are sorted by rank (stable) and all pairs
// are walked, the better side's first; equal inputs give equal outputs. kInvalidArgument: not one list per
// configuration, lists of different lengths, or min_rank_gap below 1.
absl::StatusOr<SynthesizedComparisons> SynthesizeComparisons(
    const Rubric& rubric, const std::vector<std::vector<std::optional<SynthesisResponse>>>& responses,
    const PairRule& rule);

}  // namespace almost
