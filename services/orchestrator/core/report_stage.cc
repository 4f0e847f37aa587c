#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/storage/json_lines.h"
#include "services/orchestrator/core/datasets.h"
#include "services/orchestrator/core/prompt_traces.h"
#include "services/orchestrator/core/stages.h"
#include "services/orchestrator/report/report.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

constexpr size_t kSamples = 12;  // shown side by side
constexpr size_t kTraces = 8;    // prompts followed through the stages

// Tells what the run came to. It has times in it, so it is left beside the artifacts and is none.
class ReportStage : public Stage {
 public:
  absl::string_view id() const override { return "report"; }
  absl::StatusOr<std::optional<StageIdentity>> Identity(StageContext&) override { return std::nullopt; }
  absl::Status Begin(StageContext&) override { return absl::OkStatus(); }
  absl::StatusOr<int64_t> NumItems(StageContext&, const ItemResults&) override { return 0; }
  absl::StatusOr<std::string> RunItem(StageContext&, int64_t) override { return ""; }

  absl::StatusOr<StageOutput> Publish(StageContext& context, const ItemResults&) override {
    ordered_json data = {{"run", context.run_id()}};
    DescribeRecipe(context.recipe(), data);
    DescribeStages(context, data);
    ALMOST_RETURN_IF_ERROR(DescribeArtifacts(context, data));
    ALMOST_RETURN_IF_ERROR(DescribeCurves(context, data));
    ALMOST_RETURN_IF_ERROR(DescribeEvaluation(context, data));
    ALMOST_ASSIGN_OR_RETURN(data["traces"], PromptTraces(context, kTraces));
    StageOutput output;
    output.run_files["report.html"] = RenderReport(data);
    output.summary_json = Summary(data).dump(2) + "\n";
    return output;
  }

 private:
  static void DescribeRecipe(const v1::Recipe& recipe, ordered_json& data) {
    data["display_name"] = recipe.display_name();
    data["recipe"] = ToJson(recipe).dump(2);
    data["rl_algorithm"] = v1::RlStage::Algorithm_Name(recipe.rl().algorithm());
    data["baseline"] = recipe.evaluation().baseline().id();
    data["configurations"] = ordered_json::array();
    const auto add = [&](const v1::Configuration& configuration) {
      if (configuration.id().empty()) return;
      data["configurations"].push_back({{"id", configuration.id()},
                                        {"model", configuration.model()},
                                        {"demonstrations", configuration.demonstrations()},
                                        {"shots", configuration.shots()}});
    };
    for (const v1::Configuration& each : recipe.evaluation().grid()) add(each);
    for (const v1::Configuration& each : recipe.responses().configurations()) add(each);
    add(recipe.evaluation().baseline());
  }

  // The present stage is left out: it has not ended.
  void DescribeStages(const StageContext& context, ordered_json& data) const {
    data["stages"] = ordered_json::array();
    for (const v1::Stage& stage : context.Stages()) {
      if (absl::string_view(stage.id()) == id()) continue;
      ordered_json figures = ordered_json::object();
      for (const auto& [name, value] : std::map(stage.figures().begin(), stage.figures().end())) {
        figures[name] = value;
      }
      data["stages"].push_back({{"id", stage.id()},
                                {"seconds", stage.seconds()},
                                {"own_seconds", stage.own_seconds()},
                                {"items_done", stage.items_done()},
                                {"items_failed", stage.items_failed()},
                                {"cached_from", stage.cached_from()},
                                {"cost", Shown(stage.cost())},
                                {"figures", std::move(figures)}});
    }
  }

  static ordered_json Shown(const v1::Cost& cost) {
    return {{"prompt_tokens", cost.prompt_tokens()},   {"generated_tokens", cost.generated_tokens()},
            {"scored_items", cost.scored_items()},     {"judged_items", cost.judged_items()},
            {"trained_tokens", cost.trained_tokens()}, {"device_seconds", cost.device_seconds()}};
  }

  static absl::Status DescribeArtifacts(const StageContext& context, ordered_json& data) {
    data["artifacts"] = ordered_json::array();
    for (const auto& [name, digest] : context.Artifacts()) {
      ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, context.store().Get(digest));
      int64_t size_bytes = 0;
      for (const ArtifactFile& file : artifact.files) size_bytes += file.size_bytes;
      data["artifacts"].push_back({{"name", name},
                                   {"digest", digest},
                                   {"kind", artifact.kind},
                                   {"size_bytes", size_bytes},
                                   {"inputs", artifact.inputs}});
    }
    return absl::OkStatus();
  }

  static absl::Status DescribeCurves(const StageContext& context, ordered_json& data) {
    data["curves"] = ordered_json::object();
    for (const char* stage : {"sft", "reward_model", "rl"}) {
      if (!context.Input(stage, "model").ok()) continue;
      const absl::StatusOr<std::string> lines =
          context.store().ReadRunFile(context.run_id(), absl::StrCat(stage, "/curves.jsonl"));
      if (absl::IsNotFound(lines.status())) continue;  // for people; someone may have tidied up
      ALMOST_RETURN_IF_ERROR(lines.status());
      ordered_json& curve = data["curves"][stage] = ordered_json::array();
      ALMOST_RETURN_IF_ERROR(ForEachJsonLine(absl::StrCat(stage, "/curves.jsonl"), *lines,
                                             [&](int64_t, const ordered_json& line) {
                                               curve.push_back(line);
                                               return absl::OkStatus();
                                             }));
    }
    return absl::OkStatus();
  }

  static absl::Status DescribeEvaluation(const StageContext& context, ordered_json& data) {
    const absl::StatusOr<Artifact> artifact = context.Input("evaluation", "evaluation");
    if (absl::IsNotFound(artifact.status())) return absl::OkStatus();
    ALMOST_RETURN_IF_ERROR(artifact.status());
    ALMOST_ASSIGN_OR_RETURN(const std::string evaluation,
                            context.store().ReadFile(artifact->digest, "evaluation.json"));
    data["evaluation"] = ordered_json::parse(evaluation);
    ALMOST_ASSIGN_OR_RETURN(const std::string answers,
                            context.store().ReadFile(artifact->digest, "answers.jsonl"));
    std::vector<ordered_json> prompts;
    ALMOST_RETURN_IF_ERROR(ForEachJsonLine("answers.jsonl", answers, [&](int64_t, const ordered_json& line) {
      prompts.push_back(line);
      prompts.back().erase("candidates");
      return absl::OkStatus();
    }));
    // Evenly spread, not picked: nobody chose the flattering ones.
    data["samples"] = ordered_json::array();
    const size_t shown = std::min(kSamples, prompts.size());
    for (size_t i = 0; i < shown; ++i) data["samples"].push_back(prompts[i * prompts.size() / shown]);
    return absl::OkStatus();
  }

  static ordered_json Summary(const ordered_json& data) {
    ordered_json summary = ordered_json::object();
    const ordered_json evaluation = data.value("evaluation", ordered_json::object());
    for (const char* name : {"rm_accuracy", "rm_accuracy_length_only", "rm_accuracy_likelihood",
                             "win_rate_sft", "win_rate_rl", "win_rate_rl_over_sft"}) {
      if (evaluation.contains(name)) summary[name] = evaluation[name];
    }
    if (evaluation.contains("best_of_n")) {
      for (const char* name : {"n", "chosen", "random", "oracle"}) {
        summary["best_of_n"][name] = evaluation["best_of_n"][name];
      }
    }
    summary["cost"] = ordered_json::object();
    for (const ordered_json& stage : data["stages"]) {
      summary["stage_seconds"][stage["id"].get<std::string>()] = stage["seconds"];
      for (const auto& [name, value] : stage["cost"].items()) {
        const double sum = summary["cost"].value(name, 0.0) + value.get<double>();
        summary["cost"][name] = sum;
      }
    }
    for (const ordered_json& artifact : data["artifacts"]) {
      summary["artifact_hashes"][artifact["name"].get<std::string>()] = artifact["digest"];
    }
    return summary;
  }
};

}  // namespace

std::unique_ptr<Stage> MakeReportStage() { return std::make_unique<ReportStage>(); }

}  // namespace almost::orchestrator
