#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/storage/json_lines.h"
#include "common/text/response_filter.h"
#include "services/orchestrator/core/datasets.h"
#include "services/orchestrator/core/few_shot_configuration.h"
#include "services/orchestrator/core/stages.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

constexpr double kMaxErrorShare = 0.05;

// An item's result is its lines of responses.jsonl.
class ResponseStage : public Stage {
 public:
  explicit ResponseStage(const v1::Recipe& recipe) {
    std::set<std::string> models;
    for (const v1::Configuration& each : recipe.responses().configurations()) models.insert(each.model());
    for (const std::string& model : models) {
      const int turn = recipe.responses().one_model_at_a_time() ? static_cast<int>(needs_.size()) : 0;
      needs_.push_back({.role = model, .recipe_model = model, .turn = turn});
    }
  }

  absl::string_view id() const override { return "responses"; }
  std::vector<ModelNeed> models() const override { return needs_; }
  int TurnOf(int64_t item) const override {
    const std::string& model = configurations_[static_cast<size_t>(item / NumChunks())].model();
    return std::ranges::find(needs_, model, &ModelNeed::role)->turn;
  }

  absl::StatusOr<std::optional<StageIdentity>> Identity(StageContext& context) override {
    StageIdentity identity;
    v1::ResponseStage recipe = context.recipe().responses();
    recipe.clear_one_model_at_a_time();  // changes no answer
    identity.recipe = {{"responses", ToJson(recipe)},
                       {"prompt_format", context.recipe().prompt_format()},
                       {"seed", context.recipe().seed()}};
    ALMOST_ASSIGN_OR_RETURN(const Artifact prompts, context.Input("prompts", "prompts"));
    identity.inputs["prompts"] = prompts.digest;
    for (const v1::Configuration& each : context.recipe().responses().configurations()) {
      if (each.shots() == 0) continue;
      identity.inputs[absl::StrCat("demonstrations/", each.demonstrations())] =
          DemonstrationsDigest(context.recipe(), each.demonstrations());
    }
    for (const ModelNeed& need : needs_) {
      identity.inputs[absl::StrCat("model/", need.role)] = context.model(need.role).digest;
      identity.numerics_id = context.model(need.role).numerics_id;
    }
    return identity;
  }

  absl::Status Begin(StageContext& context) override {
    const v1::ResponseStage& recipe = context.recipe().responses();
    ALMOST_ASSIGN_OR_RETURN(prompts_, ReadPrompts(context));
    if (recipe.num_prompts() > 0) {
      prompts_.resize(std::min(prompts_.size(), static_cast<size_t>(recipe.num_prompts())));
    }
    for (int i = 0; i < recipe.configurations_size(); ++i) {
      ALMOST_ASSIGN_OR_RETURN(FewShotConfiguration configuration,
                              FewShotConfiguration::Create(absl::StrCat("responses.configurations[", i, "]"),
                                                           context.recipe(), recipe.configurations(i)));
      configurations_.push_back(std::move(configuration));
    }
    filter_ = *ResponseFilter::Named(recipe.filter(), context.recipe().prompt_format());
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> NumItems(StageContext&, const ItemResults&) override {
    return static_cast<int64_t>(configurations_.size()) * NumChunks();
  }

  // All configurations' answers to a chunk before those to the next: whoever follows can begin with it.
  int64_t ItemAt(int64_t position, int64_t num_items) const override {
    const auto num_configurations = static_cast<int64_t>(configurations_.size());
    return position % num_configurations * (num_items / num_configurations) + position / num_configurations;
  }

  absl::StatusOr<std::string> RunItem(StageContext& context, int64_t item) override {
    const int64_t number = item / NumChunks();
    const FewShotConfiguration& configuration = configurations_[static_cast<size_t>(number)];
    const int64_t first = item % NumChunks() * kPromptChunk;
    const int64_t end = std::min(first + kPromptChunk, NumPrompts());
    const PlacedModel& model = context.model(configuration.model());
    generation::v1::GenerateRequest request;
    request.set_model(model.name);
    request.set_expected_digest(model.digest);
    for (int64_t id = first; id < end; ++id) {
      generation::v1::GenerateItem& each = *request.add_items();
      ALMOST_ASSIGN_OR_RETURN(*each.mutable_input()->mutable_text(),
                              configuration.Prompt(id, prompts_[static_cast<size_t>(id)]));
      *each.mutable_sampling() = configuration.Sampling(context.recipe().responses().sampling(),
                                                        context.recipe().seed(), "responses", id);
    }
    ALMOST_ASSIGN_OR_RETURN(const generation::v1::GenerateResponse answer,
                            context.services().Generate(request));
    if (answer.items_size() != request.items_size()) {
      return absl::InternalError(
          absl::StrCat("generation answered ", answer.items_size(), " of ", request.items_size(), " items"));
    }
    std::string lines;
    for (int64_t id = first; id < end; ++id) {
      const generation::v1::GenerateItemResponse& each = answer.items(static_cast<int>(id - first));
      ordered_json line = {
          {"id", number * NumPrompts() + id}, {"prompt_id", id}, {"config", configuration.id()}};
      if (each.has_result() && each.result().completions_size() == 1) {
        const generation::v1::Completion& completion = each.result().completions(0);
        const bool finished = completion.finish_reason() == generation::v1::FINISH_REASON_STOP;
        const std::string response = filter_.Extract(completion.text());
        const auto bad = filter_.Check(response, finished);
        line["response"] = response;
        line["finish_reason"] = finished ? "stop" : "length";
        line["num_tokens"] = completion.token_ids_size();
        line["bad_reason"] = bad.has_value() ? std::string(Name(*bad)) : "";
      } else {
        // An error of this prompt's own, for instance too long for the context.
        line["response"] = "";
        line["finish_reason"] = "error";
        line["num_tokens"] = 0;
        line["bad_reason"] = "error";
        line["error"] = absl::StatusCodeToString(static_cast<absl::StatusCode>(each.error().code()));
      }
      ALMOST_RETURN_IF_ERROR(AppendJsonLine(line, &lines));
    }
    return lines;
  }

  absl::StatusOr<StageOutput> Publish(StageContext& context, const ItemResults& results) override {
    StageOutput output;
    ALMOST_ASSIGN_OR_RETURN(DatasetWriter responses, DatasetWriter::Create(context.store(), "responses"));
    const auto publish = [&](int64_t, const absl::StatusOr<std::string>& result) -> absl::Status {
      if (!result.ok()) return absl::OkStatus();
      ALMOST_RETURN_IF_ERROR(responses.AppendLines(*result));
      return ForEachJsonLine("the journal's responses", *result, [&](int64_t, const ordered_json& line) {
        output.figures["responses"] += 1;
        output.figures["tokens"] += line.at("num_tokens").get<double>();
        const std::string bad = line.at("bad_reason");
        if (!bad.empty()) output.figures[absl::StrCat("bad_", bad)] += 1;
        return absl::OkStatus();
      });
    };
    ALMOST_RETURN_IF_ERROR(results.ForEach(publish));
    if (output.figures["bad_error"] > kMaxErrorShare * output.figures["responses"]) {
      return absl::FailedPreconditionError(absl::StrCat(output.figures["bad_error"], " of ",
                                                        output.figures["responses"],
                                                        " prompts could not be answered"));
    }
    ALMOST_ASSIGN_OR_RETURN(output.artifacts.emplace_back(), responses.Finish());
    return output;
  }

  void Release() override { prompts_ = {}; }

 private:
  int64_t NumPrompts() const { return static_cast<int64_t>(prompts_.size()); }
  int64_t NumChunks() const { return NumPromptChunks(NumPrompts()); }

  std::vector<ModelNeed> needs_;
  std::vector<std::string> prompts_;
  std::vector<FewShotConfiguration> configurations_;
  ResponseFilter filter_;
};

}  // namespace

std::unique_ptr<Stage> MakeResponseStage(const v1::Recipe& recipe) {
  return std::make_unique<ResponseStage>(recipe);
}

}  // namespace almost::orchestrator
