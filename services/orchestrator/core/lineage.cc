#include "services/orchestrator/core/lineage.h"

#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/storage/json_lines.h"

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxNodes = 10'000;

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

// The stage that makes artifacts of a kind; of models, the trainer's own word.
std::string StageOf(const Artifact& artifact) {
  if (artifact.kind == "candidates") return "demonstrations";
  if (artifact.recipe.contains("reward_model") && artifact.kind == "model") return "reward_model";
  if (artifact.recipe.contains("sft")) return "sft";
  if (artifact.recipe.contains("ppo")) return "rl";
  return artifact.kind;
}

// Keys of a line that name a line of another artifact, and which input that is.
struct LineKey {
  const char* key;
  const char* input;
};
std::vector<LineKey> LineKeys(const Artifact& artifact) {
  if (artifact.kind == "comparisons" || artifact.inputs.contains("responses")) {
    return {{"chosen_id", "responses"}, {"rejected_id", "responses"}, {"prompt_id", "prompts"}};
  }
  if (artifact.inputs.contains("prompts")) return {{"prompt_id", "prompts"}};
  return {};
}

class Graph {
 public:
  explicit Graph(ArtifactStore& store) : store_(store) {}

  absl::StatusOr<const Artifact*> Get(const std::string& digest) {
    const auto known = artifacts_.find(digest);
    if (known != artifacts_.end()) return &known->second;
    ALMOST_ASSIGN_OR_RETURN(Artifact artifact, store_.Get(digest));
    return &artifacts_.emplace(digest, std::move(artifact)).first->second;
  }

  // The lines of a dataset; none for anything else.
  absl::StatusOr<const std::vector<ordered_json>*> Lines(const Artifact& artifact) {
    const auto known = lines_.find(artifact.digest);
    if (known != lines_.end()) return &known->second;
    std::vector<ordered_json>& lines = lines_[artifact.digest];
    if (artifact.files.size() != 1 || !absl::StrContains(artifact.files[0].path, ".jsonl")) return &lines;
    ALMOST_ASSIGN_OR_RETURN(const std::string text, store_.ReadFile(artifact.digest, artifact.files[0].path));
    ALMOST_RETURN_IF_ERROR(
        ForEachJsonLine(artifact.files[0].path, text, [&lines](int64_t, const ordered_json& line) {
          lines.push_back(line);
          return absl::OkStatus();
        }));
    return &lines;
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
    std::set<std::string> by_line;
    if (place.line.has_value()) {
      ALMOST_ASSIGN_OR_RETURN(const std::vector<ordered_json>* lines, Lines(artifact));
      if (*place.line >= static_cast<int64_t>(lines->size())) {
        return absl::NotFoundError(absl::StrCat(place.Name(), ": the dataset has ", lines->size(), " lines"));
      }
      const ordered_json& line = (*lines)[static_cast<size_t>(*place.line)];
      node.set_json(line.dump());
      for (const auto& [key, input] : LineKeys(artifact)) {
        const auto source = artifact.inputs.find(input);
        if (source == artifact.inputs.end() || !line.contains(key)) continue;
        by_line.insert(input);
        node.add_inputs(absl::StrCat("artifacts/", source->second, "/", line.at(key).get<int64_t>()));
      }
    }
    for (const auto& [input, digest] : artifact.inputs) {
      if (!by_line.contains(input)) node.add_inputs(absl::StrCat("artifacts/", digest));
    }
    return node;
  }

  // Every place that names `place` among its inputs: lines where a line is asked for.
  absl::StatusOr<std::vector<Place>> MadeFrom(const Place& place) {
    std::vector<Place> made;
    ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> all, store_.List());
    for (const std::string& digest : all) {
      ALMOST_ASSIGN_OR_RETURN(const Artifact* artifact, Get(digest));
      for (const auto& [input, source] : artifact->inputs) {
        if (source != place.digest) continue;
        std::vector<LineKey> keys;
        for (const LineKey& each : LineKeys(*artifact)) {
          if (input == each.input) keys.push_back(each);
        }
        if (!place.line.has_value() || keys.empty()) {
          made.push_back({digest, std::nullopt});
          continue;
        }
        ALMOST_ASSIGN_OR_RETURN(const std::vector<ordered_json>* lines, Lines(*artifact));
        for (size_t i = 0; i < lines->size(); ++i) {
          for (const LineKey& each : keys) {
            if ((*lines)[i].value(each.key, int64_t{-1}) == *place.line) {
              made.push_back({digest, static_cast<int64_t>(i)});
              break;
            }
          }
        }
      }
    }
    return made;
  }

 private:
  ArtifactStore& store_;
  std::map<std::string, Artifact> artifacts_;
  std::map<std::string, std::vector<ordered_json>> lines_;
};

}  // namespace

absl::StatusOr<std::vector<v1::LineageNode>> Lineage(ArtifactStore& store, absl::string_view name,
                                                     bool descendants) {
  ALMOST_ASSIGN_OR_RETURN(const Place root, ParseName(name));
  Graph graph(store);
  ALMOST_RETURN_IF_ERROR(graph.Get(root.digest).status());
  std::vector<v1::LineageNode> nodes;
  std::set<std::string> seen = {root.Name()};
  std::deque<Place> next = {root};
  while (!next.empty() && nodes.size() < kMaxNodes) {
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
    nodes.push_back(std::move(node));
    for (Place& neighbour : neighbours) {
      if (seen.insert(neighbour.Name()).second) next.push_back(std::move(neighbour));
    }
  }
  return nodes;
}

}  // namespace almost::orchestrator
