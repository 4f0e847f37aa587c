#include "services/orchestrator/core/lineage.h"

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"
#include "common/text/prompt_format.h"
#include "services/orchestrator/core/datasets.h"
#include "services/orchestrator/core/few_shot_configuration.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

struct Place {
  std::string digest;
  std::optional<int64_t> line;

  std::string Name() const {
    return line.has_value() ? absl::StrCat("artifacts/", digest, "/", *line)
                            : absl::StrCat("artifacts/", digest);
  }
};

absl::StatusOr<Place> ParseName(absl::string_view name) {
  Place place;
  const std::vector<std::string> parts = absl::StrSplit(name, '/');
  int64_t line = 0;
  const bool whole = parts.size() == 2;
  const bool of_line = parts.size() == 3 && absl::SimpleAtoi(parts[2], &line) && line >= 0;
  if (parts[0] != "artifacts" || !(whole || of_line)) {
    return absl::InvalidArgumentError(
        absl::StrCat("name: must be artifacts/{digest} or artifacts/{digest}/{line}, is \"",
                     absl::CHexEscape(name.substr(0, 160)), "\""));
  }
  place.digest = parts[1];
  if (of_line) place.line = line;
  return place;
}

// The stage that makes artifacts of a kind; of models, by the kind of their job.
std::string StageOf(const Artifact& artifact) {
  if (artifact.kind == "candidates") return "demonstrations";
  if (artifact.recipe.contains("reward_model") && artifact.kind == "model") return "reward_model";
  if (artifact.recipe.contains("sft")) return "sft";
  if (artifact.kind == "pairs") return "rl";
  for (const char* job : {"ppo", "grpo", "dpo"}) {
    if (artifact.recipe.contains(job)) return "rl";
  }
  return artifact.kind;
}

// A key of a line whose value names a line of one of the artifact's inputs: the one whose `target` has that
// value.
struct LineKey {
  const char* key;
  const char* input;
  const char* target;
};
std::vector<LineKey> LineKeys(const Artifact& artifact) {
  if (artifact.inputs.contains("responses")) {  // comparisons, kept or dropped
    return {
        {"chosen_id", "responses", "id"}, {"rejected_id", "responses", "id"}, {"prompt_id", "prompts", "id"}};
  }
  if (artifact.inputs.contains("candidates")) {
    return {{"prompt_id", "candidates", "prompt_id"}, {"prompt_id", "prompts", "id"}};
  }
  if (artifact.inputs.contains("prompts")) return {{"prompt_id", "prompts", "id"}};
  return {};
}

// A JSON Lines file whose lines are parsed as they are asked for: datasets may be large.
class Dataset {
 public:
  explicit Dataset(std::string text) : text_(std::move(text)) {
    for (size_t begin = 0; begin < text_.size();) {
      const size_t end = std::min(text_.find('\n', begin), text_.size());
      if (end > begin) lines_.emplace_back(begin, end - begin);
      begin = end + 1;
    }
  }
  int64_t size() const { return static_cast<int64_t>(lines_.size()); }
  absl::StatusOr<ordered_json> Line(int64_t number) const {
    const auto& [begin, length] = lines_[static_cast<size_t>(number)];
    const char* const text = text_.data() + begin;
    ordered_json line = ordered_json::parse(text, text + length, nullptr, /*allow_exceptions=*/false);
    if (line.is_discarded()) return absl::DataLossError(absl::StrCat("line ", number, " is no JSON"));
    return line;
  }
  // The number of the lines by their value at `key`.
  absl::StatusOr<const std::multimap<int64_t, int64_t>*> By(const std::string& key) {
    const auto known = by_.find(key);
    if (known != by_.end()) return &known->second;
    std::multimap<int64_t, int64_t> numbers;
    for (int64_t i = 0; i < size(); ++i) {
      ALMOST_ASSIGN_OR_RETURN(const ordered_json line, Line(i));
      if (const auto value = line.find(key); value != line.end() && value->is_number_integer()) {
        numbers.emplace(value->get<int64_t>(), i);
      }
    }
    return &by_.emplace(key, std::move(numbers)).first->second;
  }

 private:
  std::string text_;
  std::vector<std::pair<size_t, size_t>> lines_;  // begin, length
  std::map<std::string, std::multimap<int64_t, int64_t>> by_;
};

// Of one traversal.
class Graph {
 public:
  explicit Graph(ArtifactStore& store) : store_(store) {}

  absl::StatusOr<const Artifact*> Get(const std::string& digest) {
    const auto known = artifacts_.find(digest);
    if (known != artifacts_.end()) return &known->second;
    ALMOST_ASSIGN_OR_RETURN(Artifact artifact, store_.Get(digest));
    return &artifacts_.emplace(digest, std::move(artifact)).first->second;
  }

  // What `place` was made from; inputs that the store does not hold are among them.
  absl::StatusOr<v1::LineageNode> Node(const Place& place) {
    v1::LineageNode node;
    node.set_name(place.Name());
    const auto found = Get(place.digest);
    if (absl::IsNotFound(found.status())) {
      node.set_kind("source");
      return node;
    }
    ALMOST_RETURN_IF_ERROR(found.status());
    const Artifact& artifact = **found;
    node.set_kind(artifact.kind);
    node.set_stage(StageOf(artifact));
    node.set_numerics_id(artifact.numerics_id);
    std::set<std::string> by_line;
    if (place.line.has_value()) {
      ALMOST_ASSIGN_OR_RETURN(const ordered_json line, Line(artifact, *place.line));
      node.set_json(line.dump());
      node.set_sampling_json(SamplingOf(artifact, line));
      for (const LineKey& each : LineKeys(artifact)) {
        const auto source = artifact.inputs.find(each.input);
        if (source == artifact.inputs.end() || !line.contains(each.key)) continue;
        const auto target = Get(source->second);
        if (absl::IsNotFound(target.status())) continue;  // candidates are not always kept
        ALMOST_RETURN_IF_ERROR(target.status());
        ALMOST_ASSIGN_OR_RETURN(Dataset * lines, Lines(**target));
        ALMOST_ASSIGN_OR_RETURN(const auto* numbers, lines->By(each.target));
        const auto number = numbers->find(line.at(each.key).get<int64_t>());
        if (number == numbers->end()) continue;
        by_line.insert(each.input);
        AddInput(node, Place{source->second, number->second}.Name(), each.key);
      }
    } else {
      node.set_recipe_json(artifact.recipe.dump());
      if (DatasetFile(artifact) != nullptr) {
        ALMOST_ASSIGN_OR_RETURN(const Dataset* lines, Lines(artifact));
        node.set_num_lines(lines->size());
      }
    }
    for (const auto& [input, digest] : artifact.inputs) {
      if (!by_line.contains(input)) AddInput(node, absl::StrCat("artifacts/", digest), input);
    }
    return node;
  }

  // Every place that names `place` among its inputs: lines where a line is asked for.
  absl::StatusOr<std::vector<Place>> MadeFrom(const Place& place) {
    if (!users_.has_value()) {
      users_.emplace();
      ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> all, store_.List());
      for (const std::string& digest : all) {
        const auto artifact = Get(digest);
        if (absl::IsNotFound(artifact.status())) continue;  // collected at this moment
        ALMOST_RETURN_IF_ERROR(artifact.status());
        for (const auto& [input, source] : (*artifact)->inputs) (*users_)[source].emplace_back(digest, input);
      }
    }
    std::vector<Place> made;
    for (const auto& [digest, input] : (*users_)[place.digest]) {
      ALMOST_ASSIGN_OR_RETURN(const Artifact* artifact, Get(digest));
      bool by_line = false;
      for (const LineKey& each : LineKeys(*artifact)) {
        if (!place.line.has_value() || input != each.input) continue;
        by_line = true;
        ALMOST_ASSIGN_OR_RETURN(const Artifact* source, Get(place.digest));
        ALMOST_ASSIGN_OR_RETURN(const ordered_json line, Line(*source, *place.line));
        ALMOST_ASSIGN_OR_RETURN(Dataset * lines, Lines(*artifact));
        ALMOST_ASSIGN_OR_RETURN(const auto* numbers, lines->By(each.key));
        const auto [begin, end] = numbers->equal_range(line.value(each.target, int64_t{-1}));
        for (auto number = begin; number != end; ++number) made.push_back({digest, number->second});
      }
      if (!by_line) made.push_back({digest, std::nullopt});
    }
    return made;
  }

 private:
  static void AddInput(v1::LineageNode& node, std::string name, const std::string& role) {
    node.add_inputs(std::move(name));
    node.add_input_roles(role);
  }

  // How a line of the responses or of the candidates was sampled; empty for anything else.
  static std::string SamplingOf(const Artifact& artifact, const ordered_json& line) {
    if (artifact.kind == "candidates") {
      const nlohmann::json& stage = artifact.recipe.at("demonstration");
      nlohmann::json sampling = SamplingWith(artifact, stage, stage.at("assistant"));
      sampling["n"] = stage.at("num_candidates");
      nlohmann::json seeds = nlohmann::json::array();  // by turn
      for (const ordered_json& turn : line.at("turns")) seeds.push_back(turn.value("seed", ""));
      return nlohmann::json(
                 {{"configuration", stage.at("assistant")}, {"sampling", sampling}, {"turn_seeds", seeds}})
          .dump();
    }
    if (artifact.kind != "responses") return "";
    const nlohmann::json& stage = artifact.recipe.at("responses");
    for (const nlohmann::json& configuration : stage.at("configurations")) {
      if (configuration.at("id") != line.at("config")) continue;
      nlohmann::json sampling = SamplingWith(artifact, stage, configuration);
      sampling["seed"] = SampleSeed(artifact.recipe.at("seed"), "responses",
                                    line.at("config").get<std::string>(), line.at("prompt_id"));
      return nlohmann::json({{"configuration", configuration}, {"sampling", sampling}}).dump();
    }
    return "";
  }

  // The stage's sampling parameters as they were sent for a configuration, but for the seed.
  static nlohmann::json SamplingWith(const Artifact& artifact, const nlohmann::json& stage,
                                     const nlohmann::json& configuration) {
    nlohmann::json sampling = stage.value("sampling", nlohmann::json::object());
    if (configuration.contains("max_new_tokens"))
      sampling["max_new_tokens"] = configuration["max_new_tokens"];
    const auto format = PromptFormat::Named(artifact.recipe.value("prompt_format", ""));
    if (!sampling.contains("stop") && format.ok()) sampling["stop"] = format->stop;
    return sampling;
  }

  // Empty for what is no dataset.
  absl::StatusOr<Dataset*> Lines(const Artifact& artifact) {
    const auto known = datasets_.find(artifact.digest);
    if (known != datasets_.end()) return &known->second;
    std::string text;
    if (DatasetFile(artifact) != nullptr) {
      ALMOST_ASSIGN_OR_RETURN(text, DatasetText(store_, artifact));
    }
    return &datasets_.emplace(artifact.digest, Dataset(std::move(text))).first->second;
  }

  absl::StatusOr<ordered_json> Line(const Artifact& artifact, int64_t number) {
    ALMOST_ASSIGN_OR_RETURN(const Dataset* lines, Lines(artifact));
    if (number >= lines->size()) {
      return absl::NotFoundError(
          absl::StrCat("artifacts/", artifact.digest, "/", number, ": it has ", lines->size(), " lines"));
    }
    absl::StatusOr<ordered_json> line = lines->Line(number);
    if (!line.ok()) return Annotate(line.status(), absl::StrCat("artifacts/", artifact.digest));
    return line;
  }

  ArtifactStore& store_;
  std::map<std::string, Artifact> artifacts_;
  std::map<std::string, Dataset> datasets_;
  // Source -> what was made from it, and as which input; made when first asked for.
  std::optional<std::map<std::string, std::vector<std::pair<std::string, std::string>>>> users_;
};

}  // namespace

absl::StatusOr<v1::GetLineageResponse> Lineage(ArtifactStore& store, absl::string_view name, bool descendants,
                                               int64_t start, int64_t limit) {
  ALMOST_ASSIGN_OR_RETURN(const Place root, ParseName(name));
  Graph graph(store);
  ALMOST_RETURN_IF_ERROR(graph.Get(root.digest).status());
  v1::GetLineageResponse response;
  std::set<std::string> seen = {root.Name()};
  std::deque<Place> next = {root};
  for (int64_t number = 0; !next.empty(); ++number) {
    if (number == start + limit) {
      response.set_next_page_token(absl::StrCat(number));
      break;
    }
    const Place place = std::move(next.front());
    next.pop_front();
    ALMOST_ASSIGN_OR_RETURN(v1::LineageNode node, graph.Node(place));
    std::vector<Place> neighbours;
    if (descendants) {
      ALMOST_ASSIGN_OR_RETURN(neighbours, graph.MadeFrom(place));
    } else {
      for (const std::string& input : node.inputs()) {
        ALMOST_ASSIGN_OR_RETURN(Place source, ParseName(input));
        neighbours.push_back(std::move(source));
      }
    }
    if (number >= start) *response.add_nodes() = std::move(node);
    for (Place& neighbour : neighbours) {
      if (seen.insert(neighbour.Name()).second) next.push_back(std::move(neighbour));
    }
  }
  return response;
}

}  // namespace almost::orchestrator
