#include "services/trainer/core/datasets.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "common/storage/env.h"
#include "common/storage/json_lines.h"

namespace almost::trainer {
namespace {

using nlohmann::ordered_json;

// The string under `key`; null where it is missing or of another type.
const std::string* Text(const ordered_json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() ? nullptr : found->get_ptr<const std::string*>();
}

absl::Status ForEachLine(const std::filesystem::path& file,
                         const std::function<absl::Status(const ordered_json&)>& use) {
  ALMOST_ASSIGN_OR_RETURN(const std::string lines, Env::Posix()->Read(file));
  if (lines.empty()) return absl::InvalidArgumentError(absl::StrCat(file.string(), ": is empty"));
  return ForEachJsonLine(file.string(), lines, [&](int64_t number, const ordered_json& line) {
    return Annotate(use(line), absl::StrCat(file.string(), " line ", number + 1));
  });
}

absl::StatusOr<std::vector<Message>> Messages(const ordered_json& line) {
  const auto found = line.find("messages");
  if (found == line.end() || !found->is_array()) {
    return absl::InvalidArgumentError("needs \"messages\", a list of {\"role\", \"content\"}");
  }
  std::vector<Message> messages;
  for (const ordered_json& turn : *found) {
    const std::string *role = Text(turn, "role"), *content = Text(turn, "content");
    if (role == nullptr || content == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("messages[", messages.size(), "]: needs \"role\" and \"content\", strings"));
    }
    messages.push_back({*role, *content});
  }
  return messages;
}

absl::StatusOr<Sample> Encode(const std::vector<Message>& messages, const Encoding& encoding) {
  ALMOST_ASSIGN_OR_RETURN(EncodedDialogue dialogue,
                          EncodeDialogue(encoding.format, encoding.tokenizer, messages));
  Sample sample{std::move(dialogue.ids), std::move(dialogue.is_assistant)};
  if (!sample.is_target.empty()) sample.is_target[0] = false;
  return sample;
}

}  // namespace

int64_t Sample::num_targets() const { return std::count(is_target.begin(), is_target.end(), true); }

absl::StatusOr<Dialogues> ReadDialogues(const std::filesystem::path& file, const Encoding& encoding) {
  Dialogues dialogues;
  ALMOST_RETURN_IF_ERROR(ForEachLine(file, [&](const ordered_json& line) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(const std::vector<Message> messages, Messages(line));
    ALMOST_ASSIGN_OR_RETURN(Sample sample, Encode(messages, encoding));
    if (static_cast<int>(sample.ids.size()) > encoding.max_tokens) {
      sample.ids.resize(encoding.max_tokens);
      sample.is_target.resize(encoding.max_tokens);
      ++dialogues.num_cut;
    }
    if (sample.num_targets() == 0) {
      ++dialogues.num_without_targets;
    } else {
      dialogues.samples.push_back(std::move(sample));
    }
    return absl::OkStatus();
  }));
  if (dialogues.samples.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(file.string(), ": no dialogue with an assistant's turn"));
  }
  return dialogues;
}

absl::StatusOr<Sample> EncodeResponse(const std::string& prompt, const std::string& response,
                                      const Encoding& encoding) {
  ALMOST_ASSIGN_OR_RETURN(Sample sample, Encode({{"user", prompt}, {"assistant", response}}, encoding));
  if (static_cast<int>(sample.ids.size()) > encoding.max_tokens) {
    const int32_t end_of_text = sample.ids.back();
    sample.ids.resize(encoding.max_tokens);
    sample.is_target.resize(encoding.max_tokens);
    sample.ids.back() = end_of_text;
    sample.is_target.back() = true;
  }
  return sample;
}

absl::StatusOr<std::vector<PreferencePair>> ReadComparisons(const std::filesystem::path& file,
                                                            const Encoding& encoding) {
  std::vector<PreferencePair> pairs;
  ALMOST_RETURN_IF_ERROR(ForEachLine(file, [&](const ordered_json& line) -> absl::Status {
    const std::string *prompt = Text(line, "prompt"), *chosen = Text(line, "chosen"),
                      *rejected = Text(line, "rejected");
    if (prompt == nullptr || chosen == nullptr || rejected == nullptr) {
      return absl::InvalidArgumentError("needs \"prompt\", \"chosen\" and \"rejected\", strings");
    }
    PreferencePair& pair = pairs.emplace_back();
    pair.prompt = *prompt;
    pair.chosen_characters = chosen->size();
    pair.rejected_characters = rejected->size();
    ALMOST_ASSIGN_OR_RETURN(pair.chosen, EncodeResponse(*prompt, *chosen, encoding));
    ALMOST_ASSIGN_OR_RETURN(pair.rejected, EncodeResponse(*prompt, *rejected, encoding));
    return absl::OkStatus();
  }));
  return pairs;
}

absl::StatusOr<std::vector<std::string>> ReadPrompts(const std::filesystem::path& file) {
  std::vector<std::string> prompts;
  ALMOST_RETURN_IF_ERROR(ForEachLine(file, [&](const ordered_json& line) -> absl::Status {
    const std::string* prompt = Text(line, "prompt");
    if (prompt == nullptr) return absl::InvalidArgumentError("needs \"prompt\", a string");
    prompts.push_back(*prompt);
    return absl::OkStatus();
  }));
  return prompts;
}

bool IsHeldOut(const std::string& prompt, double fraction) {
  return RandomUnit(DeriveSeed(0, prompt), 0, 0) < fraction;
}

}  // namespace almost::trainer
