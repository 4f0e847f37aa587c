#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace almost {

// One turn of a dialogue.
struct Message {
  std::string role;  // "user" or "assistant"
  std::string content;
};

// How dialogues and demonstrations are written out for a model that only continues text.
// METHOD.md section 2 is `Paper()`; the tiny world's documents are `World()`.
struct PromptFormat {
  std::string name;              // "paper", "world", or the name a manifest gives it
  std::string separator;         // between demonstrations in the prompt
  std::string human_prefix;      // before a user's turn
  std::string assistant_prefix;  // before an assistant's turn; the model goes on from here
  std::string
      assistant_suffix;  // after "assistant_prefix", before the content (" " where the prefix has none)
  std::vector<std::string> stop;  // any of these ends a vanilla model's answer

  static PromptFormat Paper();
  static PromptFormat World();

  // The dialogue so far and the marker after which the assistant answers; the last message is the user's.
  // kInvalidArgument: no message, an unknown role, or a last message that is not the user's.
  absl::StatusOr<std::string> RenderForCompletion(const std::vector<Message>& messages) const;

  // The same layout as a Jinja chat template for tokenizer_config.json, so that transformers and vLLM chat
  // with the exported model as it is; `eos_token` ends each assistant turn.
  std::string ChatTemplate() const;
};

// A demonstration file: parts separated by "\n\n-----"; part 0 is an instruction (may be empty), each other
// part one demonstration, itself "Human: …\n\nAssistant: …".
struct Demonstrations {
  std::string instruction;
  std::vector<std::string> examples;

  // kInvalidArgument: no demonstration in `text`.
  static absl::StatusOr<Demonstrations> Parse(absl::string_view text);
};

// Instruction, the first `shots` demonstrations, and the dialogue ready to be continued.
// kFailedPrecondition: the file holds fewer demonstrations than `shots`.
absl::StatusOr<std::string> FewShotPrompt(const PromptFormat& format, const Demonstrations& demonstrations,
                                          int shots, const std::vector<Message>& messages);

}  // namespace almost
