#include "common/evaluation/benchmarks.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/random.h"

namespace almost {
namespace {

using nlohmann::ordered_json;

Estimate Bootstrap(const std::vector<Share>& units, const BootstrapSettings& settings) {
  return BootstrapRatio(units, settings.resamples, DeriveSeed(settings.seed, "bootstrap"));
}

ordered_json Range(const Estimate& estimate) { return ordered_json::array({estimate.low, estimate.high}); }

double Half(double difference) { return difference > 0 ? 1 : difference < 0 ? 0 : 0.5; }

ordered_json OfPreferences(const std::vector<const ScoredPreference*>& pairs,
                           const BootstrapSettings& settings) {
  std::vector<Share> right, longer;
  std::vector<double> scores, lengths, score_differences, length_differences;
  PairedCounts paired;
  int64_t counts[3] = {0, 0, 0};  // wrong, tied, right
  for (const ScoredPreference* pair : pairs) {
    const double difference = pair->chosen - pair->rejected;
    right.push_back({Half(difference), 1});
    longer.push_back({Half(static_cast<double>(pair->length_difference)), 1});
    ++counts[std::lround(2 * right.back().part)];
    if (right.back().part != 0.5 && longer.back().part != 0.5) {
      const bool a = right.back().part == 1, b = longer.back().part == 1;
      ++(a && b ? paired.both : a ? paired.only_a : b ? paired.only_b : paired.neither);
    }
    scores.insert(scores.end(), {pair->chosen, pair->rejected});
    lengths.insert(lengths.end(), {static_cast<double>(pair->chosen_length),
                                   static_cast<double>(pair->chosen_length - pair->length_difference)});
    score_differences.push_back(difference);
    length_differences.push_back(static_cast<double>(pair->length_difference));
  }
  const Estimate difference =
      PairedBootstrap(right, longer, settings.resamples, DeriveSeed(settings.seed, "bootstrap"));
  return {{"accuracy", ToJson(Bootstrap(right, settings))},
          {"exact", Range(ExactProportion(counts[2], static_cast<int64_t>(pairs.size())))},
          {"right", counts[2]},
          {"tied", counts[1]},
          {"wrong", counts[0]},
          {"longer", ToJson(Bootstrap(longer, settings))},
          {"versus_longer",
           {{"difference", ToJson(difference)},
            {"only_scorer_right", paired.only_a},
            {"only_longer_right", paired.only_b},
            {"mcnemar_p", paired.p_value()}}},
          {"score_length_correlation", Correlation(scores, lengths)},
          {"length_difference_correlation", Correlation(score_differences, length_differences)}};
}

ordered_json OfPairwise(const std::vector<const PairwiseOutcome*>& outcomes,
                        const BootstrapSettings& settings) {
  WinCounts prompts, reviews;
  std::vector<Share> units, a_lengths, b_lengths;
  std::vector<LengthOutcome> for_length;
  int64_t longer_won = 0, decided_by_length = 0;
  PositionCounts position;
  for (const PairwiseOutcome* outcome : outcomes) {
    const std::string verdict = CombineOrders(outcome->a_first, outcome->b_first);
    prompts.Add(verdict);
    reviews.Add(outcome->a_first);
    reviews.Add(outcome->b_first);
    position.Add(outcome->a_first, outcome->b_first);
    a_lengths.push_back({static_cast<double>(outcome->a_length), 1});
    b_lengths.push_back({static_cast<double>(outcome->b_length), 1});
    if (verdict == "unparsable") continue;
    const double win = verdict == "win" ? 1 : verdict == "loss" ? 0 : 0.5;
    const auto longer = static_cast<double>(outcome->a_length - outcome->b_length);
    units.push_back({win, 1});
    for_length.push_back({win, longer});
    if (win != 0.5 && longer != 0) {
      ++decided_by_length;
      longer_won += (win == 1) == (longer > 0);
    }
  }
  ordered_json out;
  out["win_rate"] = ToJson(Bootstrap(units, settings));
  out["decided"] = ToJson(ExactProportion(prompts.win, prompts.win + prompts.loss));
  out["sign_test_p"] = SignTest(prompts.win, prompts.win + prompts.loss);
  out["counts"] = ToJson(prompts);
  out["reviews"] = ToJson(reviews);
  if (const auto controlled = LengthControlledWinRate(for_length)) {
    out["length_controlled"] = ToJson(controlled->win_rate);
  }
  out["longer"] = ToJson(ExactProportion(longer_won, decided_by_length));
  out["position"] = ToJson(position);
  out["a_length"] = ToJson(Bootstrap(a_lengths, settings));
  out["b_length"] = ToJson(Bootstrap(b_lengths, settings));
  return out;
}

// `figures_of` over all items and, where there is more than one group, over each.
template <typename Item>
ordered_json ByGroup(std::span<const Item> items, const char* groups_name, std::string Item::* group,
                     const BootstrapSettings& settings,
                     ordered_json (*figures_of)(const std::vector<const Item*>&, const BootstrapSettings&)) {
  std::vector<const Item*> all;
  std::map<std::string, std::vector<const Item*>> groups;
  for (const Item& item : items) {
    all.push_back(&item);
    groups[item.*group].push_back(&item);
  }
  ordered_json out = {{"all", figures_of(all, settings)}};
  out[groups_name] = ordered_json::object();
  if (groups.size() == 1 && groups.contains("")) return out;
  for (const auto& [name, members] : groups) out[groups_name][name] = figures_of(members, settings);
  return out;
}

}  // namespace

std::string FillIn(absl::string_view form, const std::vector<std::pair<std::string, std::string>>& values) {
  std::string out;
  for (size_t at = 0; at < form.size();) {
    bool found = false;
    for (const auto& [name, value] : values) {
      const size_t length = name.size() + 2;
      if (form[at] != '{' || form.substr(at + 1, name.size()) != name || form.size() < at + length ||
          form[at + length - 1] != '}') {
        continue;
      }
      out += value;
      at += length;
      found = true;
      break;
    }
    if (!found) out += form[at++];
  }
  return out;
}

std::optional<std::pair<double, double>> ParseJudgeScores(absl::string_view answer) {
  const std::string line = absl::StrReplaceAll(answer.substr(0, answer.find('\n')), {{",", " "}});
  const std::vector<absl::string_view> parts = absl::StrSplit(line, ' ', absl::SkipWhitespace());
  double first = 0, second = 0;
  if (parts.size() != 2 || !absl::SimpleAtod(parts[0], &first) || !absl::SimpleAtod(parts[1], &second) ||
      !std::isfinite(first) || !std::isfinite(second)) {
    return std::nullopt;
  }
  return std::pair(first, second);
}

std::string VerdictOf(double score, double other) {
  return score > other ? "win" : score < other ? "loss" : "tie";
}

std::string CombineOrders(absl::string_view one, absl::string_view other) {
  if (one == "unparsable" || other == "unparsable") return "unparsable";
  return one == other ? std::string(one) : "tie";
}

ordered_json ToJson(const Estimate& estimate) {
  return {{"value", estimate.value}, {"low", estimate.low}, {"high", estimate.high}, {"n", estimate.n}};
}

ordered_json ToJson(const WinCounts& counts) {
  return {{"win", counts.win}, {"tie", counts.tie}, {"loss", counts.loss}, {"unparsable", counts.unparsable}};
}

ordered_json ToJson(const PositionCounts& counts) {
  return {
      {"first", counts.first}, {"second", counts.second}, {"same", counts.same}, {"p", counts.p_value()}};
}

ordered_json PreferenceFigures(std::span<const ScoredPreference> pairs, const BootstrapSettings& settings) {
  return ByGroup(pairs, "types", &ScoredPreference::type, settings, &OfPreferences);
}

ordered_json ChoiceFigures(std::span<const ChoiceAnswer> answers, const BootstrapSettings& settings) {
  std::vector<Share> right, chance, longest;
  int64_t num_right = 0;
  for (const ChoiceAnswer& answer : answers) {
    const auto first_highest = [](const auto& values) {
      return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
    };
    const bool is_right = first_highest(answer.scores) == answer.truth;
    num_right += is_right;
    right.push_back({is_right ? 1.0 : 0.0, 1});
    chance.push_back({1 / static_cast<double>(answer.scores.size()), 1});
    longest.push_back({first_highest(answer.lengths) == answer.truth ? 1.0 : 0.0, 1});
  }
  return {{"accuracy", ToJson(Bootstrap(right, settings))},
          {"exact", Range(ExactProportion(num_right, static_cast<int64_t>(answers.size())))},
          {"chance", Bootstrap(chance, {.resamples = 0}).value},
          {"longest", ToJson(Bootstrap(longest, settings))}};
}

ordered_json PairwiseFigures(std::span<const PairwiseOutcome> outcomes, const BootstrapSettings& settings) {
  return ByGroup(outcomes, "categories", &PairwiseOutcome::category, settings, &OfPairwise);
}

ordered_json PerplexityFigures(std::span<const DocumentScore> documents, const BootstrapSettings& settings) {
  std::vector<Share> by_token, by_word, by_byte;
  int64_t tokens = 0;
  for (const DocumentScore& document : documents) {
    by_token.push_back({document.nll, static_cast<double>(document.tokens)});
    by_word.push_back({document.nll, static_cast<double>(document.words)});
    by_byte.push_back({document.nll / std::log(2.0), static_cast<double>(document.bytes)});
    tokens += document.tokens;
  }
  const auto exponential = [](Estimate estimate) {
    for (double* value : {&estimate.value, &estimate.low, &estimate.high}) *value = std::exp(*value);
    return ToJson(estimate);
  };
  return {{"perplexity", exponential(Bootstrap(by_token, settings))},
          {"word_perplexity", exponential(Bootstrap(by_word, settings))},
          {"bits_per_byte", ToJson(Bootstrap(by_byte, settings))},
          {"tokens", tokens},
          {"documents", documents.size()}};
}

}  // namespace almost
