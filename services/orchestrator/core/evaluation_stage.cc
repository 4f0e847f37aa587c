#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "common/evaluation/benchmarks.h"
#include "common/storage/json_lines.h"
#include "common/text/prompt_format.h"
#include "common/text/response_filter.h"
#include "common/world/question.h"
#include "services/orchestrator/core/datasets.h"
#include "services/orchestrator/core/evaluation.h"
#include "services/orchestrator/core/few_shot_configuration.h"
#include "services/orchestrator/core/stages.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kChunk = 20;  // prompts of an item; no figure depends on it
constexpr int kBatch = 64;      // items of one call

// An item's result is the lines of answers.jsonl of its prompts: everything asked of the models, the reward
// model and the judge about them. This is the one stage that may ask the judge.
class EvaluationStage : public Stage {
 public:
  explicit EvaluationStage(const v1::Recipe& recipe) {
    const v1::EvaluationStage& evaluation = recipe.evaluation();
    std::set<std::string> models;
    if (evaluation.has_baseline()) models.insert(evaluation.baseline().model());
    for (const v1::Configuration& each : evaluation.grid()) models.insert(each.model());
    if (recipe.has_reward_model()) {
      models.insert(recipe.reward_model().base_model());
      needs_.push_back({"reward_model", ModelHost::kReward, "", "reward_model"});
    }
    for (const std::string& model : models) needs_.push_back({model, ModelHost::kGeneration, model, ""});
    for (const auto& [present, stage] :
         {std::pair(recipe.has_sft(), "sft"), std::pair(recipe.has_rl(), "rl")}) {
      if (!present) continue;
      needs_.push_back({stage, ModelHost::kGeneration, "", stage});
      trained_.push_back(stage);
    }
  }

  absl::string_view id() const override { return "evaluation"; }
  int64_t version() const override { return 2; }
  std::vector<ModelNeed> models() const override { return needs_; }

  absl::StatusOr<std::optional<StageIdentity>> Identity(StageContext& context) override {
    StageIdentity identity;
    v1::EvaluationStage content = context.recipe().evaluation();
    content.clear_judge_target();  // an address, not content
    identity.recipe = {{"evaluation", ToJson(content)},
                       {"filter", context.recipe().responses().filter()},
                       {"prompt_format", context.recipe().prompt_format()},
                       {"seed", context.recipe().seed()}};
    std::vector<v1::Configuration> configurations(content.grid().begin(), content.grid().end());
    if (content.has_baseline()) configurations.push_back(content.baseline());
    for (const v1::Configuration& each : configurations) {
      if (each.shots() == 0) continue;
      identity.inputs[absl::StrCat("demonstrations/", each.demonstrations())] =
          DemonstrationsDigest(context.recipe(), each.demonstrations());
    }
    if (const std::string& judge = context.recipe().evaluation().judge_target(); !judge.empty()) {
      judge::v1::CompareRequest request;
      request.add_items()->set_prompt("?");
      request.mutable_items(0)->set_a(".");
      request.mutable_items(0)->set_b(".");
      ALMOST_ASSIGN_OR_RETURN(const judge::v1::CompareResponse answer,
                              context.services().Compare(judge, request));
      identity.recipe["judge"] = answer.judge_id();
    }
    for (const ModelNeed& need : needs_) {
      identity.inputs[absl::StrCat("model/", need.role)] = context.model(need.role).digest;
      identity.numerics_id = context.model(need.role).numerics_id;
    }
    return identity;
  }

  absl::Status Begin(StageContext& context) override {
    const v1::EvaluationStage& recipe = context.recipe().evaluation();
    if (recipe.world_questions() > 0) {
      const world::World& world = *world::World::Named(recipe.world());
      for (const world::Question& question : world::EvaluationQuestions(
               world, DeriveSeed(context.recipe().seed(), "evaluation"), recipe.world_questions())) {
        prompts_.push_back(world::QuestionText(world, question));
      }
    } else {
      prompts_.assign(recipe.prompts().begin(), recipe.prompts().end());
    }
    const auto add = [&](absl::string_view field, const v1::Configuration& configuration,
                         int64_t num_prompts) -> absl::Status {
      for (Vanilla& known : vanilla_) {
        if (known.configuration.id() != configuration.id()) continue;
        known.num_prompts = std::max(known.num_prompts, num_prompts);
        return absl::OkStatus();
      }
      ALMOST_ASSIGN_OR_RETURN(FewShotConfiguration made,
                              FewShotConfiguration::Create(field, context.recipe(), configuration));
      vanilla_.push_back({std::move(made), num_prompts});
      return absl::OkStatus();
    };
    if (recipe.has_baseline())
      ALMOST_RETURN_IF_ERROR(add("evaluation.baseline", recipe.baseline(), NumPrompts()));
    const int64_t grid =
        recipe.grid_prompts() > 0 ? std::min<int64_t>(recipe.grid_prompts(), NumPrompts()) : NumPrompts();
    for (int i = 0; i < recipe.grid_size(); ++i) {
      ALMOST_RETURN_IF_ERROR(add(absl::StrCat("evaluation.grid[", i, "]"), recipe.grid(i), grid));
    }
    // Where no stage names a filter, its marks for the end of an answer are the format's.
    const std::string& filter = context.recipe().responses().filter();
    const std::string& format = context.recipe().prompt_format();
    filter_ = ResponseFilter::Named(filter.empty() ? "none" : filter, format).value();
    ALMOST_ASSIGN_OR_RETURN(const PromptFormat of_prompts, PromptFormat::Named(format));
    answer_prefix_ = of_prompts.answer_prefix;
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> NumItems(StageContext&, const ItemResults&) override {
    return (NumPrompts() + kChunk - 1) / kChunk;
  }

  absl::StatusOr<std::string> RunItem(StageContext& context, int64_t item) override {
    std::vector<EvaluatedPrompt> chunk;
    for (int64_t id = item * kChunk; id < std::min((item + 1) * kChunk, NumPrompts()); ++id) {
      chunk.push_back({{"id", id},
                       {"prompt", prompts_[static_cast<size_t>(id)]},
                       {"answers", ordered_json::object()},
                       {"candidates", ordered_json::array()},
                       {"verdicts", ordered_json::object()}});
    }
    ALMOST_RETURN_IF_ERROR(Answer(context, chunk));
    if (context.recipe().has_reward_model()) {
      ALMOST_RETURN_IF_ERROR(Reward(context, chunk));
      ALMOST_RETURN_IF_ERROR(Likelihood(context, chunk));
    }
    ALMOST_RETURN_IF_ERROR(Judge(context, chunk));
    std::string lines;
    for (const EvaluatedPrompt& prompt : chunk) ALMOST_RETURN_IF_ERROR(AppendJsonLine(prompt, &lines));
    return lines;
  }

  absl::StatusOr<StageOutput> Publish(StageContext& context, const ItemResults& results) override {
    std::string all;
    std::vector<EvaluatedPrompt> prompts;
    ALMOST_RETURN_IF_ERROR(results.ForEach([&](int64_t, const absl::StatusOr<std::string>& result) {
      if (!result.ok()) return result.status();  // a figure over fewer prompts would not be the one asked for
      absl::StrAppend(&all, *result);
      return ForEachJsonLine("the journal's evaluation", *result, [&](int64_t, const ordered_json& line) {
        prompts.push_back(line);
        return absl::OkStatus();
      });
    }));
    const v1::EvaluationStage& recipe = context.recipe().evaluation();
    EvaluationSettings settings;
    settings.baseline = recipe.baseline().id();
    for (const v1::Configuration& each : recipe.grid()) settings.grid.push_back(each.id());
    settings.num_pairs = recipe.num_pairs();
    settings.best_of = recipe.best_of();
    settings.bootstrap = recipe.has_bootstrap() ? recipe.bootstrap() : 2000;
    settings.seed = DeriveSeed(context.recipe().seed(), "bootstrap");
    ordered_json evaluation = Evaluate(prompts, settings);
    evaluation["judge"] = recipe.judge_target().empty() ? "the run's own reward model" : "a JudgeService";

    StageOutput output;
    for (const char* name : {"rm_accuracy", "rm_accuracy_length_only", "rm_accuracy_likelihood",
                             "win_rate_sft", "win_rate_rl", "win_rate_rl_over_sft"}) {
      if (evaluation.contains(name)) output.figures[name] = evaluation[name]["value"];
    }
    StageArtifact artifact;
    artifact.name = "evaluation";
    artifact.draft.kind = "evaluation";
    artifact.draft.files = {{"answers.jsonl", std::move(all)},
                            {"evaluation.json", evaluation.dump(2) + "\n"}};
    output.artifacts.push_back(std::move(artifact));
    return output;
  }

 private:
  struct Vanilla {
    FewShotConfiguration configuration;
    int64_t num_prompts;  // it answers the first so many
  };

  int64_t NumPrompts() const { return static_cast<int64_t>(prompts_.size()); }

  ordered_json ToAnswer(const generation::v1::Completion& completion) const {
    return {{"text", filter_.Extract(completion.text())},
            {"num_tokens", completion.token_ids_size()},
            {"finished", completion.finish_reason() == generation::v1::FINISH_REASON_STOP}};
  }

  absl::Status Answer(StageContext& context, std::vector<EvaluatedPrompt>& chunk) {
    const v1::EvaluationStage& recipe = context.recipe().evaluation();
    for (const Vanilla& vanilla : vanilla_) {
      const FewShotConfiguration& configuration = vanilla.configuration;
      const bool baseline = configuration.id() == recipe.baseline().id();
      const PlacedModel& model = context.model(configuration.model());
      generation::v1::GenerateRequest request;
      request.set_model(model.name);
      request.set_expected_digest(model.digest);
      for (const EvaluatedPrompt& prompt : chunk) {
        const int64_t id = prompt["id"];
        if (id >= vanilla.num_prompts) continue;
        generation::v1::GenerateItem& item = *request.add_items();
        ALMOST_ASSIGN_OR_RETURN(*item.mutable_input()->mutable_text(),
                                configuration.Prompt(id, prompt["prompt"]));
        *item.mutable_sampling() =
            configuration.Sampling(recipe.sampling(), context.recipe().seed(), "evaluation", id);
        // Candidate 0 is the baseline's answer; the others are there to choose from.
        if (baseline && recipe.best_of() > 1) item.mutable_sampling()->set_n(recipe.best_of());
      }
      ALMOST_RETURN_IF_ERROR(Generate(context, request, configuration.id(), baseline, chunk));
    }
    for (const std::string& stage : trained_) {
      const PlacedModel& model = context.model(stage);
      generation::v1::GenerateRequest request;
      request.set_model(model.name);
      request.set_expected_digest(model.digest);
      for (const EvaluatedPrompt& prompt : chunk) {
        generation::v1::GenerateItem& item = *request.add_items();
        types::v1::Message& message = *item.mutable_input()->mutable_messages()->add_messages();
        message.set_role("user");
        message.set_content(prompt["prompt"]);
        *item.mutable_sampling() = recipe.sampling();
        item.mutable_sampling()->set_seed(
            DeriveSeed(DeriveSeed(context.recipe().seed(), absl::StrCat("evaluation/", stage)),
                       prompt["id"].get<uint64_t>()));
      }
      ALMOST_RETURN_IF_ERROR(Generate(context, request, stage, false, chunk));
    }
    return absl::OkStatus();
  }

  // The request's items are the chunk's first ones.
  absl::Status Generate(StageContext& context, const generation::v1::GenerateRequest& request,
                        const std::string& system, bool keep_candidates,
                        std::vector<EvaluatedPrompt>& chunk) {
    if (request.items().empty()) return absl::OkStatus();
    ALMOST_ASSIGN_OR_RETURN(const generation::v1::GenerateResponse response,
                            context.services().Generate(request));
    for (int i = 0; i < response.items_size(); ++i) {
      if (!response.items(i).has_result()) {
        return absl::InvalidArgumentError(absl::StrCat("evaluation prompt ", chunk[i]["id"].get<int64_t>(),
                                                       ": ", response.items(i).error().message()));
      }
      const auto& completions = response.items(i).result().completions();
      chunk[i]["answers"][system] = ToAnswer(completions[0]);
      for (const generation::v1::Completion& completion : completions) {
        if (keep_candidates) chunk[i]["candidates"].push_back(ToAnswer(completion));
      }
    }
    return absl::OkStatus();
  }

  // Every answer and candidate of the chunk with its prompt.
  static std::vector<std::pair<const std::string, ordered_json*>> AllAnswers(
      std::vector<EvaluatedPrompt>& chunk) {
    std::vector<std::pair<const std::string, ordered_json*>> all;
    for (EvaluatedPrompt& prompt : chunk) {
      for (auto& [system, answer] : prompt["answers"].items()) all.emplace_back(prompt["prompt"], &answer);
      for (ordered_json& candidate : prompt["candidates"]) all.emplace_back(prompt["prompt"], &candidate);
    }
    return all;
  }

  absl::Status Reward(StageContext& context, std::vector<EvaluatedPrompt>& chunk) {
    const PlacedModel& model = context.model("reward_model");
    const auto all = AllAnswers(chunk);
    for (size_t first = 0; first < all.size(); first += kBatch) {
      reward::v1::ScoreRequest request;
      request.set_model(model.name);
      request.set_expected_digest(model.digest);
      const size_t end = std::min(all.size(), first + kBatch);
      for (size_t i = first; i < end; ++i) {
        reward::v1::ScoreItem& item = *request.add_items();
        item.set_prompt(all[i].first);
        item.set_response(all[i].second->at("text").get<std::string>());
      }
      ALMOST_ASSIGN_OR_RETURN(const reward::v1::ScoreResponse response, context.services().Score(request));
      for (size_t i = first; i < end; ++i) {
        const reward::v1::ScoreItemResponse& item = response.items(static_cast<int>(i - first));
        if (!item.has_result())
          return absl::InvalidArgumentError(absl::StrCat("reward: ", item.error().message()));
        (*all[i].second)["reward"] = item.result().raw_score();
      }
    }
    return absl::OkStatus();
  }

  // Mean log-probability per token under the vanilla model that the reward model started from, without
  // demonstrations.
  absl::Status Likelihood(StageContext& context, std::vector<EvaluatedPrompt>& chunk) {
    const PlacedModel& model = context.model(context.recipe().reward_model().base_model());
    const auto all = AllAnswers(chunk);
    for (size_t first = 0; first < all.size(); first += kBatch) {
      generation::v1::ScoreCompletionsRequest request;
      request.set_model(model.name);
      request.set_expected_digest(model.digest);
      const size_t end = std::min(all.size(), first + kBatch);
      for (size_t i = first; i < end; ++i) {
        generation::v1::CompletionToScore& item = *request.add_items();
        types::v1::Message& message = *item.mutable_input()->mutable_messages()->add_messages();
        message.set_role("user");
        message.set_content(all[i].first);
        item.set_completion_text(absl::StrCat(answer_prefix_, all[i].second->at("text").get<std::string>()));
      }
      ALMOST_ASSIGN_OR_RETURN(const generation::v1::ScoreCompletionsResponse response,
                              context.services().ScoreCompletions(request));
      for (size_t i = first; i < end; ++i) {
        const generation::v1::CompletionScoreResponse& item = response.items(static_cast<int>(i - first));
        if (!item.has_result()) {
          return absl::InvalidArgumentError(absl::StrCat("likelihood: ", item.error().message()));
        }
        const int tokens = item.result().logprobs_size();
        if (tokens > 0) (*all[i].second)["likelihood"] = item.result().sum_logprob() / tokens;
      }
    }
    return absl::OkStatus();
  }

  // A comparison to be judged in both orders.
  struct Match {
    const std::string prompt;
    ordered_json* a;
    ordered_json* b;
    EvaluatedPrompt* verdict_of;  // null: only the scores are wanted
    std::string name;
  };

  absl::Status Judge(StageContext& context, std::vector<EvaluatedPrompt>& chunk) {
    const std::string& baseline = context.recipe().evaluation().baseline().id();
    std::vector<Match> matches;
    for (EvaluatedPrompt& prompt : chunk) {
      ordered_json& answers = prompt["answers"];
      const auto match = [&](const std::string& x, const std::string& y, EvaluatedPrompt* verdict_of,
                             const std::string& name) {
        if (answers.contains(x) && answers.contains(y)) {
          matches.push_back({prompt["prompt"], &answers[x], &answers[y], verdict_of, name});
        }
      };
      match("sft", baseline, &prompt, "sft/baseline");
      match("rl", baseline, &prompt, "rl/baseline");
      match("rl", "sft", &prompt, "rl/sft");
      for (const Vanilla& vanilla : vanilla_) match(vanilla.configuration.id(), baseline, nullptr, "");
      ordered_json& candidates = prompt["candidates"];
      for (ordered_json& candidate : candidates) {
        matches.push_back({prompt["prompt"], &candidate, &candidates[0], nullptr, ""});
      }
    }
    if (context.recipe().evaluation().judge_target().empty()) {
      for (Match& match : matches) {
        if (match.verdict_of == nullptr || !match.a->contains("reward") || !match.b->contains("reward"))
          continue;
        const double a = match.a->at("reward"), b = match.b->at("reward");
        (*match.verdict_of)["verdicts"][match.name] = a > b ? "win" : a < b ? "loss" : "tie";
      }
      return absl::OkStatus();
    }
    for (size_t first = 0; first < matches.size(); first += kBatch / 2) {
      judge::v1::CompareRequest request;
      const size_t end = std::min(matches.size(), first + kBatch / 2);
      for (size_t i = first; i < end; ++i) {
        for (const bool swapped : {false, true}) {
          judge::v1::Comparison& item = *request.add_items();
          item.set_prompt(matches[i].prompt);
          item.set_a((swapped ? matches[i].b : matches[i].a)->at("text").get<std::string>());
          item.set_b((swapped ? matches[i].a : matches[i].b)->at("text").get<std::string>());
        }
      }
      ALMOST_ASSIGN_OR_RETURN(
          const judge::v1::CompareResponse response,
          context.services().Compare(context.recipe().evaluation().judge_target(), request));
      if (response.items_size() != request.items_size()) {
        return absl::InternalError(absl::StrCat("the judge answered ", response.items_size(), " of ",
                                                request.items_size(), " items"));
      }
      for (size_t i = first; i < end; ++i) {
        ALMOST_RETURN_IF_ERROR(Record(matches[i], response.items(static_cast<int>(2 * (i - first))),
                                      response.items(static_cast<int>(2 * (i - first) + 1))));
      }
    }
    return absl::OkStatus();
  }

  static absl::Status Record(Match& match, const judge::v1::JudgementResponse& there,
                             const judge::v1::JudgementResponse& back) {
    for (const judge::v1::JudgementResponse* response : {&there, &back}) {
      if (!response->has_result()) {
        return absl::InvalidArgumentError(absl::StrCat("judge: ", response->error().message()));
      }
    }
    if (there.result().has_score_a()) (*match.a)["score"] = there.result().score_a();
    if (there.result().has_score_b()) (*match.b)["score"] = there.result().score_b();
    if (match.verdict_of == nullptr) return absl::OkStatus();
    const auto word = [](judge::v1::Verdict verdict, judge::v1::Verdict win, judge::v1::Verdict loss) {
      return verdict == win                      ? "win"
             : verdict == loss                   ? "loss"
             : verdict == judge::v1::VERDICT_TIE ? "tie"
                                                 : "unparsable";
    };
    const auto a = judge::v1::VERDICT_A, b = judge::v1::VERDICT_B;
    const std::string shown_first = word(there.result().verdict(), a, b);
    const std::string shown_second = word(back.result().verdict(), b, a);
    (*match.verdict_of)["verdicts"][match.name] = CombineOrders(shown_first, shown_second);
    (*match.verdict_of)["orders"][match.name] = {shown_first, shown_second};
    return absl::OkStatus();
  }

  std::vector<ModelNeed> needs_;
  std::vector<std::string> trained_;  // stages whose models answer
  std::vector<std::string> prompts_;
  std::vector<Vanilla> vanilla_;
  ResponseFilter filter_;
  std::string answer_prefix_;
};

}  // namespace

std::unique_ptr<Stage> MakeEvaluationStage(const v1::Recipe& recipe) {
  return std::make_unique<EvaluationStage>(recipe);
}

}  // namespace almost::orchestrator
