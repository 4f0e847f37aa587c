#include "common/evaluation/benchmark_files.h"

#include <algorithm>
#include <functional>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/base/unicode.h"
#include "common/storage/env.h"
#include "common/storage/gzip.h"
#include "nlohmann/json.hpp"

namespace almost {
namespace {

using nlohmann::ordered_json;

constexpr absl::string_view kHuman = "\n\nHuman:";
constexpr absl::string_view kAssistant = "\n\nAssistant:";

// The text that `file` holds, unpacked where it begins as gzip does.
absl::StatusOr<std::string> ReadPlain(const std::filesystem::path& file) {
  ALMOST_ASSIGN_OR_RETURN(std::string bytes, Env::Posix()->Read(file));
  if (absl::StartsWith(bytes, "\x1f\x8b")) {
    absl::StatusOr<std::string> unpacked = Gunzip(bytes);
    if (!unpacked.ok()) return Annotate(unpacked.status(), file.string());
    bytes = *std::move(unpacked);
  }
  ALMOST_ASSIGN_OR_RETURN(const absl::string_view text, Utf8Text(file.string(), bytes));
  return std::string(text);
}

int64_t LineAt(absl::string_view text, size_t offset) {
  return 1 +
         static_cast<int64_t>(std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(offset), '\n'));
}

using UseItem = std::function<absl::Status(int64_t number, const ordered_json& item)>;

// Parses one JSON value that begins at `offset` of `text`.
absl::StatusOr<ordered_json> ParseItem(absl::string_view text, size_t offset, absl::string_view item) {
  try {
    ordered_json value = ordered_json::parse(item.begin(), item.end());
    if (!value.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat("must be a JSON object, is ", value.type_name()));
    }
    return value;
  } catch (const ordered_json::parse_error& error) {
    const size_t at = std::min(item.size(), error.byte > 0 ? error.byte - 1 : 0);
    return absl::InvalidArgumentError(
        absl::StrCat("is not JSON (line ", LineAt(text, offset + at), " of the file)"));
  }
}

absl::Status Place(const absl::Status& status, const std::filesystem::path& file, int64_t line) {
  return Annotate(status, absl::StrCat(file.string(), ": line ", line));
}

// Each line is an object.
absl::Status ForEachLine(const std::filesystem::path& file, const UseItem& use) {
  ALMOST_ASSIGN_OR_RETURN(const std::string text, ReadPlain(file));
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const absl::string_view line(text.data() + begin, end - begin);
    auto item = ParseItem(text, begin, line);
    if (!item.ok()) return Place(item.status(), file, number + 1);
    ALMOST_RETURN_IF_ERROR(Place(use(number, *item), file, number + 1));
    begin = end + 1;
  }
  if (number == 0) return absl::InvalidArgumentError(absl::StrCat(file.string(), ": is empty"));
  return absl::OkStatus();
}

// The file is a list of objects. They are cut out one by one, so that each is known by its line.
absl::Status ForEachOfList(const std::filesystem::path& file, const UseItem& use) {
  ALMOST_ASSIGN_OR_RETURN(const std::string text, ReadPlain(file));
  if (const size_t first = text.find_first_not_of(" \t\r\n");
      first == std::string::npos || text[first] != '[') {
    return absl::InvalidArgumentError(
        absl::StrCat(file.string(), ": line 1: must begin a JSON list of objects"));
  }
  int64_t number = 0;
  int depth = 0;
  size_t begin = 0;
  bool in_string = false, ended = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (depth == 1 && !absl::StrContains(" \t\r\n,{]", c)) {
      return Place(absl::InvalidArgumentError(absl::StrCat("[", number, "]: must be an object")), file,
                   LineAt(text, i));
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (depth++ == 1) begin = i;
    } else if (c == ']' || c == '}') {
      if (--depth == 1) {
        const absl::string_view piece(text.data() + begin, i + 1 - begin);
        const auto item = ParseItem(text, begin, piece);
        const absl::Status used = item.ok() ? use(number, *item) : item.status();
        ALMOST_RETURN_IF_ERROR(
            Place(Annotate(used, absl::StrCat("[", number, "]")), file, LineAt(text, begin)));
        ++number;
      }
      if (depth == 0) {
        ended = true;
        break;
      }
    }
  }
  if (!ended)
    return Place(absl::InvalidArgumentError("the list does not end"), file, LineAt(text, text.size()));
  if (number == 0) return absl::InvalidArgumentError(absl::StrCat(file.string(), ": is an empty list"));
  return absl::OkStatus();
}

absl::StatusOr<std::string> Text(const ordered_json& item, const char* field) {
  const auto found = item.find(field);
  if (found == item.end()) return absl::InvalidArgumentError(absl::StrCat(field, ": is missing"));
  if (!found->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": must be a string, is ", found->type_name()));
  }
  return found->get<std::string>();
}

// A number or a string; `otherwise` where the field is absent.
absl::StatusOr<std::string> Id(const ordered_json& item, const char* field, std::string otherwise) {
  const auto found = item.find(field);
  if (found == item.end()) return otherwise;
  if (found->is_string()) return found->get<std::string>();
  if (found->is_number_integer()) return absl::StrCat(found->get<int64_t>());
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": must be a number or a string, is ", found->type_name()));
}

absl::StatusOr<std::vector<Message>> Dialogue(const ordered_json& item, const char* field) {
  ALMOST_ASSIGN_OR_RETURN(const std::string text, Text(item, field));
  absl::StatusOr<std::vector<Message>> messages = ParseDialogue(text);
  if (!messages.ok()) return Annotate(messages.status(), field);
  return messages;
}

absl::StatusOr<Preference> WholeDialogues(const ordered_json& item) {
  Preference preference;
  ALMOST_ASSIGN_OR_RETURN(preference.chosen, Dialogue(item, "chosen"));
  ALMOST_ASSIGN_OR_RETURN(preference.rejected, Dialogue(item, "rejected"));
  return preference;
}

absl::StatusOr<Preference> SingleTurn(const ordered_json& item) {
  ALMOST_ASSIGN_OR_RETURN(const std::string prompt, Text(item, "prompt"));
  ALMOST_ASSIGN_OR_RETURN(const std::string chosen, Text(item, "chosen"));
  ALMOST_ASSIGN_OR_RETURN(const std::string rejected, Text(item, "rejected"));
  return Preference{
      {{"user", prompt}, {"assistant", chosen}}, {{"user", prompt}, {"assistant", rejected}}, ""};
}

bool SameContext(const Preference& preference) {
  const auto &a = preference.chosen, &b = preference.rejected;
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i + 1 < a.size(); ++i) {
    if (a[i].role != b[i].role || a[i].content != b[i].content) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<PreferenceFormat> PreferenceFormatNamed(absl::string_view name) {
  if (name == "hhh") return PreferenceFormat::kHhh;
  if (name == "hh-rlhf") return PreferenceFormat::kHhRlhf;
  if (name == "rewardbench") return PreferenceFormat::kRewardBench;
  if (name == "comparisons") return PreferenceFormat::kComparisons;
  return absl::InvalidArgumentError(
      absl::StrCat("format: must be hhh, hh-rlhf, rewardbench or comparisons, is ", name));
}

absl::StatusOr<std::vector<Message>> ParseDialogue(absl::string_view text) {
  std::vector<Message> messages;
  if (!absl::StartsWith(text, kHuman)) {
    return absl::InvalidArgumentError("must begin with \"\\n\\nHuman:\"");
  }
  for (size_t at = 0; at < text.size();) {
    const bool human = absl::StartsWith(text.substr(at), kHuman);
    absl::string_view rest = text.substr(at + (human ? kHuman : kAssistant).size());
    const size_t end = std::min({rest.find(kHuman), rest.find(kAssistant), rest.size()});
    at += (human ? kHuman : kAssistant).size() + end;
    absl::string_view content = rest.substr(0, end);
    absl::ConsumePrefix(&content, " ");
    messages.push_back({human ? "user" : "assistant", std::string(content)});
  }
  if (messages.back().role != "assistant") {
    return absl::InvalidArgumentError("must end with the assistant's turn");
  }
  return messages;
}

int64_t LengthDifference(const Preference& preference) {
  return static_cast<int64_t>(NumCodePoints(preference.chosen.back().content)) -
         static_cast<int64_t>(NumCodePoints(preference.rejected.back().content));
}

absl::StatusOr<std::vector<Preference>> ReadPreferences(const std::filesystem::path& file,
                                                        PreferenceFormat format) {
  std::vector<Preference> preferences;
  const UseItem use = [&](int64_t, const ordered_json& item) -> absl::Status {
    const bool whole = format == PreferenceFormat::kHhh || format == PreferenceFormat::kHhRlhf;
    absl::StatusOr<Preference> preference = whole ? WholeDialogues(item) : SingleTurn(item);
    ALMOST_RETURN_IF_ERROR(preference.status());
    const char* type = format == PreferenceFormat::kHhh           ? "type"
                       : format == PreferenceFormat::kRewardBench ? "subset"
                       : item.contains("meta")                    ? "meta"
                                                                  : nullptr;
    if (type != nullptr) {
      ALMOST_ASSIGN_OR_RETURN(preference->type, Text(item, type));
    }
    if (format == PreferenceFormat::kHhh && !SameContext(*preference)) {
      return absl::InvalidArgumentError("rejected: must continue the same context as chosen");
    }
    preferences.push_back(*std::move(preference));
    return absl::OkStatus();
  };
  ALMOST_RETURN_IF_ERROR(format == PreferenceFormat::kHhh ? ForEachOfList(file, use)
                                                          : ForEachLine(file, use));
  return preferences;
}

absl::StatusOr<std::vector<BenchmarkPrompt>> ReadPromptFile(const std::filesystem::path& file) {
  std::vector<BenchmarkPrompt> prompts;
  if (!absl::StrContains(file.filename().string(), ".jsonl")) {
    ALMOST_ASSIGN_OR_RETURN(const std::string text, ReadPlain(file));
    for (const absl::string_view line : absl::StrSplit(text, '\n')) {
      const absl::string_view prompt = absl::StripAsciiWhitespace(line);
      if (!prompt.empty()) prompts.push_back({absl::StrCat(prompts.size()), std::string(prompt), ""});
    }
    if (prompts.empty()) return absl::InvalidArgumentError(absl::StrCat(file.string(), ": is empty"));
    return prompts;
  }
  ALMOST_RETURN_IF_ERROR(ForEachLine(file, [&](int64_t number, const ordered_json& item) -> absl::Status {
    BenchmarkPrompt prompt;
    const bool vicuna = item.contains("question_id");
    ALMOST_ASSIGN_OR_RETURN(prompt.id, Id(item, vicuna ? "question_id" : "id", absl::StrCat(number)));
    ALMOST_ASSIGN_OR_RETURN(prompt.text, Text(item, vicuna ? "text" : "prompt"));
    if (item.contains("category")) {
      ALMOST_ASSIGN_OR_RETURN(prompt.category, Text(item, "category"));
    }
    prompts.push_back(std::move(prompt));
    return absl::OkStatus();
  }));
  return prompts;
}

absl::StatusOr<std::vector<std::string>> ReadAnswers(const std::filesystem::path& file,
                                                     const std::vector<BenchmarkPrompt>& prompts) {
  std::map<std::string, std::string> by_id;
  ALMOST_RETURN_IF_ERROR(ForEachLine(file, [&](int64_t, const ordered_json& item) -> absl::Status {
    const char* field = item.contains("question_id") ? "question_id" : "id";
    ALMOST_ASSIGN_OR_RETURN(const std::string id, Id(item, field, ""));
    if (id.empty()) return absl::InvalidArgumentError("question_id: is missing");
    ALMOST_ASSIGN_OR_RETURN(std::string text, Text(item, "text"));
    if (!by_id.emplace(id, std::move(text)).second) {
      return absl::InvalidArgumentError(absl::StrCat(field, ": ", id, " is there twice"));
    }
    return absl::OkStatus();
  }));
  std::vector<std::string> answers;
  for (const BenchmarkPrompt& prompt : prompts) {
    const auto found = by_id.find(prompt.id);
    if (found == by_id.end()) {
      return absl::InvalidArgumentError(absl::StrCat(file.string(), ": no answer to question ", prompt.id));
    }
    answers.push_back(found->second);
  }
  return answers;
}

absl::StatusOr<std::vector<TruthfulQuestion>> ReadTruthfulQa(const std::filesystem::path& file) {
  std::vector<TruthfulQuestion> questions;
  ALMOST_RETURN_IF_ERROR(ForEachOfList(file, [&](int64_t, const ordered_json& item) -> absl::Status {
    TruthfulQuestion question;
    ALMOST_ASSIGN_OR_RETURN(question.question, Text(item, "question"));
    const auto targets = item.find("mc1_targets");
    if (targets == item.end() || !targets->is_object()) {
      return absl::InvalidArgumentError("mc1_targets: must be an object of choices with 0 or 1");
    }
    int num_true = 0;
    for (const auto& [choice, truth] : targets->items()) {
      if (truth != 0 && truth != 1) {
        return absl::InvalidArgumentError(
            absl::StrCat("mc1_targets[\"", choice, "\"]: must be 0 or 1, is ", truth.dump()));
      }
      if (truth == 1) {
        question.truth = question.choices.size();
        ++num_true;
      }
      question.choices.push_back(choice);
    }
    if (num_true != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("mc1_targets: must hold one true choice, holds ", num_true));
    }
    questions.push_back(std::move(question));
    return absl::OkStatus();
  }));
  return questions;
}

absl::StatusOr<std::vector<std::string>> ReadDocuments(const std::filesystem::path& file) {
  std::vector<std::string> documents;
  if (!absl::StrContains(file.filename().string(), ".jsonl")) {
    ALMOST_ASSIGN_OR_RETURN(documents.emplace_back(), ReadPlain(file));
    if (documents.front().empty())
      return absl::InvalidArgumentError(absl::StrCat(file.string(), ": is empty"));
    return documents;
  }
  ALMOST_RETURN_IF_ERROR(ForEachLine(file, [&](int64_t, const ordered_json& item) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(documents.emplace_back(), Text(item, "text"));
    return absl::OkStatus();
  }));
  return documents;
}

}  // namespace almost
