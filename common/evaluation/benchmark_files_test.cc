#include "common/evaluation/benchmark_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/base/scratch_folder.h"

namespace almost {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class BenchmarkFilesTest : public ::testing::Test {
 protected:
  std::filesystem::path Write(const std::string& name, const std::string& contents) {
    const auto file = folder_ / name;
    std::ofstream(file, std::ios::binary) << contents;
    return file;
  }

  const ScratchFolder folder_;
};

std::vector<std::string> Contents(const std::vector<Message>& messages) {
  std::vector<std::string> out;
  for (const Message& message : messages) out.push_back(absl::StrCat(message.role, "|", message.content));
  return out;
}

TEST_F(BenchmarkFilesTest, ADialogueComesApartAndTogetherToTheLetter) {
  const std::string text = "\n\nHuman: a b\n\nc\n\nAssistant:  two blanks\n\nHuman:none\n\nAssistant: ends ";
  const auto messages = ParseDialogue(text);
  ASSERT_TRUE(messages.ok()) << messages.status();
  EXPECT_THAT(Contents(*messages),
              ElementsAre("user|a b\n\nc", "assistant| two blanks", "user|none", "assistant|ends "));
  for (const char* bad : {"Human: a\n\nAssistant: b", "\n\nHuman: a", "", "\n\nAssistant: b"}) {
    EXPECT_EQ(ParseDialogue(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST_F(BenchmarkFilesTest, HhhIsAListWhosePairsShareTheirContext) {
  const auto file = Write("hhh.json", R"([
 {"chosen": "\n\nHuman: q [\"{\n\nAssistant: yes", "rejected": "\n\nHuman: q [\"{\n\nAssistant: no", "type": "honest"},
 {"chosen": "\n\nHuman: q\n\nAssistant: é", "rejected": "\n\nHuman: q\n\nAssistant: ab", "type": "other"}])");
  const auto pairs = ReadPreferences(file, PreferenceFormat::kHhh);
  ASSERT_TRUE(pairs.ok()) << pairs.status();
  ASSERT_EQ(pairs->size(), 2u);
  EXPECT_EQ((*pairs)[0].type, "honest");
  EXPECT_EQ((*pairs)[0].chosen[0].content, "q [\"{");
  EXPECT_EQ(LengthDifference((*pairs)[0]), 1);
  EXPECT_EQ(LengthDifference((*pairs)[1]), -1) << "code points, not bytes";
}

TEST_F(BenchmarkFilesTest, AnotherShapeIsRefusedByLineAndField) {
  const std::string good =
      R"({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b")";
  const auto refused = [&](const std::string& contents, PreferenceFormat format, const std::string& line,
                           const std::string& field) {
    const auto pairs = ReadPreferences(Write("bad", contents), format);
    EXPECT_EQ(pairs.status().code(), absl::StatusCode::kInvalidArgument) << contents;
    EXPECT_THAT(pairs.status().message(), AllOf(HasSubstr(line), HasSubstr(field))) << contents;
  };
  using Format = PreferenceFormat;
  refused("{}", Format::kHhh, "line 1", "list");
  refused("[\n" + good + R"(, "type": "x"},)" + "\n" + good + "}]", Format::kHhh, "line 3", "[1]: type");
  refused("[\n3]", Format::kHhh, "line 2", "[0]: must be an object");
  refused("[\n" + good + R"(, "type": "x"})", Format::kHhh, "line 2", "does not end");
  refused(
      R"([{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b", "type": "x"}])",
      Format::kHhh, "line 1", "rejected");
  refused("[]", Format::kHhh, "", "empty list");
  refused(good + "}\n" + R"({"chosen": 3})" + "\n", Format::kHhRlhf, "line 2",
          "chosen: must be a string, is number");
  refused(good + "}\n" + R"({"chosen": "a")" + "\n", Format::kHhRlhf, "line 2", "not JSON");
  refused(good + "}\n\n", Format::kHhRlhf, "line 2", "not JSON");
  refused(R"({"chosen": "a", "rejected": "b"})", Format::kHhRlhf, "line 1", "chosen: must begin with");
  refused(R"({"prompt": "p", "chosen": "a", "rejected": "b"})", Format::kRewardBench, "line 1", "subset");
  refused(R"({"prompt": "p", "chosen": "a"})", Format::kComparisons, "line 1", "rejected");
  refused("", Format::kComparisons, "", "is empty");
  EXPECT_EQ(ReadPreferences("gone.jsonl", Format::kHhh).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(BenchmarkFilesTest, SingleTurnFormatsKeepTheirCategory) {
  const auto bench = ReadPreferences(
      Write("bench.jsonl",
            R"({"prompt": "p", "chosen": "a", "rejected": "b", "subset": "donotanswer", "id": 7})"
            "\n"),
      PreferenceFormat::kRewardBench);
  ASSERT_TRUE(bench.ok()) << bench.status();
  EXPECT_EQ(bench->front().type, "donotanswer");
  EXPECT_THAT(Contents(bench->front().rejected), ElementsAre("user|p", "assistant|b"));
}

TEST_F(BenchmarkFilesTest, PromptsComeFromVicunaRunsAndPlainText) {
  const auto vicuna =
      ReadPromptFile(Write("vicuna.jsonl", R"({"question_id": 4, "text": "Why?", "category": "generic"})"
                                           "\n"));
  ASSERT_TRUE(vicuna.ok()) << vicuna.status();
  EXPECT_EQ(vicuna->front().id, "4");
  EXPECT_EQ(vicuna->front().category, "generic");
  EXPECT_EQ((*ReadPromptFile(Write("run.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n")))[1].id, "1");
  EXPECT_EQ(ReadPromptFile(Write("plain.txt", "one\n\n two \n"))->size(), 2u);
  EXPECT_THAT(
      ReadPromptFile(Write("vicuna.jsonl", "{\"question_id\": 4, \"prompt\": \"a\"}")).status().message(),
      AllOf(HasSubstr("line 1"), HasSubstr("text")));

  const auto answers = ReadAnswers(Write("answers.jsonl", R"({"question_id": 4, "text": "So."})"), *vicuna);
  ASSERT_TRUE(answers.ok()) << answers.status();
  EXPECT_THAT(*answers, ElementsAre("So."));
  EXPECT_THAT(
      ReadAnswers(Write("answers.jsonl", R"({"question_id": 5, "text": "So."})"), *vicuna).status().message(),
      HasSubstr("no answer to question 4"));
  EXPECT_THAT(
      ReadAnswers(Write("answers.jsonl", "{\"id\": 4, \"text\": \"a\"}\n{\"id\": 4, \"text\": \"b\"}"),
                  *vicuna)
          .status()
          .message(),
      AllOf(HasSubstr("line 2"), HasSubstr("twice")));
}

TEST_F(BenchmarkFilesTest, TextMayHaveAByteOrderMarkAndIsUtf8) {
  const auto prompts = ReadPromptFile(Write("prompts.txt", "\xEF\xBB\xBFOne?\r\nTwo?\r\n"));
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  EXPECT_EQ(prompts->front().text, "One?");
  EXPECT_TRUE(ReadDocuments(Write("bom.jsonl", "\xEF\xBB\xBF{\"text\": \"a\"}\n")).ok());
  for (const char* name : {"latin.txt", "latin.jsonl"}) {
    const absl::Status status = ReadDocuments(Write(name, "{\"text\": \"a\"}\nCaf\xE9\n")).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr("line 2 is not UTF-8"));
  }
}

TEST_F(BenchmarkFilesTest, TruthfulQaHasOneTrueChoiceAQuestion) {
  const auto questions = ReadTruthfulQa(Write("mc_task.json", R"([{"question": "Is it?",
    "mc1_targets": {"No.": 0, "Yes.": 1, "Maybe.": 0}, "mc2_targets": {"Yes.": 1}}])"));
  ASSERT_TRUE(questions.ok()) << questions.status();
  EXPECT_EQ(questions->front().truth, 1u);
  EXPECT_THAT(questions->front().choices, ElementsAre("No.", "Yes.", "Maybe."));
  for (const auto& [targets, part] :
       std::vector<std::pair<std::string, std::string>>{{R"({"No.": 0})", "one true choice"},
                                                        {R"({"a": 1, "b": 1})", "holds 2"},
                                                        {R"({"a": 2})", "0 or 1"},
                                                        {"[]", "object"}}) {
    const auto bad = ReadTruthfulQa(
        Write("mc_task.json", absl::StrCat("[\n{\"question\": \"q\", \"mc1_targets\": ", targets, "}]")));
    EXPECT_THAT(bad.status().message(),
                AllOf(HasSubstr("line 2"), HasSubstr("mc1_targets"), HasSubstr(part)));
  }
}

// The real files, where they are at hand.
TEST_F(BenchmarkFilesTest, ReadsTheRealFiles) {
  const char* source = std::getenv("ALMOST_SOURCE_DIR");
  const auto data = std::filesystem::path(source ? source : ".") / "../shared/data";
  if (!std::filesystem::exists(data)) GTEST_SKIP() << data << " is not there";
  const auto hhh = ReadPreferences(data / "almost/hhh_eval.json", PreferenceFormat::kHhh);
  ASSERT_TRUE(hhh.ok()) << hhh.status();
  double longer = 0;
  for (const Preference& pair : *hhh)
    longer += LengthDifference(pair) > 0 ? 1 : LengthDifference(pair) == 0 ? 0.5 : 0;
  EXPECT_EQ(hhh->size(), 221u);
  EXPECT_DOUBLE_EQ(longer, 140) << "always picking the longer is right in 63.3 %";
  const auto harmless =
      ReadPreferences(data / "hh-rlhf/harmless-base-test.jsonl.gz", PreferenceFormat::kHhRlhf);
  ASSERT_TRUE(harmless.ok()) << harmless.status();
  EXPECT_EQ(harmless->size(), 2312u);
  const auto vicuna = ReadPromptFile(data / "almost/vicuna_questions.jsonl");
  ASSERT_TRUE(vicuna.ok()) << vicuna.status();
  EXPECT_EQ(vicuna->size(), 80u);
  EXPECT_EQ(ReadPreferences(data / "almost/hhh_eval.json", PreferenceFormat::kHhRlhf).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace almost
