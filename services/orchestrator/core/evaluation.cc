#include "services/orchestrator/core/evaluation.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "absl/strings/str_split.h"
#include "common/base/random.h"
#include "common/evaluation/benchmarks.h"
#include "common/evaluation/statistics.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

constexpr double kClearDifference = 1.0;  // of the judge's 0 to 10

// 1 when the better answer has more of it, 1/2 when both have the same; nothing where one was not measured.
std::optional<double> Picks(const ordered_json& better, const ordered_json& worse, const char* by) {
  if (!better.contains(by) || !worse.contains(by)) return std::nullopt;
  const double a = better[by], b = worse[by];
  return a > b ? 1.0 : a == b ? 0.5 : 0.0;
}

class Evaluation {
 public:
  Evaluation(const std::vector<EvaluatedPrompt>& prompts, const EvaluationSettings& settings)
      : prompts_(prompts), settings_(settings) {}

  ordered_json Run() {
    RewardModelAccuracy();
    WinRates();
    Systems();
    BestOfN();
    return std::move(out_);
  }

 private:
  Estimate Bootstrap(const std::vector<Share>& units, absl::string_view purpose) const {
    return BootstrapRatio(units, settings_.bootstrap, DeriveSeed(settings_.seed, purpose));
  }

  // How often each rule picks the answer that the judge scores clearly higher; a unit is a prompt's pairs.
  struct Accuracy {
    std::map<std::string, std::vector<Share>> units;          // by rule
    std::map<std::string, PairedCounts> reward_versus_other;  // of pairs that neither leaves undecided

    void Add(const std::vector<std::pair<const ordered_json*, const ordered_json*>>& pairs) {
      for (const char* rule : {"reward", "num_tokens", "likelihood"}) {
        Share share{0, 0};
        for (const auto& [a, b] : pairs) {
          const bool a_is_better = a->at("score").get<double>() > b->at("score").get<double>();
          const ordered_json &better = a_is_better ? *a : *b, &worse = a_is_better ? *b : *a;
          const auto right = Picks(better, worse, rule), reward = Picks(better, worse, "reward");
          if (!right) continue;
          share.part += *right;
          share.whole += 1;
          if (!reward || *reward == 0.5 || *right == 0.5) continue;
          PairedCounts& counts = reward_versus_other[rule];
          ++(*reward > *right   ? counts.only_a
             : *reward < *right ? counts.only_b
             : *right > 0       ? counts.both
                                : counts.neither);
        }
        units[rule].push_back(share);
      }
    }
    bool Measured(const std::string& rule) const {
      const auto found = units.find(rule);
      return found != units.end() && std::any_of(found->second.begin(), found->second.end(),
                                                 [](const Share& share) { return share.whole > 0; });
    }
  };

  static bool Clear(const ordered_json& a, const ordered_json& b) {
    return a.contains("score") && b.contains("score") &&
           std::abs(a["score"].get<double>() - b["score"].get<double>()) >= kClearDifference;
  }

  void RewardModelAccuracy() {
    Accuracy mixed, same;
    std::vector<double> rewards, lengths;
    const size_t wanted =
        prompts_.empty() ? 0 : (settings_.num_pairs + prompts_.size() - 1) / prompts_.size();
    for (const EvaluatedPrompt& prompt : prompts_) {
      std::vector<const ordered_json*> vanilla;
      for (const auto& [system, answer] : prompt["answers"].items()) {
        if (system != "sft" && system != "rl") vanilla.push_back(&answer);
        if (!answer.contains("reward")) continue;
        rewards.push_back(answer["reward"]);
        lengths.push_back(answer["num_tokens"]);
      }
      RandomStream random(DeriveSeed(settings_.seed, "pairs"), prompt["id"].get<uint64_t>());
      std::vector<std::pair<const ordered_json*, const ordered_json*>> pairs;
      for (size_t a = 0; a < vanilla.size(); ++a) {
        for (size_t b = a + 1; b < vanilla.size(); ++b) {
          if (Clear(*vanilla[a], *vanilla[b])) pairs.emplace_back(vanilla[a], vanilla[b]);
        }
      }
      random.Shuffle(pairs);
      pairs.resize(std::min(pairs.size(), wanted));
      mixed.Add(pairs);
      const ordered_json& candidates = prompt["candidates"];
      if (candidates.size() >= 2 && Clear(candidates[0], candidates[1]))
        same.Add({{&candidates[0], &candidates[1]}});
    }
    const auto report = [&](const Accuracy& accuracy, ordered_json& into, const std::string& rm,
                            const std::string& length, const std::string& likelihood) {
      for (const auto& [rule, name] : {std::pair<std::string, std::string>{"reward", rm},
                                       {"num_tokens", length},
                                       {"likelihood", likelihood}}) {
        if (accuracy.Measured(rule)) into[name] = ToJson(Bootstrap(accuracy.units.at(rule), "accuracy"));
      }
    };
    report(mixed, out_, "rm_accuracy", "rm_accuracy_length_only", "rm_accuracy_likelihood");
    ordered_json same_configuration = ordered_json::object();
    report(same, same_configuration, "rm", "length_only", "likelihood");
    if (!same_configuration.empty()) out_["rm_same_configuration"] = std::move(same_configuration);
    for (const auto& [rule, name] :
         {std::pair<std::string, std::string>{"num_tokens", "length_only"}, {"likelihood", "likelihood"}}) {
      if (!mixed.Measured("reward") || !mixed.Measured(rule)) continue;
      const PairedCounts& counts = mixed.reward_versus_other[rule];
      out_["rm_versus"][name] = {
          {"difference", ToJson(PairedBootstrap(mixed.units["reward"], mixed.units[rule], settings_.bootstrap,
                                                DeriveSeed(settings_.seed, "accuracy")))},
          {"pairs", counts.only_a + counts.only_b + counts.both + counts.neither},
          {"only_rm_right", counts.only_a},
          {"only_other_right", counts.only_b},
          {"mcnemar_p", counts.p_value()}};
    }
    if (!rewards.empty()) out_["rm_length_correlation"] = Correlation(rewards, lengths);
  }

  void WinRates() {
    for (const auto& [pair, name] : {std::pair<const char*, const char*>{"sft/baseline", "win_rate_sft"},
                                     {"rl/baseline", "win_rate_rl"},
                                     {"rl/sft", "win_rate_rl_over_sft"}}) {
      WinCounts counts;
      PositionCounts position;
      std::vector<Share> units;
      std::vector<LengthOutcome> outcomes;
      const std::vector<std::string> sides = absl::StrSplit(pair, '/');
      const std::string& other = sides[1] == "baseline" ? settings_.baseline : sides[1];
      for (const EvaluatedPrompt& prompt : prompts_) {
        if (!prompt["verdicts"].contains(pair)) continue;
        const std::string verdict = prompt["verdicts"][pair];
        counts.Add(verdict);
        if (const auto orders = prompt.find("orders"); orders != prompt.end() && orders->contains(pair)) {
          position.Add((*orders)[pair][0].get<std::string>(), (*orders)[pair][1].get<std::string>());
        }
        if (verdict == "unparsable") continue;
        units.push_back({verdict == "win" ? 1.0 : verdict == "loss" ? 0.0 : 0.5, 1});
        const ordered_json& answers = prompt["answers"];
        if (!answers.contains(sides[0]) || !answers.contains(other)) continue;
        outcomes.push_back({units.back().part, answers[sides[0]]["num_tokens"].get<double>() -
                                                   answers[other]["num_tokens"].get<double>()});
      }
      if (units.empty()) continue;
      out_[name] = ToJson(Bootstrap(units, name));
      if (const auto controlled = LengthControlledWinRate(outcomes)) {
        out_["length_controlled"][name] = ToJson(controlled->win_rate);
      }
      out_["wins"][name] = ToJson(counts);
      if (position.first + position.second + position.same > 0) out_["position"][name] = ToJson(position);
    }
  }

  void Systems() {
    std::vector<std::string> systems = settings_.grid;
    for (const std::string& other : {settings_.baseline, std::string("sft"), std::string("rl")}) {
      if (std::find(systems.begin(), systems.end(), other) == systems.end()) systems.push_back(other);
    }
    out_["systems"] = ordered_json::array();
    for (const std::string& system : systems) {
      std::vector<Share> scores, tokens;
      for (const EvaluatedPrompt& prompt : prompts_) {
        if (!prompt["answers"].contains(system)) continue;
        const ordered_json& answer = prompt["answers"][system];
        if (answer.contains("score")) scores.push_back({answer["score"], 1});
        tokens.push_back({answer["num_tokens"], 1});
      }
      if (tokens.empty()) continue;
      ordered_json entry = {{"id", system}};
      if (!scores.empty()) entry["score"] = ToJson(Bootstrap(scores, "scores"));
      entry["tokens"] = ToJson(Bootstrap(tokens, "tokens"));
      out_["systems"].push_back(std::move(entry));
    }
  }

  void BestOfN() {
    ordered_json curve = ordered_json::array();
    for (int n = 1; n <= settings_.best_of; n *= 2) {
      std::map<std::string, std::vector<Share>> units;
      for (const EvaluatedPrompt& prompt : prompts_) {
        const ordered_json& candidates = prompt["candidates"];
        const auto measured = [&](const char* by) {
          return candidates.size() >= size_t(n) &&
                 std::all_of(candidates.begin(), candidates.begin() + n,
                             [by](const ordered_json& candidate) { return candidate.contains(by); });
        };
        if (!measured("score") || !measured("reward")) continue;
        const auto best = [&](const char* by) -> const ordered_json& {
          size_t first = 0;
          for (size_t c = 1; c < size_t(n); ++c) {
            if (candidates[c][by] > candidates[first][by]) first = c;
          }
          return candidates[first];
        };
        double sum = 0;
        for (size_t c = 0; c < size_t(n); ++c) sum += candidates[c]["score"].get<double>();
        const ordered_json& chosen = best("reward");
        units["chosen"].push_back({chosen["score"], 1});
        units["random"].push_back({sum / n, 1});
        units["oracle"].push_back({best("score")["score"], 1});
        units["longest"].push_back({best("num_tokens")["score"], 1});
        if (measured("likelihood")) units["likeliest"].push_back({best("likelihood")["score"], 1});
        units["tokens"].push_back({chosen["num_tokens"], 1});
        units["reward"].push_back({chosen["reward"], 1});
      }
      if (units.empty()) return;
      ordered_json point = {{"n", n}};
      for (const auto& [name, of_prompts] : units) point[name] = ToJson(Bootstrap(of_prompts, "best_of"));
      curve.push_back(std::move(point));
    }
    if (curve.empty()) return;
    const ordered_json last = curve.back();
    out_["best_of_n"] = {{"n", last["n"]}};
    for (const char* name : {"chosen", "random", "oracle", "longest", "likeliest"}) {
      if (last.contains(name)) out_["best_of_n"][name] = last[name];
    }
    out_["best_of_n"]["curve"] = std::move(curve);
  }

  const std::vector<EvaluatedPrompt>& prompts_;
  const EvaluationSettings& settings_;
  ordered_json out_ = ordered_json::object();
};

}  // namespace

ordered_json Evaluate(const std::vector<EvaluatedPrompt>& prompts, const EvaluationSettings& settings) {
  return Evaluation(prompts, settings).Run();
}

}  // namespace almost::orchestrator
