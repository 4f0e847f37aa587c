#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/storage/json_lines.h"
#include "common/text/prompt_filter.h"
#include "services/orchestrator/core/datasets.h"
#include "services/orchestrator/core/stages.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

constexpr char kAuthor[] = "author";

// An item is a round; its result, a line for every prompt mined, kept or dropped.
class PromptStage : public Stage {
 public:
  absl::string_view id() const override { return "prompts"; }
  int64_t version() const override { return 2; }

  std::vector<ModelNeed> models() const override {
    return model_.empty() ? std::vector<ModelNeed>()
                          : std::vector<ModelNeed>{{kAuthor, ModelHost::kGeneration, model_, ""}};
  }

  explicit PromptStage(std::string model) : model_(std::move(model)) {}

  absl::StatusOr<std::optional<StageIdentity>> Identity(StageContext& context) override {
    v1::PromptStage own = context.recipe().prompts();
    own.clear_seed_path();
    own.clear_prompts_path();
    own.clear_given_prompts();
    StageIdentity identity;
    if (!context.recipe().prompts().given_prompts().empty()) {
      // There may be a million: the manifest names them.
      std::string all;
      for (const std::string& prompt : context.recipe().prompts().given_prompts()) {
        absl::StrAppend(&all, prompt.size(), ":", prompt);
      }
      identity.inputs["given_prompts"] = Sha256(all);
    }
    identity.recipe = {{"prompts", ToJson(own)}, {"seed", context.recipe().seed()}};
    if (!model_.empty()) {
      identity.inputs["model"] = context.model(kAuthor).digest;
      identity.numerics_id = context.model(kAuthor).numerics_id;
    }
    return identity;
  }

  absl::Status Begin(StageContext& context) override {
    if (model_.empty()) return absl::OkStatus();
    ALMOST_ASSIGN_OR_RETURN(seeds_, PromptSeeds::Parse(context.recipe().prompts().seed_text()));
    return absl::OkStatus();
  }

  // A round draws from the pool as the round before left it.
  absl::StatusOr<int64_t> NumItems(StageContext& context, const ItemResults& done) override {
    if (model_.empty()) return 0;
    const v1::PromptStage& recipe = context.recipe().prompts();
    ALMOST_RETURN_IF_ERROR(ForEachMined(done, num_rounds_, [&](int64_t round, const ordered_json& line) {
      num_rounds_ = std::max(num_rounds_, round + 1);
      if (line.at("drop_reason") == "") pool_.push_back(line.at("prompt"));
      return absl::OkStatus();
    }));
    const bool enough =
        static_cast<int64_t>(pool_.size()) >= recipe.num_prompts() || num_rounds_ >= recipe.max_rounds();
    return enough ? num_rounds_ : num_rounds_ + 1;
  }

  absl::StatusOr<std::string> RunItem(StageContext& context, int64_t item) override {
    const v1::PromptStage& recipe = context.recipe().prompts();
    simulator::v1::GeneratePromptsRequest request;
    request.mutable_model()->set_name(context.model(kAuthor).name);
    request.mutable_model()->set_expected_digest(context.model(kAuthor).digest);
    request.set_instruction(seeds_.instruction);
    for (const std::string& seed : seeds_.prompts) request.add_seeds(seed);
    for (const std::string& prompt : pool_) request.add_pool(prompt);
    request.set_round(static_cast<int32_t>(item));
    request.set_num_attempts(recipe.attempts_per_round());
    request.set_num_wanted(recipe.num_prompts());
    request.set_num_shots(recipe.num_shots());
    request.set_draw_from_pool(recipe.draw_from_pool());
    request.set_take_all_lines(recipe.take_all_lines());
    *request.mutable_sampling() = recipe.sampling();
    request.mutable_sampling()->set_seed(DeriveSeed(context.recipe().seed(), "prompts"));
    *request.mutable_filter() = recipe.filter();
    ALMOST_ASSIGN_OR_RETURN(const auto mined, context.services().GeneratePrompts(request));
    std::string lines;
    for (const simulator::v1::GeneratePromptsResponse& each : mined) {
      ALMOST_RETURN_IF_ERROR(AppendJsonLine({{"round", item},
                                             {"attempt", each.attempt()},
                                             {"prompt", each.prompt()},
                                             {"drop_reason", each.drop_reason()},
                                             {"num_tokens", each.num_tokens()}},
                                            &lines));
    }
    return lines;
  }

  absl::StatusOr<StageOutput> Publish(StageContext& context, const ItemResults& results) override {
    const v1::PromptStage& recipe = context.recipe().prompts();
    StageOutput output;
    struct Kept {
      std::string prompt;
      int64_t round = -1;  // of a given one
      int64_t attempt = 0;
    };
    std::vector<Kept> kept;
    ALMOST_ASSIGN_OR_RETURN(DatasetWriter dropped, DatasetWriter::Create(context.store(), "dropped"));
    for (const std::string& prompt : recipe.given_prompts()) kept.push_back({prompt});
    ALMOST_RETURN_IF_ERROR(ForEachMined(results, 0, [&](int64_t round, const ordered_json& line) {
      std::string reason = line.at("drop_reason");
      if (reason.empty() && static_cast<int64_t>(kept.size()) >= recipe.num_prompts()) reason = "not_needed";
      output.figures["tokens"] += line.at("num_tokens").get<double>();
      if (reason.empty()) {
        kept.push_back({line.at("prompt"), round, line.at("attempt")});
        return absl::OkStatus();
      }
      output.figures[absl::StrCat("dropped_", reason)] += 1;
      return dropped.Append({{"round", round},
                             {"attempt", line.at("attempt")},
                             {"prompt", line.at("prompt")},
                             {"drop_reason", reason}});
    }));
    if (kept.empty()) {
      return absl::FailedPreconditionError(
          "no prompt was kept: see the figures dropped_… for the reasons, and prompts.filter");
    }
    output.figures["kept"] = static_cast<double>(kept.size());
    // Kinds of prompts that are soon exhausted come early; later stages take stretches, and each should be a
    // fair draw.
    if (!model_.empty()) RandomStream(DeriveSeed(context.recipe().seed(), "prompt order"), 0).Shuffle(kept);
    ALMOST_ASSIGN_OR_RETURN(DatasetWriter prompts, DatasetWriter::Create(context.store(), "prompts"));
    for (size_t id = 0; id < kept.size(); ++id) {
      ordered_json line = {{"id", id}, {"prompt", std::move(kept[id].prompt)}};
      if (kept[id].round >= 0) {
        line["round"] = kept[id].round;
        line["attempt"] = kept[id].attempt;
      }
      ALMOST_RETURN_IF_ERROR(prompts.Append(line));
    }
    for (DatasetWriter* const each : {&prompts, &dropped}) {
      ALMOST_ASSIGN_OR_RETURN(output.artifacts.emplace_back(), each->Finish());
    }
    return output;
  }

 private:
  // Every line of every round from `first` on, in order. A round that was set aside has none.
  static absl::Status ForEachMined(const ItemResults& results, int64_t first,
                                   const std::function<absl::Status(int64_t, const ordered_json&)>& use) {
    return results.ForEachFrom(first, [&](int64_t item, const absl::StatusOr<std::string>& result) {
      if (!result.ok()) return absl::OkStatus();
      return ForEachJsonLine("the journal's prompts", *result,
                             [&](int64_t, const ordered_json& line) { return use(item, line); });
    });
  }

  const std::string model_;
  PromptSeeds seeds_;
  // Of the rounds so far: how many, and what was kept. Written by NumItems only, while no item runs.
  int64_t num_rounds_ = 0;
  std::vector<std::string> pool_;
};

}  // namespace

std::unique_ptr<Stage> MakePromptStage(const v1::Recipe& recipe) {
  return std::make_unique<PromptStage>(recipe.prompts().given_prompts().empty() ? recipe.prompts().model()
                                                                                : "");
}

}  // namespace almost::orchestrator
