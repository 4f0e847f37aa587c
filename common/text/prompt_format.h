#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/text/tokenizer.h"

namespace almost {

// One turn of a dialogue.
struct Message {
  std::string role;  // "user" or "assistant"
  std::string content;
};

// How dialogues and demonstrations are written out for a model that only continues text.
//
// A dialogue is, turn by turn, human_prefix + question + assistant_prefix + answer_prefix + answer. It is
// completed after assistant_prefix, so that the model begins its answer with answer_prefix itself: tokenizers
// join a blank to the word after it.
struct PromptFormat {
  std::string name;              // "paper", "world", or the name a manifest gives it
  std::string human_prefix;      // before a user's turn
  std::string assistant_prefix;  // before an assistant's turn
  std::string answer_prefix;     // between assistant_prefix and the answer
  bool trims_start = false;      // whether the newlines that a text would begin with are left out

  // Of a few-shot prompt only.
  bool has_instruction = true;    // whether the demonstration file's instruction comes first
  std::string separator;          // after the instruction and after each demonstration
  std::string few_shot_end;       // after the last assistant_prefix
  std::vector<std::string> stop;  // any of these ends a vanilla model's answer

  // METHOD.md section 2, to the letter of the official code: a few-shot prompt ends in "Assistant: ", with a
  // blank, any other in "Assistant:".
  static PromptFormat Paper();
  // The tiny world's documents: "Human: q\n\nAssistant: a\n\n"; demonstrations are earlier turns.
  static PromptFormat World();
  // The preset of that name. kInvalidArgument: there is none.
  static absl::StatusOr<PromptFormat> Named(absl::string_view name);

  // The dialogue so far and the marker after which the assistant answers; the last message is the user's.
  // kInvalidArgument: no message, an unknown role, or a last message that is not the user's.
  absl::StatusOr<std::string> RenderForCompletion(const std::vector<Message>& messages) const;

  // The same layout as a Jinja chat template for tokenizer_config.json, so that transformers and vLLM chat
  // with the exported model as it is; `eos_token` ends each assistant turn. `begins_with_bos`: whether Encode
  // of the tokenizer puts its `bos_token` in front.
  std::string ChatTemplate(bool begins_with_bos) const;
};

// A stretch of a dialogue for training and scoring. Joined, the texts are the dialogue; end-of-text follows
// each piece of the assistant's.
struct DialoguePiece {
  std::string text;
  bool is_assistant = false;  // written by the assistant: answer_prefix and the answer
};

// Up to a last message of the user's, the last piece ends ready for completion, as RenderForCompletion does.
// kInvalidArgument: no message or an unknown role.
absl::StatusOr<std::vector<DialoguePiece>> DialoguePieces(const PromptFormat& format,
                                                          const std::vector<Message>& messages);

// A dialogue as token ids, the tokenizer's own markers (BOS) in front and end-of-text after each assistant
// turn: what the trainer learns from, the reward model scores, and a chat model continues. With a
// tokenizer.json, the ids of ChatTemplate's text.
struct EncodedDialogue {
  std::vector<int32_t> ids;
  std::vector<bool> is_assistant;  // as long as ids: the assistant's tokens, its end-of-text included
};

// Between two end-of-texts, question and answer are encoded together; a token that spans their border counts
// as the assistant's. kInvalidArgument: as DialoguePieces; kFailedPrecondition: an assistant turn, but the
// tokenizer has no end-of-text token.
absl::StatusOr<EncodedDialogue> EncodeDialogue(const PromptFormat& format, const Tokenizer& tokenizer,
                                               const std::vector<Message>& messages);

// A demonstration file: parts separated by "\n\n-----"; part 0 is an instruction (may be empty), each other
// part one demonstration, itself "\n\nHuman: …\n\nAssistant: …". Blank parts are left out; the others are
// kept to the letter, newlines at their ends too.
struct Demonstrations {
  std::string instruction;
  std::vector<std::string> examples;

  // kInvalidArgument: no demonstration in `text`.
  static absl::StatusOr<Demonstrations> Parse(absl::string_view text);
};

// Instruction, the first `shots` demonstrations, and the dialogue ready to be continued.
// kFailedPrecondition: the file holds fewer demonstrations than `shots`; kInvalidArgument: `shots` is
// negative, or as RenderForCompletion.
absl::StatusOr<std::string> FewShotPrompt(const PromptFormat& format, const Demonstrations& demonstrations,
                                          int shots, const std::vector<Message>& messages);

// The same for a model that plays the user: the dialogue so far, whose last message is the assistant's, and
// the marker after which the user speaks, without the blank at its end. Errors as FewShotPrompt.
absl::StatusOr<std::string> FewShotUserPrompt(const PromptFormat& format,
                                              const Demonstrations& demonstrations, int shots,
                                              const std::vector<Message>& messages);

}  // namespace almost
