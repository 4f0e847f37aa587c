#include "common/text/prompt_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/base/scratch_folder.h"

namespace almost {
namespace {

using ::testing::HasSubstr;

constexpr char kFile[] =
    "Be kind.\n\n-----\n\nHuman: q1\n\nAssistant: a1\n\n-----\n\nHuman: q2\n\nAssistant: a2\n\n-----\n";

const std::vector<Message> kQuestion = {{"user", "Why?"}};
const std::vector<Message> kDialogue = {{"user", "Why?"}, {"assistant", "So."}, {"user", "Really?"}};

Demonstrations Parsed() { return *Demonstrations::Parse(kFile); }

TEST(DemonstrationsTest, PartZeroIsTheInstructionAndBlankPartsAreLeftOut) {
  const Demonstrations parsed = Parsed();
  EXPECT_EQ(parsed.instruction, "Be kind.");
  EXPECT_THAT(parsed.examples,
              testing::ElementsAre("\n\nHuman: q1\n\nAssistant: a1", "\n\nHuman: q2\n\nAssistant: a2"));
}

TEST(DemonstrationsTest, RefusesAFileWithoutDemonstrations) {
  EXPECT_EQ(Demonstrations::Parse("Be kind.\n\n-----\n").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Demonstrations::Parse("").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(FewShotPromptTest, PaperIsTheOfficialCodesPrompt) {
  EXPECT_EQ(*FewShotPrompt(PromptFormat::Paper(), Parsed(), 2, kQuestion),
            "Be kind.\n\n-----\n\nHuman: q1\n\nAssistant: a1\n\n-----\n\nHuman: q2\n\nAssistant: a2\n\n-----"
            "\n\nHuman: Why?\n\nAssistant: ");
  EXPECT_EQ(*FewShotPrompt(PromptFormat::Paper(), Parsed(), 0, kQuestion),
            "Be kind.\n\n-----\n\nHuman: Why?\n\nAssistant: ");
}

TEST(FewShotPromptTest, TheUserSpeaksAfterTheHumanMarker) {
  const std::vector<Message> dialogue = {{"user", "Why?"}, {"assistant", "So."}};
  EXPECT_EQ(*FewShotUserPrompt(PromptFormat::World(), Parsed(), 1, dialogue),
            "Human: q1\n\nAssistant: a1\n\nHuman: Why?\n\nAssistant: So.\n\nHuman:");
  EXPECT_EQ(*FewShotUserPrompt(PromptFormat::Paper(), Parsed(), 0, dialogue),
            "Be kind.\n\n-----\n\nHuman: Why?\n\nAssistant: So.\n\nHuman:");
  EXPECT_EQ(FewShotUserPrompt(PromptFormat::World(), Parsed(), 1, {{"user", "Why?"}}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(FewShotPromptTest, WorldWritesDemonstrationsAsEarlierTurns) {
  EXPECT_EQ(*FewShotPrompt(PromptFormat::World(), Parsed(), 2, kQuestion),
            "Human: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: a2\n\nHuman: Why?\n\nAssistant:");
  EXPECT_EQ(*FewShotPrompt(PromptFormat::World(), Parsed(), 0, kQuestion), "Human: Why?\n\nAssistant:");
}

TEST(FewShotPromptTest, RefusesMoreShotsThanTheFileHolds) {
  const auto prompt = FewShotPrompt(PromptFormat::Paper(), Parsed(), 3, kQuestion);
  EXPECT_EQ(prompt.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(prompt.status().message(), HasSubstr("holds 2"));
  EXPECT_EQ(FewShotPrompt(PromptFormat::Paper(), Parsed(), -1, kQuestion).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(PromptFormatTest, RendersADialogueForCompletion) {
  EXPECT_EQ(*PromptFormat::World().RenderForCompletion(kDialogue),
            "Human: Why?\n\nAssistant: So.\n\nHuman: Really?\n\nAssistant:");
  EXPECT_EQ(*PromptFormat::Paper().RenderForCompletion(kDialogue),
            "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Really?\n\nAssistant:");
}

TEST(PromptFormatTest, RefusesWhatCannotBeCompleted) {
  const PromptFormat format = PromptFormat::Paper();
  EXPECT_EQ(format.RenderForCompletion({}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(format.RenderForCompletion({{"user", "a"}, {"assistant", "b"}}).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto unknown = format.RenderForCompletion({{"system", "a"}, {"user", "b"}});
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(unknown.status().message(), testing::AllOf(HasSubstr("messages[0].role"), HasSubstr("system")));
}

TEST(PromptFormatTest, PresetsAreFoundByName) {
  EXPECT_EQ(PromptFormat::Named("world")->stop, PromptFormat::World().stop);
  EXPECT_EQ(PromptFormat::Named("chatml").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(PromptFormatTest, ChatTemplateSpellsTheSameLayout) {
  EXPECT_EQ(
      PromptFormat::World().ChatTemplate(true),
      "{{ bos_token }}{% for message in messages %}"
      "{% if message['role'] == 'user' %}"
      "{{ ('Human: ' if loop.first else '\\n\\nHuman: ') + message['content'] }}"
      "{% elif message['role'] == 'assistant' %}"
      "{{ ('Assistant:' if loop.first else '\\n\\nAssistant:') + ' ' + message['content'] + eos_token }}"
      "{% else %}{{ raise_exception('role must be user or assistant, is ' + message['role']) }}{% endif %}"
      "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}");
}

TEST(DialoguePiecesTest, JoinedTheyAreTheDialogue) {
  const auto pieces = DialoguePieces(PromptFormat::World(), kDialogue);
  ASSERT_TRUE(pieces.ok());
  ASSERT_EQ(pieces->size(), 3u);
  EXPECT_EQ((*pieces)[0].text, "Human: Why?\n\nAssistant:");
  EXPECT_EQ((*pieces)[1].text, " So.");
  EXPECT_EQ((*pieces)[2].text, "\n\nHuman: Really?\n\nAssistant:");
  EXPECT_FALSE((*pieces)[0].is_assistant);
  EXPECT_TRUE((*pieces)[1].is_assistant);
  EXPECT_FALSE((*pieces)[2].is_assistant);
}

class EncodeDialogueTest : public testing::Test {
 protected:
  std::shared_ptr<const Tokenizer> tokenizer_ = *Tokenizer::Load(
      std::filesystem::path(std::getenv("ALMOST_SOURCE_DIR")) / "tests/parity/goldens/tokenizers/byte_level");
};

TEST_F(EncodeDialogueTest, MarksTheAssistantsTokensAndEndsItsTurns) {
  const PromptFormat format = PromptFormat::World();
  const std::vector<Message> messages = {
      {"user", "Why?"}, {"assistant", "So."}, {"user", "Hm"}, {"assistant", "Yes!"}};
  const auto dialogue = EncodeDialogue(format, *tokenizer_, messages);
  ASSERT_TRUE(dialogue.ok()) << dialogue.status();
  ASSERT_EQ(dialogue->ids.size(), dialogue->is_assistant.size());
  std::vector<int32_t> said;
  for (size_t i = 0; i < dialogue->ids.size(); ++i) {
    if (dialogue->is_assistant[i]) said.push_back(dialogue->ids[i]);
  }
  EXPECT_EQ(tokenizer_->Decode(said, false), " So.<|endoftext|> Yes!<|endoftext|>");
  // As one text with the end-of-text spelled out: what a chat template gives to the tokenizer.
  EXPECT_EQ(dialogue->ids,
            tokenizer_->Encode("Human: Why?\n\nAssistant: So.<|endoftext|>\n\nHuman: Hm\n\nAssistant: "
                               "Yes!<|endoftext|>",
                               true));
}

TEST_F(EncodeDialogueTest, EqualsTheChatTemplatesTextWithEveryTokenizer) {
  const std::filesystem::path goldens =
      std::filesystem::path(std::getenv("ALMOST_SOURCE_DIR")) / "tests/parity/goldens/tokenizers";
  const ScratchFolder folder;
  std::ifstream llama2(goldens / "llama2/tokenizer.json");
  // As Mistral's and newer Llama tokenizers have it: a blank in front of a text, but none after a special
  // token.
  nlohmann::json blank_in_front = nlohmann::json::parse(llama2);
  blank_in_front["normalizer"] = nullptr;
  blank_in_front["pre_tokenizer"] = {
      {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "first"}, {"split", false}};
  std::ofstream(folder / "tokenizer.json") << blank_in_front;
  const auto expect_equal = [](const Tokenizer& tokenizer) {
    const auto dialogue = EncodeDialogue(
        PromptFormat::Paper(), tokenizer,
        {{"user", "Why?"}, {"assistant", "So."}, {"user", "Hm"}, {"assistant", "Yes!"}, {"user", " a"}});
    ASSERT_TRUE(dialogue.ok()) << dialogue.status();
    const auto spelled = [&tokenizer](std::optional<int32_t> id) {
      return tokenizer.Decode(std::vector<int32_t>{*id}, false);
    };
    const std::string eos = spelled(tokenizer.eos_id());
    EXPECT_EQ(
        dialogue->ids,
        tokenizer.Encode(absl::StrCat(spelled(tokenizer.bos_id()), "\n\nHuman: Why?\n\nAssistant: So.", eos,
                                      "\n\nHuman: Hm\n\nAssistant: Yes!", eos, "\n\nHuman:  a\n\nAssistant:"),
                         false));
  };
  for (const char* name : {"byte_level", "llama3", "llama2"}) {
    SCOPED_TRACE(name);
    expect_equal(**Tokenizer::Load(goldens / name));
  }
  // Nor does a tokenizer that ends every text end a turn twice, or the question before its answer.
  for (const char* adds_eos : {"false", "true"}) {
    SCOPED_TRACE(adds_eos);
    std::ofstream(folder / "tokenizer_config.json")
        << R"({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_eos_token": )"
        << adds_eos << "}";
    expect_equal(**Tokenizer::Load(folder));
  }
}

TEST_F(EncodeDialogueTest, TheAnswerFollowsThePromptThatIsCompleted) {
  const PromptFormat format = PromptFormat::Paper();
  const auto prompt = EncodeDialogue(format, *tokenizer_, kDialogue);
  ASSERT_TRUE(prompt.ok());
  EXPECT_EQ(tokenizer_->Decode(prompt->ids, true), *format.RenderForCompletion(kDialogue));
  std::vector<Message> answered = kDialogue;
  answered.push_back({"assistant", "Yes."});
  const auto whole = EncodeDialogue(format, *tokenizer_, answered);
  ASSERT_TRUE(whole.ok());
  EXPECT_TRUE(std::equal(prompt->ids.begin(), prompt->ids.end(), whole->ids.begin()));
  EXPECT_FALSE(whole->is_assistant[prompt->ids.size() - 1]);
  EXPECT_TRUE(whole->is_assistant[prompt->ids.size()]);
}

}  // namespace
}  // namespace almost
