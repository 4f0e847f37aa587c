#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "common/storage/json_lines.h"
#include "services/orchestrator/core/datasets.h"
#include "services/orchestrator/core/stages.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kChunk = 32;  // dialogues of an item; none depends on it
constexpr char kAssistant[] = "assistant";
constexpr char kRewardModel[] = "reward_model";

// An item's result is its dialogues' lines of the candidates, before the whole set has had its say.
class DemonstrationStage : public Stage {
 public:
  explicit DemonstrationStage(const v1::Recipe& recipe)
      : model_(recipe.demonstration().assistant().model()) {}

  absl::string_view id() const override { return "demonstrations"; }
  int64_t version() const override { return 5; }
  std::vector<ModelNeed> models() const override {
    return {{kAssistant, ModelHost::kGeneration, model_, ""},
            {kRewardModel, ModelHost::kReward, "", "reward_model"}};
  }

  absl::StatusOr<std::optional<StageIdentity>> Identity(StageContext& context) override {
    ALMOST_ASSIGN_OR_RETURN(const Artifact prompts, context.Input("prompts", "prompts"));
    const std::string& set = context.recipe().demonstration().assistant().demonstrations();
    StageIdentity identity;
    identity.recipe = {{"demonstration", ToJson(context.recipe().demonstration())},
                       {"prompt_format", context.recipe().prompt_format()},
                       {"seed", context.recipe().seed()}};
    identity.inputs = {{"prompts", prompts.digest},
                       {absl::StrCat("demonstrations/", set), DemonstrationsDigest(context.recipe(), set)},
                       {absl::StrCat("model/", model_), context.model(kAssistant).digest},
                       {"reward_model", context.model(kRewardModel).artifact_digest}};
    identity.numerics_id = context.model(kAssistant).numerics_id;
    return identity;
  }

  absl::Status Begin(StageContext& context) override {
    ALMOST_ASSIGN_OR_RETURN(prompts_, ReadPrompts(context));
    const auto wanted = static_cast<size_t>(context.recipe().demonstration().num_prompts());
    first_ = wanted == 0 || wanted > prompts_.size() ? 0 : static_cast<int64_t>(prompts_.size() - wanted);
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> NumItems(StageContext&, const ItemResults&) override {
    return (static_cast<int64_t>(prompts_.size()) - first_ + kChunk - 1) / kChunk;
  }

  absl::StatusOr<std::string> RunItem(StageContext& context, int64_t item) override {
    const v1::DemonstrationStage& recipe = context.recipe().demonstration();
    simulator::v1::SimulateDialoguesRequest request;
    for (auto* const player : {request.mutable_assistant(), request.mutable_user()}) {
      player->set_name(context.model(kAssistant).name);
      player->set_expected_digest(context.model(kAssistant).digest);
    }
    request.mutable_reward_model()->set_name(context.model(kRewardModel).name);
    request.mutable_reward_model()->set_expected_digest(context.model(kRewardModel).digest);
    for (const v1::DemonstrationSet& set : context.recipe().demonstrations()) {
      if (set.id() != recipe.assistant().demonstrations()) continue;
      for (const std::string& text : set.texts()) request.add_demonstrations()->set_text(text);
    }
    request.set_shots(recipe.assistant().shots());
    const int64_t first = first_ + item * kChunk;
    const int64_t end = std::min(first + kChunk, static_cast<int64_t>(prompts_.size()));
    for (int64_t id = first; id < end; ++id) {
      simulator::v1::DialogueSeed& seed = *request.add_seeds();
      seed.set_prompt_id(id);
      seed.set_prompt(prompts_[static_cast<size_t>(id)]);
    }
    request.set_num_candidates(recipe.num_candidates());
    request.set_max_turns(recipe.max_turns());
    *request.mutable_sampling() = recipe.sampling();
    if (const int own = recipe.assistant().max_new_tokens(); own > 0) {
      request.mutable_sampling()->set_max_new_tokens(own);
    }
    request.mutable_sampling()->set_seed(DeriveSeed(context.recipe().seed(), "demonstrations"));
    request.set_response_filter(recipe.filter());
    request.set_prompt_format(context.recipe().prompt_format());
    ALMOST_ASSIGN_OR_RETURN(const auto dialogues, context.services().SimulateDialogues(request));
    if (static_cast<int>(dialogues.size()) != request.seeds_size()) {
      return absl::InternalError(absl::StrCat("the simulator played ", dialogues.size(), " of ",
                                              request.seeds_size(), " dialogues"));
    }
    std::string lines;
    for (const auto& dialogue : dialogues) ALMOST_RETURN_IF_ERROR(AppendJsonLine(Line(dialogue), &lines));
    return lines;
  }

  absl::StatusOr<StageOutput> Publish(StageContext& context, const ItemResults& results) override {
    // Twice over the results: what the whole set decides is known when all have been seen.
    ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> reasons,
                            DropReasons(context.recipe().demonstration(), results));
    StageOutput output;
    ALMOST_ASSIGN_OR_RETURN(
        DatasetWriter candidates,
        DatasetWriter::Create(context.store(), "candidates", DatasetWriter::Packing::kGzip));
    ALMOST_ASSIGN_OR_RETURN(DatasetWriter kept, DatasetWriter::Create(context.store(), "demonstrations"));
    size_t num_seen = 0;
    const auto publish = [&](const ordered_json& line) -> absl::Status {
      ordered_json dialogue = line;
      const std::string& reason = reasons[num_seen++];
      dialogue["drop_reason"] = reason;
      ALMOST_RETURN_IF_ERROR(candidates.Append(dialogue));
      for (const ordered_json& turn : dialogue.at("turns")) {
        for (const ordered_json& candidate : turn.at("candidates")) {
          output.figures["candidates"] += 1;
          output.figures["tokens"] += candidate.at("num_tokens").get<double>();
        }
      }
      if (!reason.empty()) {
        output.figures[absl::StrCat("dropped_", reason)] += 1;
        return absl::OkStatus();
      }
      output.figures["kept"] += 1;
      return kept.Append({{"messages", dialogue.at("messages")},
                          {"prompt_id", dialogue.at("prompt_id")},
                          {"score", dialogue.at("score")}});
    };
    ALMOST_RETURN_IF_ERROR(ForEachDialogue(results, publish));
    if (kept.empty()) {
      return absl::FailedPreconditionError(
          "no demonstration was kept: see the figures dropped_… for the reasons, and demonstration.filter");
    }
    for (DatasetWriter* const each : {&candidates, &kept}) {
      ALMOST_ASSIGN_OR_RETURN(output.artifacts.emplace_back(), each->Finish());
    }
    // A demonstration is a choice among its candidates.
    output.artifacts.back().siblings = {"candidates"};
    return output;
  }

  void Release() override { prompts_ = {}; }

 private:
  // A usable dialogue's score is that of its last answer.
  static ordered_json Line(const simulator::v1::SimulateDialoguesResponse& dialogue) {
    ordered_json line = {{"prompt_id", dialogue.prompt_id()}, {"drop_reason", dialogue.drop_reason()}};
    line["score"] = nullptr;
    line["messages"] = ordered_json::array();
    for (const types::v1::Message& message : dialogue.messages()) {
      line["messages"].push_back({{"role", message.role()}, {"content", message.content()}});
    }
    line["turns"] = ordered_json::array();
    for (const simulator::v1::AssistantTurn& turn : dialogue.turns()) {
      ordered_json candidates = ordered_json::array();
      for (const simulator::v1::CandidateAnswer& each : turn.candidates()) {
        const bool scored = each.bad_reason() != "too_long";
        candidates.push_back({{"text", each.text()},
                              {"raw_score", scored ? ordered_json(each.raw_score()) : ordered_json()},
                              {"score", scored ? ordered_json(each.score()) : ordered_json()},
                              {"bad_reason", each.bad_reason()},
                              {"num_tokens", each.num_tokens()}});
      }
      // A string, as protobuf's JSON has 64 bits: readers of JSON make doubles of large numbers.
      line["turns"].push_back({{"seed", absl::StrCat(turn.seed())},
                               {"chosen", turn.chosen()},
                               {"candidates", std::move(candidates)}});
      if (turn.chosen() >= 0 && turn.chosen() < turn.candidates_size()) {
        line["score"] = turn.candidates(turn.chosen()).score();
      }
    }
    return line;
  }

  // Every dialogue of every item, in order. An item that was set aside has none.
  static absl::Status ForEachDialogue(const ItemResults& results,
                                      const std::function<absl::Status(const ordered_json&)>& use) {
    return results.ForEach([&](int64_t, const absl::StatusOr<std::string>& result) {
      if (!result.ok()) return absl::OkStatus();
      return ForEachJsonLine("the journal's dialogues", *result,
                             [&](int64_t, const ordered_json& line) { return use(line); });
    });
  }

  // Of each dialogue; empty: it is kept. To its own come repeated opening prompts, then the lowest scores:
  // what no dialogue alone can know.
  static absl::StatusOr<std::vector<std::string>> DropReasons(const v1::DemonstrationStage& recipe,
                                                              const ItemResults& results) {
    std::vector<std::string> reasons;
    std::set<std::string> openings;
    std::vector<std::pair<double, size_t>> scored;
    ALMOST_RETURN_IF_ERROR(ForEachDialogue(results, [&](const ordered_json& dialogue) {
      std::string& reason = reasons.emplace_back(dialogue.at("drop_reason"));
      if (!reason.empty()) return absl::OkStatus();
      if (dialogue.at("score").is_null() || dialogue.at("messages").empty()) {
        reason = "no_answer";
      } else if (recipe.drop_duplicate_prompts() &&
                 !openings.insert(dialogue.at("messages").front().at("content")).second) {
        reason = "duplicate_prompt";
      } else {
        scored.emplace_back(dialogue.at("score").get<double>(), reasons.size() - 1);
      }
      return absl::OkStatus();
    }));
    std::sort(scored.begin(), scored.end());
    const auto num_lowest =
        static_cast<size_t>(recipe.drop_lowest_share() * static_cast<double>(scored.size()));
    for (size_t i = 0; i < num_lowest; ++i) reasons[scored[i].second] = "low_score";
    return reasons;
  }

  const std::string model_;
  std::vector<std::string> prompts_;
  int64_t first_ = 0;
};

}  // namespace

std::unique_ptr<Stage> MakeDemonstrationStage(const v1::Recipe& recipe) {
  return std::make_unique<DemonstrationStage>(recipe);
}

}  // namespace almost::orchestrator
