#include "services/trainer/core/datasets.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
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

// Those lines of the file that `parse` can be made of; an error of it is the file's. `keep` sees each.
template <typename T>
absl::StatusOr<Dataset<T>> Open(const std::filesystem::path& file, typename Dataset<T>::Parse parse,
                                const std::function<bool(const ordered_json&, const T&)>& keep) {
  ALMOST_ASSIGN_OR_RETURN(std::shared_ptr<const JsonLinesFile> opened,
                          JsonLinesFile::Open(file, [&](const ordered_json& line) -> absl::StatusOr<bool> {
                            ALMOST_ASSIGN_OR_RETURN(const T parsed, parse(line));
                            return keep(line, parsed);
                          }));
  return Dataset<T>(std::move(opened), std::move(parse));
}

template <typename T>
bool KeepAll(const ordered_json&, const T&) {
  return true;
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

struct Comparison {
  const std::string& prompt;
  const std::string& chosen;
  const std::string& rejected;
  double margin;
};

absl::StatusOr<Comparison> ComparisonOf(const ordered_json& line) {
  const std::string *prompt = Text(line, "prompt"), *chosen = Text(line, "chosen"),
                    *rejected = Text(line, "rejected");
  if (prompt == nullptr || chosen == nullptr || rejected == nullptr) {
    return absl::InvalidArgumentError("needs \"prompt\", \"chosen\" and \"rejected\", strings");
  }
  const auto found = line.find("margin");
  const double margin = found == line.end() ? 0.0 : found->is_number() ? found->get<double>() : NAN;
  if (!(margin >= 0)) return absl::InvalidArgumentError("\"margin\" must be a number of at least 0");
  return Comparison{*prompt, *chosen, *rejected, margin};
}

absl::StatusOr<std::string> Prompt(const ordered_json& line) {
  const std::string* prompt = Text(line, "prompt");
  if (prompt == nullptr) return absl::InvalidArgumentError("needs \"prompt\", a string");
  return *prompt;
}

absl::Status Document(const ordered_json& line) {
  return Text(line, "text") != nullptr ? absl::OkStatus()
                                       : absl::InvalidArgumentError("needs \"text\", a string");
}

absl::Status CheckFirstLine(absl::string_view field, const std::filesystem::path& file,
                            const std::function<absl::Status(const ordered_json&)>& check) {
  std::ifstream stream(file);
  std::string line;
  absl::Status status;
  if (!stream) {
    status = absl::InvalidArgumentError(absl::StrCat(file.string(), ": cannot be read"));
  } else if (!std::getline(stream, line)) {
    status = absl::InvalidArgumentError(absl::StrCat(file.string(), ": is empty"));
  } else {
    status = ForEachJsonLine(file.string(), line + "\n", [&](int64_t, const ordered_json& object) {
      return Annotate(check(object), absl::StrCat(file.string(), " line 1"));
    });
  }
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", status.message()));
}

absl::StatusOr<Sample> Encode(const std::vector<Message>& messages, const Encoding& encoding) {
  ALMOST_ASSIGN_OR_RETURN(EncodedDialogue dialogue,
                          EncodeDialogue(encoding.format, *encoding.tokenizer, messages));
  Sample sample{std::move(dialogue.ids), std::move(dialogue.is_assistant)};
  if (!sample.is_target.empty()) sample.is_target[0] = false;
  return sample;
}

}  // namespace

int64_t Sample::num_targets() const { return std::count(is_target.begin(), is_target.end(), true); }

int64_t Sample::num_prompt_tokens() const {
  const auto first = std::find(is_target.begin(), is_target.end(), true);
  return first == is_target.end() ? 0 : std::max<int64_t>(0, first - is_target.begin() - 1);
}

absl::StatusOr<Dialogues> ReadDialogues(const std::filesystem::path& file, const Encoding& encoding) {
  Dialogues dialogues;
  const auto whole = [encoding](const ordered_json& line) -> absl::StatusOr<Sample> {
    ALMOST_ASSIGN_OR_RETURN(const std::vector<Message> messages, Messages(line));
    return Encode(messages, encoding);
  };
  const auto cut = [max_tokens = static_cast<size_t>(encoding.max_tokens)](Sample& sample) {
    if (sample.ids.size() <= max_tokens) return false;
    sample.ids.resize(max_tokens);
    sample.is_target.resize(max_tokens);
    return true;
  };
  ALMOST_ASSIGN_OR_RETURN(std::shared_ptr<const JsonLinesFile> opened,
                          JsonLinesFile::Open(file, [&](const ordered_json& line) -> absl::StatusOr<bool> {
                            ALMOST_ASSIGN_OR_RETURN(Sample sample, whole(line));
                            dialogues.num_cut += cut(sample) ? 1 : 0;
                            const bool is_kept = sample.num_targets() > 0;
                            dialogues.num_without_targets += is_kept ? 0 : 1;
                            return is_kept;
                          }));
  if (opened->size() == 0) {
    return absl::InvalidArgumentError(absl::StrCat(file.string(), ": no dialogue with an assistant's turn"));
  }
  dialogues.samples = {std::move(opened), [whole, cut](const ordered_json& line) -> absl::StatusOr<Sample> {
                         ALMOST_ASSIGN_OR_RETURN(Sample sample, whole(line));
                         cut(sample);
                         return sample;
                       }};
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

absl::StatusOr<Comparisons> ReadComparisons(const std::filesystem::path& file, const Encoding& encoding) {
  Comparisons comparisons;
  const auto parse = [encoding](const ordered_json& line) -> absl::StatusOr<PreferencePair> {
    ALMOST_ASSIGN_OR_RETURN(const Comparison comparison, ComparisonOf(line));
    PreferencePair pair{.chosen_characters = comparison.chosen.size(),
                        .rejected_characters = comparison.rejected.size(),
                        .margin = comparison.margin};
    ALMOST_ASSIGN_OR_RETURN(pair.chosen, EncodeResponse(comparison.prompt, comparison.chosen, encoding));
    ALMOST_ASSIGN_OR_RETURN(pair.rejected, EncodeResponse(comparison.prompt, comparison.rejected, encoding));
    return pair;
  };
  const auto keep = [&](const ordered_json& line, const PreferencePair&) {
    comparisons.prompts.push_back(HashOfPrompt(*Text(line, "prompt")));
    return true;
  };
  ALMOST_ASSIGN_OR_RETURN(comparisons.pairs, Open<PreferencePair>(file, parse, keep));
  return comparisons;
}

absl::StatusOr<Dataset<Sample>> ReadTexts(const std::filesystem::path& file,
                                          std::shared_ptr<const Tokenizer> tokenizer, int max_tokens) {
  const auto parse = [tokenizer = std::move(tokenizer),
                      max_tokens](const ordered_json& line) -> absl::StatusOr<Sample> {
    ALMOST_RETURN_IF_ERROR(Document(line));
    Sample sample;
    sample.ids = tokenizer->Encode(*Text(line, "text"), /*add_special_tokens=*/true);
    if (tokenizer->eos_id()) sample.ids.push_back(*tokenizer->eos_id());
    if (static_cast<int>(sample.ids.size()) > max_tokens) sample.ids.resize(max_tokens);
    if (sample.ids.size() < 2) return absl::InvalidArgumentError("\"text\" has fewer than two tokens");
    sample.is_target.assign(sample.ids.size(), true);
    sample.is_target[0] = false;
    return sample;
  };
  return Open<Sample>(file, parse, KeepAll<Sample>);
}

absl::StatusOr<Dataset<std::string>> ReadPrompts(const std::filesystem::path& file, const Encoding& encoding,
                                                 int max_new_tokens, absl::string_view reader) {
  ALMOST_ASSIGN_OR_RETURN(
      std::shared_ptr<const JsonLinesFile> opened,
      JsonLinesFile::Open(file, [&](const ordered_json& line) -> absl::StatusOr<bool> {
        ALMOST_ASSIGN_OR_RETURN(const std::string prompt, Prompt(line));
        ALMOST_ASSIGN_OR_RETURN(const Sample sample, Encode({{"user", prompt}}, encoding));
        if (static_cast<int64_t>(sample.ids.size()) + max_new_tokens > encoding.max_tokens) {
          return absl::InvalidArgumentError(absl::StrCat(
              "\"prompt\" has ", sample.ids.size(), " tokens: with max_new_tokens, ", max_new_tokens,
              ", they are more than ", encoding.max_tokens, ", the context of ", reader));
        }
        return true;
      }));
  return Dataset<std::string>(std::move(opened), Prompt);
}

absl::Status CheckDataset(const KindSpec& kind) {
  struct Check {
    absl::Status operator()(const PretrainSpec& spec) const {
      if (spec.dataset.empty()) return absl::OkStatus();
      return CheckFirstLine("pretrain.dataset", spec.dataset, Document);
    }
    absl::Status operator()(const SftSpec& spec) const {
      return CheckFirstLine("sft.dataset", spec.dataset,
                            [](const ordered_json& line) { return Messages(line).status(); });
    }
    absl::Status operator()(const RewardModelSpec& spec) const {
      return CheckFirstLine("reward_model.dataset", spec.dataset,
                            [](const ordered_json& line) { return ComparisonOf(line).status(); });
    }
    absl::Status operator()(const DpoSpec& spec) const {
      return CheckFirstLine("dpo.dataset", spec.dataset,
                            [](const ordered_json& line) { return ComparisonOf(line).status(); });
    }
    absl::Status operator()(const PpoSpec& spec) const {
      const absl::string_view kind = KindName(spec);
      if (!spec.mix_dataset.empty()) {
        ALMOST_RETURN_IF_ERROR(
            CheckFirstLine(absl::StrCat(kind, ".mix_dataset"), spec.mix_dataset, Document));
      }
      return CheckFirstLine(absl::StrCat(kind, ".dataset"), spec.dataset,
                            [](const ordered_json& line) { return Prompt(line).status(); });
    }
  };
  return std::visit(Check(), kind);
}

uint64_t HashOfPrompt(const std::string& prompt) { return DeriveSeed(0, prompt); }

bool IsHeldOut(uint64_t prompt, double fraction) { return RandomUnit(prompt, 0, 0) < fraction; }

}  // namespace almost::trainer
