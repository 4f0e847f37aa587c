#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "common/storage/json_lines.h"
#include "common/text/comparisons.h"
#include "services/orchestrator/core/datasets.h"
#include "services/orchestrator/core/stages.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

constexpr char kScorer[] = "scorer";
constexpr size_t kPairsPerCall = 32;  // both sides fill a call

PairRule RuleOf(const v1::ComparisonStage& recipe) {
  PairRule rule = recipe.rule() == v1::ComparisonStage::RULE_WORLD ? PairRule::World() : PairRule::Paper();
  if (recipe.rule() == v1::ComparisonStage::RULE_WORLD) rule.min_rank_gap = recipe.min_rank_gap();
  if (recipe.has_length_filter()) {
    if (!recipe.length_filter()) rule.length = PairRule::Length::kAny;
    if (recipe.length_filter() && rule.length == PairRule::Length::kAny)
      rule.length = PairRule::Length::kPaper;
  }
  return rule;
}

// An item's result is JSON Lines: {dropped: {reason: count}, scorer: [digest, numerics] or null}, then a pair
// a line with its drop_reason, those that a filter forbade last. `dropped` counts what makes no line. Pairs
// depend on their prompt's responses alone, so the stage follows the one that makes them; except where the
// rule looks at the whole set.
class ComparisonStage : public Stage {
 public:
  explicit ComparisonStage(const v1::Recipe& recipe)
      : rule_(RuleOf(recipe.comparisons())), source_(recipe.comparisons().agreeing_source()) {
    for (const v1::RubricTier& tier : recipe.comparisons().rubric()) {
      rubric_.ranks.emplace_back(tier.configurations().begin(), tier.configurations().end());
    }
    order_ = rubric_.Configurations();
    num_configurations_ = recipe.responses().configurations_size();
  }

  absl::string_view id() const override { return "comparisons"; }
  int64_t version() const override { return 2; }
  std::vector<ModelNeed> models() const override {
    if (source_.empty()) return {};
    return {{kScorer, ModelHost::kReward, "", "", source_}};
  }
  absl::string_view follows() const override { return NeedsWholeSet() ? "" : "responses"; }

  absl::StatusOr<std::optional<StageIdentity>> Identity(StageContext& context) override {
    const v1::ComparisonStage& recipe = context.recipe().comparisons();
    ALMOST_ASSIGN_OR_RETURN(const Artifact prompts, context.Input("prompts", "prompts"));
    ALMOST_ASSIGN_OR_RETURN(const Artifact responses, context.Input("responses", "responses"));
    StageIdentity identity;
    v1::ComparisonStage own = recipe;
    own.clear_agreeing_target();  // who was asked is an input
    identity.recipe = {{"comparisons", ToJson(own)}, {"seed", context.recipe().seed()}};
    identity.inputs = {{"prompts", prompts.digest}, {"responses", responses.digest}};
    if (recipe.agreeing_scorer().empty()) return identity;
    // Whoever has loaded the scorer, it says what it is when it scores.
    reward::v1::ScoreRequest request;
    SetScorer(context, request);
    request.add_items()->set_prompt("?");
    request.mutable_items(0)->set_response(".");
    ALMOST_ASSIGN_OR_RETURN(const reward::v1::ScoreResponse answer,
                            context.services().Score(request, recipe.agreeing_target()));
    scorer_ = {answer.model_digest(), answer.numerics_id()};
    identity.inputs["agreeing_scorer"] = answer.model_digest();
    identity.numerics_id = answer.numerics_id();
    return identity;
  }

  absl::Status Begin(StageContext& context) override {
    ALMOST_ASSIGN_OR_RETURN(prompts_, ReadPrompts(context));
    if (const int32_t wanted = context.recipe().responses().num_prompts(); wanted > 0) {
      prompts_.resize(std::min(prompts_.size(), static_cast<size_t>(wanted)));
    }
    num_ended_.assign(static_cast<size_t>(NumChunks()), 0);
    if (context.followed() != nullptr) return absl::OkStatus();
    responses_ = MakeTable(0, static_cast<int64_t>(prompts_.size()));
    ALMOST_RETURN_IF_ERROR(ForEachInDataset(
        context, "responses", "responses", [&](const ordered_json& line) { return Take(line, responses_); }));
    if (!NeedsWholeSet()) return absl::OkStatus();
    ALMOST_ASSIGN_OR_RETURN(of_whole_set_, SynthesizeComparisons(rubric_, responses_.texts, rule_));
    return absl::OkStatus();
  }

  // While it follows: the chunks up to the first that some configuration has not answered yet.
  absl::StatusOr<int64_t> NumItems(StageContext& context, const ItemResults&) override {
    if (context.followed() == nullptr) return NumChunks();
    while (true) {
      const int64_t before = num_ready_;
      while (num_ready_ < NumChunks() && num_ended_[static_cast<size_t>(num_ready_)] == num_configurations_) {
        ++num_ready_;
      }
      if (num_ready_ > before) return num_ready_;
      ALMOST_ASSIGN_OR_RETURN(const std::vector<int64_t> ended, context.followed()->Next(num_seen_));
      if (ended.empty()) return num_ready_;
      num_seen_ += ended.size();
      for (const int64_t item : ended) ++num_ended_[static_cast<size_t>(item % NumChunks())];
    }
  }

  absl::StatusOr<std::string> RunItem(StageContext& context, int64_t item) override {
    ALMOST_ASSIGN_OR_RETURN(const Pairs pairs, Synthesize(context, item));
    std::vector<std::string> reasons(pairs.lines.size());
    ordered_json scorer;
    if (!context.recipe().comparisons().agreeing_scorer().empty()) {
      ALMOST_RETURN_IF_ERROR(AskScorer(context, pairs.lines, reasons, scorer));
    }
    std::string result;
    ALMOST_RETURN_IF_ERROR(AppendJsonLine({{"dropped", pairs.dropped}, {"scorer", scorer}}, &result));
    for (size_t i = 0; i < pairs.lines.size(); ++i) {
      ordered_json line = pairs.lines[i];
      line["drop_reason"] = reasons[i];
      ALMOST_RETURN_IF_ERROR(AppendJsonLine(line, &result));
    }
    for (const ordered_json& line : pairs.filtered) ALMOST_RETURN_IF_ERROR(AppendJsonLine(line, &result));
    return result;
  }

  absl::StatusOr<StageOutput> Publish(StageContext& context, const ItemResults& results) override {
    StageOutput output;
    // Twice over the results: which of them are drawn is known when all have been counted.
    size_t num_left = 0;
    ALMOST_RETURN_IF_ERROR(ForEachLine(results, [&](const ordered_json& line) -> absl::Status {
      if (line.contains("prompt")) {
        num_left += line.at("drop_reason") == "";
        return absl::OkStatus();
      }
      for (const auto& [reason, count] : line.at("dropped").items()) {
        output.figures[absl::StrCat("dropped_", reason)] += count.get<double>();
      }
      const ordered_json& scorer = line.at("scorer");
      if (scorer.is_null() || scorer == ordered_json{scorer_.first, scorer_.second}) return absl::OkStatus();
      return ScorerChanged();
    }));
    const ordered_json whole_set = WithoutLines(of_whole_set_);
    for (const auto& [reason, count] : whole_set.items()) {
      output.figures[absl::StrCat("dropped_", reason)] = count.get<double>();
    }
    const std::vector<bool> drawn = Draw(context.recipe(), num_left);
    ALMOST_ASSIGN_OR_RETURN(DatasetWriter kept, DatasetWriter::Create(context.store(), "comparisons"));
    ALMOST_ASSIGN_OR_RETURN(DatasetWriter dropped, DatasetWriter::Create(context.store(), "dropped"));
    size_t num_seen = 0;
    ALMOST_RETURN_IF_ERROR(ForEachLine(results, [&](const ordered_json& line) -> absl::Status {
      if (!line.contains("prompt")) return absl::OkStatus();
      std::string reason = line.at("drop_reason");
      if (reason.empty() && !drawn[num_seen++]) reason = "over_max_pairs";
      ordered_json published = line;
      published.erase("drop_reason");
      if (reason.empty()) {
        output.figures["kept"] += 1;
        return kept.Append(published);
      }
      output.figures[absl::StrCat("dropped_", reason)] += 1;
      published["drop_reason"] = reason;
      return dropped.Append(published);
    }));
    if (kept.empty()) {
      return absl::FailedPreconditionError(
          "no comparison was kept: see the figures dropped_… for the reasons, and responses.filter");
    }
    for (DatasetWriter* const each : {&kept, &dropped}) {
      ALMOST_ASSIGN_OR_RETURN(output.artifacts.emplace_back(), each->Finish());
    }
    return output;
  }

  bool results_are_mixed() const override { return scorer_changed_; }

  void Release() override {
    prompts_ = {};
    responses_ = {};
    of_whole_set_ = {};
  }

 private:
  // [configuration of order_][prompt of a stretch], and each one's id in responses.jsonl.
  struct Table {
    int64_t first_prompt = 0;
    std::vector<std::vector<std::optional<SynthesisResponse>>> texts;
    std::vector<std::vector<int64_t>> ids;
  };
  struct Pairs {
    std::vector<ordered_json> lines;
    std::vector<ordered_json> filtered;  // with drop_reason
    ordered_json dropped = ordered_json::object();
  };

  bool NeedsWholeSet() const { return rule_.length == PairRule::Length::kWorld; }
  int64_t NumChunks() const { return NumPromptChunks(static_cast<int64_t>(prompts_.size())); }

  Table MakeTable(int64_t first_prompt, int64_t num_prompts) const {
    const auto size = static_cast<size_t>(num_prompts);
    return {first_prompt,
            {order_.size(), std::vector<std::optional<SynthesisResponse>>(size)},
            {order_.size(), std::vector<int64_t>(size, -1)}};
  }

  // Puts a line of responses.jsonl in its place.
  absl::Status Take(const ordered_json& line, Table& table) const {
    const auto place = std::find(order_.begin(), order_.end(), line.at("config").get<std::string>());
    if (place == order_.end()) return absl::OkStatus();
    const auto configuration = static_cast<size_t>(place - order_.begin());
    const auto prompt = static_cast<size_t>(line.at("prompt_id").get<int64_t>() - table.first_prompt);
    if (prompt >= table.ids[configuration].size()) {
      return absl::DataLossError(absl::StrCat("responses.jsonl: no prompt ", line.at("prompt_id").dump()));
    }
    table.texts[configuration][prompt] = {line.at("response"), line.at("bad_reason") != ""};
    table.ids[configuration][prompt] = line.at("id");
    return absl::OkStatus();
  }

  // The pairs of a chunk's prompts.
  absl::StatusOr<Pairs> Synthesize(StageContext& context, int64_t chunk) const {
    const int64_t first = chunk * kPromptChunk;
    const int64_t end = std::min(first + kPromptChunk, static_cast<int64_t>(prompts_.size()));
    Pairs pairs;
    if (NeedsWholeSet()) {
      // Both lists are by prompt.
      const auto of_chunk = [first, end](const auto& all, const auto& comparison, const auto& use) {
        const auto before = [&](int64_t prompt) {
          return std::partition_point(all.begin(), all.end(), [&](const auto& each) {
            return static_cast<int64_t>(comparison(each).prompt_index) < prompt;
          });
        };
        std::for_each(before(first), before(end), use);
      };
      of_chunk(
          of_whole_set_.comparisons, [](const Comparison& each) -> const Comparison& { return each; },
          [&](const Comparison& each) { pairs.lines.push_back(Line(each, 0, responses_)); });
      of_chunk(
          of_whole_set_.filtered, [](const auto& each) -> const Comparison& { return each.first; },
          [&](const auto& each) {
            pairs.filtered.push_back(Line(each.first, 0, responses_));
            pairs.filtered.back()["drop_reason"] = std::string(Name(each.second));
          });
      return pairs;
    }
    Table table = MakeTable(first, end - first);
    for (int64_t c = 0; context.followed() != nullptr && c < num_configurations_; ++c) {
      const absl::StatusOr<std::string> result = context.followed()->Result(c * NumChunks() + chunk);
      if (IsOfTheItem(result.status())) continue;
      ALMOST_RETURN_IF_ERROR(result.status());
      ALMOST_RETURN_IF_ERROR(
          ForEachJsonLine("the journal's responses", *result,
                          [&](int64_t, const ordered_json& line) { return Take(line, table); }));
    }
    for (size_t c = 0; context.followed() == nullptr && c < order_.size(); ++c) {
      std::copy_n(responses_.texts[c].begin() + first, end - first, table.texts[c].begin());
      std::copy_n(responses_.ids[c].begin() + first, end - first, table.ids[c].begin());
    }
    ALMOST_ASSIGN_OR_RETURN(const SynthesizedComparisons made,
                            SynthesizeComparisons(rubric_, table.texts, rule_));
    pairs.dropped = WithoutLines(made);
    for (const Comparison& each : made.comparisons) pairs.lines.push_back(Line(each, first, table));
    for (const auto& [each, reason] : made.filtered) {
      pairs.filtered.push_back(Line(each, first, table));
      pairs.filtered.back()["drop_reason"] = std::string(Name(reason));
    }
    return pairs;
  }

  // {reason: count} of what makes no line of its own: responses, and pairs that the ranking does not make.
  static ordered_json WithoutLines(const SynthesizedComparisons& made) {
    std::array<int64_t, kComparisonDropReasons.size()> counts = made.dropped;
    for (const auto& [each, reason] : made.filtered) --counts[static_cast<size_t>(reason)];
    ordered_json dropped = ordered_json::object();
    for (size_t i = 0; i < counts.size(); ++i) {
      if (counts[i] > 0) dropped[std::string(Name(kComparisonDropReasons[i]))] = counts[i];
    }
    return dropped;
  }

  ordered_json Line(const Comparison& comparison, int64_t first_prompt, const Table& table) const {
    const size_t prompt = static_cast<size_t>(first_prompt) + comparison.prompt_index;
    return {{"prompt", prompts_[prompt]},
            {"chosen", comparison.chosen},
            {"rejected", comparison.rejected},
            {"meta", comparison.meta},
            {"prompt_id", prompt},
            {"chosen_id", table.ids[comparison.better][comparison.prompt_index]},
            {"rejected_id", table.ids[comparison.worse][comparison.prompt_index]}};
  }

  // The scorer as it was loaded for this stage, or as whoever has it calls it.
  void SetScorer(StageContext& context, reward::v1::ScoreRequest& request) const {
    request.set_model(context.recipe().comparisons().agreeing_scorer());
    if (source_.empty()) return;
    request.set_model(context.model(kScorer).name);
    request.set_expected_digest(context.model(kScorer).digest);
  }

  absl::Status ScorerChanged() {
    scorer_changed_ = true;
    return absl::FailedPreconditionError(
        "comparisons.agreeing_scorer: its weights or numerics changed while pairs were scored; resume the "
        "run to score all of them anew");
  }

  // Whether the scorer agrees with each pair that has no reason against it yet, and who it was.
  absl::Status AskScorer(StageContext& context, const std::vector<ordered_json>& pairs,
                         std::vector<std::string>& reasons, ordered_json& scorer) {
    for (size_t first = 0; first < pairs.size(); first += kPairsPerCall) {
      const size_t end = std::min(first + kPairsPerCall, pairs.size());
      reward::v1::ScoreRequest request;
      SetScorer(context, request);
      for (size_t i = first; i < end; ++i) {
        for (const char* const side : {"chosen", "rejected"}) {
          reward::v1::ScoreItem& each = *request.add_items();
          each.set_prompt(pairs[i].at("prompt").get<std::string>());
          each.set_response(pairs[i].at(side).get<std::string>());
        }
      }
      ALMOST_ASSIGN_OR_RETURN(
          const reward::v1::ScoreResponse answer,
          context.services().Score(request, context.recipe().comparisons().agreeing_target()));
      if (answer.items_size() != request.items_size()) {
        return absl::InternalError(
            absl::StrCat("reward answered ", answer.items_size(), " of ", request.items_size(), " items"));
      }
      const ordered_json who = {answer.model_digest(), answer.numerics_id()};
      if (!scorer.is_null() && scorer != who) {
        return ScorerChanged();
      }
      scorer = who;
      for (size_t i = first; i < end; ++i) {
        const auto& chosen = answer.items(static_cast<int>(2 * (i - first)));
        const auto& rejected = answer.items(static_cast<int>(2 * (i - first) + 1));
        const bool scored = chosen.has_result() && rejected.has_result();
        const bool agrees = scored && chosen.result().raw_score() > rejected.result().raw_score();
        reasons[i] = agrees ? "" : scored ? "scorer_disagrees" : "scorer_error";
      }
    }
    return absl::OkStatus();
  }

  // Every line of every item, in order. An item that was set aside has none.
  static absl::Status ForEachLine(const ItemResults& results,
                                  const std::function<absl::Status(const ordered_json&)>& use) {
    return results.ForEach([&](int64_t, const absl::StatusOr<std::string>& result) {
      if (!result.ok()) return absl::OkStatus();
      return ForEachJsonLine("the journal's comparisons", *result,
                             [&](int64_t, const ordered_json& line) { return use(line); });
    });
  }

  // Which max_pairs of so many are drawn.
  static std::vector<bool> Draw(const v1::Recipe& recipe, size_t num_pairs) {
    const auto limit = static_cast<size_t>(recipe.comparisons().max_pairs());
    if (limit == 0 || num_pairs <= limit) return std::vector<bool>(num_pairs, true);
    std::vector<bool> drawn(num_pairs);
    RandomStream random(DeriveSeed(recipe.seed(), "comparisons"));
    for (const size_t i : random.Sample(num_pairs, limit)) drawn[i] = true;
    return drawn;
  }

  const PairRule rule_;
  const std::string source_;  // of the scorer; empty: it is loaded already
  Rubric rubric_;
  std::vector<std::string> order_;              // the rubric's configurations
  int64_t num_configurations_ = 0;              // that answer, ranked or not
  std::pair<std::string, std::string> scorer_;  // digest and numerics of the agreeing scorer
  std::atomic<bool> scorer_changed_{false};
  std::vector<std::string> prompts_;
  Table responses_;                      // of all prompts; empty while it follows
  SynthesizedComparisons of_whole_set_;  // where the rule looks at the whole set
  // While it follows; written by NumItems only.
  std::vector<int64_t> num_ended_;  // by chunk: configurations that have answered
  size_t num_seen_ = 0;
  int64_t num_ready_ = 0;
};

}  // namespace

std::unique_ptr<Stage> MakeComparisonStage(const v1::Recipe& recipe) {
  return std::make_unique<ComparisonStage>(recipe);
}

}  // namespace almost::orchestrator
