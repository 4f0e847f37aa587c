#include "common/text/comparisons.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/base/unicode.h"

namespace almost {
namespace {

using Reason = ComparisonDropReason;

struct LengthStats {
  double mean = 0;
  double std = 0;
};

// Summed in order and in float64, as numpy does for fewer than eight values.
LengthStats StatsOf(const std::vector<double>& lengths) {
  LengthStats stats;
  if (lengths.empty()) return stats;
  const auto count = static_cast<double>(lengths.size());
  for (const double length : lengths) stats.mean += length;
  stats.mean /= count;
  for (const double length : lengths) stats.std += (length - stats.mean) * (length - stats.mean);
  stats.std = std::sqrt(stats.std / count);
  return stats;
}

struct Candidate {
  size_t configuration;
  size_t rank;
  const SynthesisResponse* response;
  double length;
};

absl::Status AddName(const nlohmann::json& name, absl::string_view where, std::set<std::string>& seen,
                     std::vector<std::string>& rank) {
  if (!name.is_string() || name.get<std::string>().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("rubric", where, ": must be the name of a configuration, is ", name.dump()));
  }
  if (!seen.insert(name).second) {
    return absl::InvalidArgumentError(absl::StrCat("rubric", where, ": ", name.dump(), " is there twice"));
  }
  rank.push_back(name);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Rubric> Rubric::Parse(absl::string_view json) {
  const nlohmann::json parsed =
      nlohmann::json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_array() || parsed.empty()) {
    return absl::InvalidArgumentError(
        R"(rubric: must be a JSON list of configurations, best first, nested lists tie: ["a", ["b", "c"]])");
  }
  Rubric rubric;
  std::set<std::string> seen;
  for (size_t i = 0; i < parsed.size(); ++i) {
    std::vector<std::string>& rank = rubric.ranks.emplace_back();
    if (!parsed[i].is_array()) {
      ALMOST_RETURN_IF_ERROR(AddName(parsed[i], absl::StrCat("[", i, "]"), seen, rank));
      continue;
    }
    if (parsed[i].empty()) return absl::InvalidArgumentError(absl::StrCat("rubric[", i, "]: an empty tie"));
    for (size_t j = 0; j < parsed[i].size(); ++j) {
      ALMOST_RETURN_IF_ERROR(AddName(parsed[i][j], absl::StrCat("[", i, "][", j, "]"), seen, rank));
    }
  }
  return rubric;
}

std::vector<std::string> Rubric::Configurations() const {
  std::vector<std::string> names;
  for (const std::vector<std::string>& rank : ranks) names.insert(names.end(), rank.begin(), rank.end());
  return names;
}

PairRule PairRule::Paper() { return {.one_pair_per_rank = true, .length = Length::kPaper}; }

PairRule PairRule::World() {
  return {.min_rank_gap = 2, .skips_identical = true, .rejects_bad = true, .length = Length::kWorld};
}

absl::string_view Name(ComparisonDropReason reason) {
  switch (reason) {
    case Reason::kBadResponse:
      return "bad_response";
    case Reason::kBlankResponse:
      return "blank_response";
    case Reason::kRankUsed:
      return "rank_used";
    case Reason::kTie:
      return "tie";
    case Reason::kRankGap:
      return "rank_gap";
    case Reason::kIdentical:
      return "identical";
    case Reason::kBadBetterSide:
      return "bad_better_side";
    case Reason::kShorter:
      return "shorter";
  }
  return "unknown";
}

absl::StatusOr<SynthesizedComparisons> SynthesizeComparisons(
    const Rubric& rubric, const std::vector<std::vector<std::optional<SynthesisResponse>>>& responses,
    const PairRule& rule) {
  const std::vector<std::string> names = rubric.Configurations();
  if (responses.size() != names.size()) {
    return absl::InvalidArgumentError(absl::StrCat("responses: must be one list for each of the rubric's ",
                                                   names.size(), " configurations, are ", responses.size()));
  }
  const size_t num_prompts = responses.empty() ? 0 : responses.front().size();
  for (size_t c = 0; c < names.size(); ++c) {
    if (responses[c].size() != num_prompts) {
      return absl::InvalidArgumentError(absl::StrCat("responses of ", names[c], ": must be ", num_prompts,
                                                     " as those of ", names[0], ", are ",
                                                     responses[c].size()));
    }
  }
  if (rule.min_rank_gap < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("min_rank_gap: must be at least 1, is ", rule.min_rank_gap));
  }

  SynthesizedComparisons out;
  const auto drop = [&](Reason reason) { ++out.dropped[static_cast<size_t>(reason)]; };

  double std_of_all = 0;
  if (rule.length == PairRule::Length::kWorld) {
    std::vector<double> lengths;
    for (const auto& list : responses) {
      for (const auto& response : list) {
        if (response.has_value()) lengths.push_back(static_cast<double>(NumCodePoints(response->text)));
      }
    }
    std_of_all = StatsOf(lengths).std;
  }

  for (size_t p = 0; p < num_prompts; ++p) {
    // Configurations come by rank, so what is gathered in their order is sorted.
    std::vector<Candidate> candidates;
    std::vector<double> lengths;  // of the responses that are not BAD; the official code counts blank ones
    size_t c = 0;
    for (size_t rank = 0; rank < rubric.ranks.size(); ++rank) {
      for (size_t i = 0; i < rubric.ranks[rank].size(); ++i, ++c) {
        const std::optional<SynthesisResponse>& response = responses[c][p];
        if (!response.has_value() || (response->bad && !rule.rejects_bad)) {
          drop(Reason::kBadResponse);
          continue;
        }
        const auto length = static_cast<double>(NumCodePoints(response->text));
        if (!response->bad) lengths.push_back(length);
        if (StripSpace(response->text).empty()) {
          drop(Reason::kBlankResponse);
          continue;
        }
        candidates.push_back({c, rank, &*response, length});
      }
    }
    const LengthStats stats = StatsOf(lengths);
    const auto is_too_short = [&](const Candidate& better, const Candidate& worse) {
      switch (rule.length) {
        case PairRule::Length::kAny:
          return false;
        case PairRule::Length::kPaper:
          return better.length < worse.length && better.length < stats.mean - stats.std / 2;
        case PairRule::Length::kWorld:
          return better.length < worse.length - std_of_all / 2;
      }
      return false;
    };

    std::vector<bool> rank_used(rubric.ranks.size(), false);
    for (size_t i = 0; i < candidates.size(); ++i) {
      for (size_t j = i + 1; j < candidates.size(); ++j) {
        const Candidate& better = candidates[i];
        const Candidate& worse = candidates[j];
        const auto pair = [&]() -> Comparison {
          return {p,
                  better.configuration,
                  worse.configuration,
                  better.response->text,
                  worse.response->text,
                  absl::StrCat(names[better.configuration], "-vs-", names[worse.configuration])};
        };
        const auto filter = [&](Reason reason) {
          drop(reason);
          out.filtered.emplace_back(pair(), reason);
        };
        if (rule.one_pair_per_rank && rank_used[better.rank]) {
          drop(Reason::kRankUsed);
        } else if (better.rank == worse.rank) {
          drop(Reason::kTie);
        } else if (worse.rank - better.rank < static_cast<size_t>(rule.min_rank_gap)) {
          drop(Reason::kRankGap);
        } else if (rule.skips_identical && better.response->text == worse.response->text) {
          filter(Reason::kIdentical);
        } else if (better.response->bad) {
          filter(Reason::kBadBetterSide);
        } else if (is_too_short(better, worse)) {
          filter(Reason::kShorter);
        } else {
          rank_used[better.rank] = true;
          out.comparisons.push_back(pair());
        }
      }
    }
  }
  return out;
}

}  // namespace almost
