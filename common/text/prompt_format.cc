#include "common/text/prompt_format.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"

namespace almost {
namespace {

constexpr absl::string_view kUser = "user";
constexpr absl::string_view kAssistant = "assistant";

absl::string_view WithoutLeadingNewlines(absl::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  return text;
}

absl::Status ValidateMessages(const std::vector<Message>& messages) {
  if (messages.empty()) return absl::InvalidArgumentError("messages: at least one is needed");
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != kUser && messages[i].role != kAssistant) {
      return absl::InvalidArgumentError(absl::StrCat(
          "messages[", i, "].role: must be \"user\" or \"assistant\", is \"", messages[i].role, "\""));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateForCompletion(const std::vector<Message>& messages) {
  ALMOST_RETURN_IF_ERROR(ValidateMessages(messages));
  if (messages.back().role != kUser) {
    return absl::InvalidArgumentError(absl::StrCat(
        "messages[", messages.size() - 1, "].role: the last message must be the user's, is the assistant's"));
  }
  return absl::OkStatus();
}

// Pieces of valid messages, nothing trimmed.
std::vector<DialoguePiece> Pieces(const PromptFormat& format, const std::vector<Message>& messages) {
  std::vector<DialoguePiece> pieces;
  std::string prompt;
  for (const Message& message : messages) {
    if (message.role == kUser) {
      absl::StrAppend(&prompt, format.human_prefix, message.content);
    } else {
      pieces.push_back({absl::StrCat(prompt, format.assistant_prefix), false});
      pieces.push_back({absl::StrCat(format.answer_prefix, message.content), true});
      prompt.clear();
    }
  }
  if (messages.back().role == kUser) pieces.push_back({absl::StrCat(prompt, format.assistant_prefix), false});
  return pieces;
}

std::string Join(const std::vector<DialoguePiece>& pieces) {
  std::string text;
  for (const DialoguePiece& piece : pieces) text += piece.text;
  return text;
}

// A few-shot prompt that ends in `dialogue`.
absl::StatusOr<std::string> WithDemonstrations(const PromptFormat& format,
                                               const Demonstrations& demonstrations, int shots,
                                               absl::string_view dialogue) {
  if (shots < 0) return absl::InvalidArgumentError(absl::StrCat("shots: must not be negative, is ", shots));
  if (static_cast<size_t>(shots) > demonstrations.examples.size()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "shots: ", shots, " asked for, but the demonstration file holds ", demonstrations.examples.size()));
  }
  std::string prompt;
  if (format.has_instruction) absl::StrAppend(&prompt, demonstrations.instruction, format.separator);
  for (int i = 0; i < shots; ++i) absl::StrAppend(&prompt, demonstrations.examples[i], format.separator);
  absl::StrAppend(&prompt, dialogue);
  return format.trims_start ? std::string(WithoutLeadingNewlines(prompt)) : prompt;
}

// What the tokenizer puts in front of a text, as a rule BOS; what it may put behind is left out.
std::vector<int32_t> FrontMarkers(const Tokenizer& tokenizer) {
  const std::vector<int32_t> plain = tokenizer.Encode("a", /*add_special_tokens=*/false);
  std::vector<int32_t> with_markers = tokenizer.Encode("a", /*add_special_tokens=*/true);
  with_markers.erase(std::search(with_markers.begin(), with_markers.end(), plain.begin(), plain.end()),
                     with_markers.end());
  return with_markers;
}

std::string JinjaString(absl::string_view text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"'", "\\'"}, {"\n", "\\n"}}), "'");
}

}  // namespace

PromptFormat PromptFormat::Paper() {
  return {.name = "paper",
          .human_prefix = "\n\nHuman: ",
          .assistant_prefix = "\n\nAssistant:",
          .answer_prefix = " ",
          .trims_start = false,
          .has_instruction = true,
          .separator = "\n\n-----",
          .few_shot_end = " ",
          .stop = {"\n\n-----", "Human:", "Assistant:"}};
}

PromptFormat PromptFormat::World() {
  return {.name = "world",
          .human_prefix = "\n\nHuman: ",
          .assistant_prefix = "\n\nAssistant:",
          .answer_prefix = " ",
          .trims_start = true,
          .has_instruction = false,
          .separator = "",
          .few_shot_end = "",
          .stop = {"\n"}};
}

absl::StatusOr<PromptFormat> PromptFormat::Named(absl::string_view name) {
  for (const auto& format : {Paper(), World()}) {
    if (format.name == name) return format;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("prompt format: must be \"paper\" or \"world\", is \"", name, "\""));
}

absl::StatusOr<std::string> PromptFormat::RenderForCompletion(const std::vector<Message>& messages) const {
  ALMOST_RETURN_IF_ERROR(ValidateForCompletion(messages));
  const std::string text = Join(Pieces(*this, messages));
  return trims_start ? std::string(WithoutLeadingNewlines(text)) : text;
}

std::string PromptFormat::ChatTemplate(bool begins_with_bos) const {
  const auto prefix = [&](const std::string& text) {
    if (!trims_start) return JinjaString(text);
    return absl::StrCat("(", JinjaString(WithoutLeadingNewlines(text)), " if loop.first else ",
                        JinjaString(text), ")");
  };
  return absl::StrCat(begins_with_bos ? "{{ bos_token }}" : "", "{% for message in messages %}",  //
                      "{% if message['role'] == 'user' %}{{ ", prefix(human_prefix),
                      " + message['content'] }}",                                                       //
                      "{% elif message['role'] == 'assistant' %}{{ ", prefix(assistant_prefix), " + ",  //
                      JinjaString(answer_prefix), " + message['content'] + eos_token }}",               //
                      "{% else %}{{ raise_exception('role must be user or assistant, is ' + message['role']) "
                      "}}{% endif %}",  //
                      "{% endfor %}{% if add_generation_prompt %}{{ ", JinjaString(assistant_prefix),
                      " }}{% endif %}");
}

absl::StatusOr<std::vector<DialoguePiece>> DialoguePieces(const PromptFormat& format,
                                                          const std::vector<Message>& messages) {
  ALMOST_RETURN_IF_ERROR(ValidateMessages(messages));
  std::vector<DialoguePiece> pieces = Pieces(format, messages);
  if (format.trims_start) pieces.front().text = std::string(WithoutLeadingNewlines(pieces.front().text));
  return pieces;
}

absl::StatusOr<EncodedDialogue> EncodeDialogue(const PromptFormat& format, const Tokenizer& tokenizer,
                                               const std::vector<Message>& messages) {
  ALMOST_ASSIGN_OR_RETURN(const std::vector<DialoguePiece> pieces, DialoguePieces(format, messages));
  EncodedDialogue dialogue;
  const std::optional<int32_t> eos = tokenizer.eos_id();
  // A piece is encoded after what comes before it, the markers in front of every text or an end-of-text: some
  // tokenizers put a blank in front of a text, but none after a special token. Without these ids themselves.
  const auto encode_after = [&](const std::vector<int32_t>& before, absl::string_view text) {
    const std::string spelled = tokenizer.Decode(before, /*skip_special_tokens=*/false);
    std::vector<int32_t> ids = tokenizer.Encode(absl::StrCat(spelled, text), /*add_special_tokens=*/false);
    // A tokenizer.model takes a spelled-out special token for text.
    if (ids.size() < before.size() || !std::equal(before.begin(), before.end(), ids.begin())) {
      return tokenizer.Encode(text, /*add_special_tokens=*/false);
    }
    ids.erase(ids.begin(), ids.begin() + static_cast<ptrdiff_t>(before.size()));
    return ids;
  };
  std::vector<int32_t> before = FrontMarkers(tokenizer);
  dialogue.ids = before;
  // Pieces alternate: a prompt, its answer, the next prompt, …
  for (size_t i = 0; i < pieces.size(); i += 2) {
    const std::vector<int32_t> prompt = encode_after(before, pieces[i].text);
    if (i + 1 == pieces.size()) {
      dialogue.ids.insert(dialogue.ids.end(), prompt.begin(), prompt.end());
      break;
    }
    if (!eos.has_value()) {
      return absl::FailedPreconditionError(
          "the tokenizer has no end-of-text token to end an assistant turn with");
    }
    const std::vector<int32_t> turn = encode_after(before, pieces[i].text + pieces[i + 1].text);
    before = {*eos};
    const size_t border =
        std::mismatch(prompt.begin(), prompt.end(), turn.begin(), turn.end()).first - prompt.begin();
    dialogue.is_assistant.resize(dialogue.ids.size() + border, false);
    dialogue.ids.insert(dialogue.ids.end(), turn.begin(), turn.end());
    dialogue.ids.push_back(*eos);
    dialogue.is_assistant.resize(dialogue.ids.size(), true);
  }
  dialogue.is_assistant.resize(dialogue.ids.size(), false);
  return dialogue;
}

absl::StatusOr<Demonstrations> Demonstrations::Parse(absl::string_view text) {
  Demonstrations demonstrations;
  const std::vector<absl::string_view> parts = absl::StrSplit(text, "\n\n-----");
  demonstrations.instruction = std::string(parts.front());
  for (size_t i = 1; i < parts.size(); ++i) {
    if (parts[i].find_first_not_of("\n ") != absl::string_view::npos) {
      demonstrations.examples.emplace_back(parts[i]);
    }
  }
  if (demonstrations.examples.empty()) {
    return absl::InvalidArgumentError(
        "demonstrations: no part after the first; parts are separated by a blank line and \"-----\"");
  }
  return demonstrations;
}

absl::StatusOr<std::string> FewShotPrompt(const PromptFormat& format, const Demonstrations& demonstrations,
                                          int shots, const std::vector<Message>& messages) {
  ALMOST_RETURN_IF_ERROR(ValidateForCompletion(messages));
  return WithDemonstrations(format, demonstrations, shots,
                            absl::StrCat(Join(Pieces(format, messages)), format.few_shot_end));
}

absl::StatusOr<std::string> FewShotUserPrompt(const PromptFormat& format,
                                              const Demonstrations& demonstrations, int shots,
                                              const std::vector<Message>& messages) {
  ALMOST_RETURN_IF_ERROR(ValidateMessages(messages));
  if (messages.back().role != kAssistant) {
    return absl::InvalidArgumentError(absl::StrCat(
        "messages[", messages.size() - 1, "].role: the last message must be the assistant's, is the user's"));
  }
  return WithDemonstrations(
      format, demonstrations, shots,
      absl::StrCat(Join(Pieces(format, messages)), absl::StripTrailingAsciiWhitespace(format.human_prefix)));
}

}  // namespace almost
