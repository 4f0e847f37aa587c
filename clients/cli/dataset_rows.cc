#include "clients/cli/dataset_rows.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/base/unicode.h"
#include "common/text/rouge_l.h"

namespace almost::cli {
namespace {

using nlohmann::ordered_json;

bool IsText(const ordered_json& value, const char* field) {
  const auto found = value.find(field);
  return found != value.end() && found->is_string();
}

int64_t Length(const ordered_json& text) {
  return static_cast<int64_t>(NumCodePoints(text.get_ref<const std::string&>()));
}

bool IsDialogue(const ordered_json& value) {
  const auto found = value.find("messages");
  if (found == value.end() || !found->is_array() || found->empty()) return false;
  return std::all_of(found->begin(), found->end(), [](const ordered_json& turn) {
    return turn.is_object() && IsText(turn, "role") && IsText(turn, "content");
  });
}

void AddComparison(const ordered_json& value, ordered_json& row) {
  if (IsText(value, "meta")) {
    const std::string meta = value["meta"];
    const size_t middle = meta.find("-vs-");
    if (middle != std::string::npos) {
      row["better"] = meta.substr(0, middle);
      row["worse"] = meta.substr(middle + 4);
      row.erase("meta");
    }
  }
  row["chosen_length"] = Length(value["chosen"]);
  row["rejected_length"] = Length(value["rejected"]);
  row["length_difference"] = Length(value["chosen"]) - Length(value["rejected"]);
}

void AddDialogue(const ordered_json& value, ordered_json& row) {
  int64_t length = 0;
  for (const ordered_json& turn : value["messages"]) {
    if (turn["role"] == "assistant") length += Length(turn["content"]);
  }
  row["answer_length"] = length;
  row["turns"] = value["messages"].size() / 2;
  if (!value.contains("turns") || !value["turns"].is_array()) return;
  std::string candidates;
  double spread = 0;
  for (const ordered_json& turn : value["turns"]) {
    if (!turn.is_object() || !turn.contains("candidates")) continue;
    double low = 0, high = 0;
    bool any = false;
    for (const ordered_json& candidate : turn["candidates"]) {
      if (!candidate.is_object()) continue;
      const ordered_json score = candidate.value("score", ordered_json());
      absl::StrAppend(&candidates, candidates.empty() ? "" : "\n", score.is_number() ? score.dump() : "–",
                      "  ", IsText(candidate, "text") ? candidate["text"].get<std::string>() : "");
      if (!score.is_number()) continue;
      low = any ? std::min(low, score.get<double>()) : score.get<double>();
      high = any ? std::max(high, score.get<double>()) : score.get<double>();
      any = true;
    }
    spread = std::max(spread, high - low);
  }
  row["candidates"] = candidates;
  row["score_spread"] = spread;
}

}  // namespace

ordered_json RowOf(const std::string& dataset, int64_t line, const ordered_json& value) {
  ordered_json row = value;
  row["dataset"] = dataset;
  row["line"] = line;
  std::string reason;
  for (const char* field : {"drop_reason", "bad_reason"}) {
    if (!IsText(value, field)) continue;
    reason = value[field];
    row.erase(field);
  }
  row["outcome"] = reason.empty() ? "kept" : reason;
  if (IsText(value, "chosen") && IsText(value, "rejected")) {
    AddComparison(value, row);
  } else if (IsDialogue(value)) {
    AddDialogue(value, row);
  } else if (IsText(value, "response")) {
    row["length"] = Length(value["response"]);
  } else if (IsText(value, "prompt")) {
    row["length"] = Length(value["prompt"]);
  }
  return row;
}

void MarkNearDuplicates(std::vector<ordered_json>& rows, double threshold,
                        const std::function<void(int64_t done, int64_t total)>& progress) {
  constexpr int64_t kTellEvery = 1000;
  RougeLIndex index;
  std::vector<std::string> texts;           // of the index
  std::map<std::string, std::string> like;  // distinct text -> an earlier one, or empty
  const auto total = static_cast<int64_t>(rows.size());
  for (int64_t i = 0; i < total; ++i) {
    if (i % kTellEvery == 0) progress(i, total);
    ordered_json& row = rows[static_cast<size_t>(i)];
    std::string text;
    if (IsText(row, "prompt")) {
      text = row["prompt"];
    } else if (IsDialogue(row)) {
      text = row["messages"][0]["content"];
    } else {
      continue;
    }
    const auto [known, is_new] = like.emplace(text, "");
    if (is_new) {
      if (const auto match = index.FirstAtLeast(text, threshold)) known->second = texts[match->index];
      index.Add(text);
      texts.push_back(text);
    }
    if (!known->second.empty()) row["near_duplicate_of"] = known->second;
  }
  progress(total, total);
}

}  // namespace almost::cli
