#include <algorithm>
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

constexpr int64_t kChunk = 32;  // pairs of an item: both sides fill a call

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

// Without a scorer to agree there are no items; otherwise an item's result is {agrees: [pair by pair]} and
// the scorer's digest.
class ComparisonStage : public Stage {
 public:
  absl::string_view id() const override { return "comparisons"; }

  absl::StatusOr<std::optional<StageIdentity>> Identity(StageContext& context) override {
    const v1::ComparisonStage& recipe = context.recipe().comparisons();
    ALMOST_ASSIGN_OR_RETURN(const Artifact prompts, context.Input("prompts", "prompts"));
    ALMOST_ASSIGN_OR_RETURN(const Artifact responses, context.Input("responses", "responses"));
    StageIdentity identity;
    identity.recipe = {{"comparisons", ToJson(recipe)}, {"seed", context.recipe().seed()}};
    identity.inputs = {{"prompts", prompts.digest}, {"responses", responses.digest}};
    if (recipe.agreeing_scorer().empty()) return identity;
    // Whoever has loaded the scorer, it says what it is when it scores.
    reward::v1::ScoreRequest request;
    request.set_model(recipe.agreeing_scorer());
    request.add_items()->set_prompt("?");
    request.mutable_items(0)->set_response(".");
    ALMOST_ASSIGN_OR_RETURN(const reward::v1::ScoreResponse answer, context.services().Score(request));
    scorer_ = {answer.model_digest(), answer.numerics_id()};
    identity.inputs["agreeing_scorer"] = answer.model_digest();
    identity.numerics_id = answer.numerics_id();
    return identity;
  }

  absl::Status Begin(StageContext& context) override {
    const v1::Recipe& recipe = context.recipe();
    ALMOST_ASSIGN_OR_RETURN(prompts_, ReadPrompts(context));
    ALMOST_ASSIGN_OR_RETURN(const std::vector<ordered_json> responses,
                            ReadDataset(context, "responses", "responses"));
    Rubric rubric;
    for (const v1::RubricTier& tier : recipe.comparisons().rubric()) {
      rubric.ranks.emplace_back(tier.configurations().begin(), tier.configurations().end());
    }
    const std::vector<std::string> order = rubric.Configurations();
    // [configuration][prompt], and where each stands in responses.jsonl.
    std::vector<std::vector<std::optional<SynthesisResponse>>> table(
        order.size(), std::vector<std::optional<SynthesisResponse>>(prompts_.size()));
    std::vector<std::vector<int64_t>> ids(order.size(), std::vector<int64_t>(prompts_.size(), -1));
    for (const ordered_json& line : responses) {
      const auto place = std::find(order.begin(), order.end(), line.at("config").get<std::string>());
      if (place == order.end()) continue;
      const auto configuration = static_cast<size_t>(place - order.begin());
      const size_t prompt = line.at("prompt_id");
      if (prompt >= prompts_.size()) {
        return absl::DataLossError(absl::StrCat("responses.jsonl: no prompt ", prompt));
      }
      table[configuration][prompt] = {line.at("response"), line.at("bad_reason") != ""};
      ids[configuration][prompt] = line.at("id");
    }
    ALMOST_ASSIGN_OR_RETURN(const SynthesizedComparisons made,
                            SynthesizeComparisons(rubric, table, RuleOf(recipe.comparisons())));
    for (const ComparisonDropReason reason : kComparisonDropReasons) {
      const int64_t count = made.dropped[static_cast<size_t>(reason)];
      if (count > 0)
        figures_[absl::StrCat("dropped_", std::string(Name(reason)))] = static_cast<double>(count);
    }
    for (const Comparison& each : made.comparisons) {
      pairs_.push_back({{"prompt", prompts_[each.prompt_index]},
                        {"chosen", each.chosen},
                        {"rejected", each.rejected},
                        {"meta", each.meta},
                        {"prompt_id", each.prompt_index},
                        {"chosen_id", ids[each.better][each.prompt_index]},
                        {"rejected_id", ids[each.worse][each.prompt_index]}});
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> NumItems(StageContext& context, const ItemResults&) override {
    if (context.recipe().comparisons().agreeing_scorer().empty()) return 0;
    return (static_cast<int64_t>(pairs_.size()) + kChunk - 1) / kChunk;
  }

  absl::StatusOr<std::string> RunItem(StageContext& context, int64_t item) override {
    const size_t first = static_cast<size_t>(item * kChunk);
    const size_t end = std::min(first + kChunk, pairs_.size());
    reward::v1::ScoreRequest request;
    request.set_model(context.recipe().comparisons().agreeing_scorer());
    for (size_t i = first; i < end; ++i) {
      for (const char* const side : {"chosen", "rejected"}) {
        reward::v1::ScoreItem& each = *request.add_items();
        each.set_prompt(pairs_[i].at("prompt").get<std::string>());
        each.set_response(pairs_[i].at(side).get<std::string>());
      }
    }
    ALMOST_ASSIGN_OR_RETURN(const reward::v1::ScoreResponse answer, context.services().Score(request));
    if (answer.items_size() != request.items_size()) {
      return absl::InternalError(
          absl::StrCat("reward answered ", answer.items_size(), " of ", request.items_size(), " items"));
    }
    ordered_json result = {{"digest", answer.model_digest()}, {"numerics_id", answer.numerics_id()}};
    result["drop_reasons"] = ordered_json::array();
    for (int i = 0; i < answer.items_size(); i += 2) {
      const auto& chosen = answer.items(i);
      const auto& rejected = answer.items(i + 1);
      const bool scored = chosen.has_result() && rejected.has_result();
      const bool agrees = scored && chosen.result().raw_score() > rejected.result().raw_score();
      result["drop_reasons"].push_back(agrees ? "" : scored ? "scorer_disagrees" : "scorer_error");
    }
    return result.dump();
  }

  absl::StatusOr<StageOutput> Publish(StageContext& context, const ItemResults& results) override {
    std::vector<std::string> reasons(pairs_.size());
    ALMOST_RETURN_IF_ERROR(results.ForEach([&](int64_t item, const absl::StatusOr<std::string>& result) {
      const size_t first = static_cast<size_t>(item * kChunk);
      if (!result.ok()) {
        std::fill(reasons.begin() + first, reasons.begin() + std::min(first + kChunk, pairs_.size()),
                  "scorer_error");
        return absl::OkStatus();
      }
      const ordered_json answer = ordered_json::parse(*result);
      if (std::pair<std::string, std::string>(answer.at("digest"), answer.at("numerics_id")) != scorer_) {
        return absl::FailedPreconditionError(
            "comparisons.agreeing_scorer: its weights or numerics changed while pairs were scored");
      }
      size_t pair = first;
      for (const ordered_json& reason : answer.at("drop_reasons")) reasons[pair++] = reason;
      return absl::OkStatus();
    }));
    LimitPairs(context.recipe(), reasons);

    StageOutput output;
    output.figures = figures_;
    std::string kept_lines;
    std::string dropped_lines;
    for (size_t i = 0; i < pairs_.size(); ++i) {
      if (reasons[i].empty()) {
        output.figures["kept"] += 1;
        ALMOST_RETURN_IF_ERROR(AppendJsonLine(pairs_[i], &kept_lines));
        continue;
      }
      output.figures[absl::StrCat("dropped_", reasons[i])] += 1;
      ordered_json line = pairs_[i];
      line["drop_reason"] = reasons[i];
      ALMOST_RETURN_IF_ERROR(AppendJsonLine(line, &dropped_lines));
    }
    if (kept_lines.empty()) {
      return absl::FailedPreconditionError(
          "no comparison was kept: see the figures dropped_… for the reasons, and responses.filter");
    }
    for (auto& [name, lines] :
         {std::pair{"comparisons", &kept_lines}, std::pair{"dropped", &dropped_lines}}) {
      output.artifacts.push_back(DatasetArtifact(name, std::move(*lines)));
    }
    return output;
  }

 private:
  // Draws max_pairs of those left.
  static void LimitPairs(const v1::Recipe& recipe, std::vector<std::string>& reasons) {
    std::vector<size_t> left;
    for (size_t i = 0; i < reasons.size(); ++i) {
      if (reasons[i].empty()) left.push_back(i);
    }
    const auto limit = static_cast<size_t>(recipe.comparisons().max_pairs());
    if (limit == 0 || left.size() <= limit) return;
    for (const size_t i : left) reasons[i] = "over_max_pairs";
    RandomStream random(DeriveSeed(recipe.seed(), "comparisons"));
    for (const size_t i : random.Sample(left.size(), limit)) reasons[left[i]].clear();
  }

  std::pair<std::string, std::string> scorer_;  // digest and numerics of the agreeing scorer
  std::vector<std::string> prompts_;
  std::vector<ordered_json> pairs_;
  std::map<std::string, double> figures_;
};

}  // namespace

std::unique_ptr<Stage> MakeComparisonStage() { return std::make_unique<ComparisonStage>(); }

}  // namespace almost::orchestrator
