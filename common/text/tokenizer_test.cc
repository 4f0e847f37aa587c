#include "common/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/scratch_folder.h"
#include "common/base/sha256.h"
#include "common/text/hugging_face_tokenizer.h"

namespace almost {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::filesystem::path Goldens() {
  return std::filesystem::path(std::getenv("ALMOST_SOURCE_DIR")) / "tests/parity/goldens/tokenizers";
}

json ReadJson(const std::filesystem::path& path) {
  std::ifstream in(path);
  EXPECT_TRUE(in) << path;
  return json::parse(in);
}

void AppendUtf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
  } else if (c < 0x10000) {
    out += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
            static_cast<char>(0x80 | (c & 63))};
  } else {
    out += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
            static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
  }
}

// As contexts() of make_tokenizer_goldens.py.
std::string Contexts(uint32_t block) {
  std::string text;
  for (uint32_t point = block * 4096; point < (block + 1) * 4096; ++point) {
    if (point >= 0xD800 && point < 0xE000) continue;
    std::string c;
    AppendUtf8(c, point);
    absl::StrAppend(&text, "a", c, " ", c, "1", c, " ", c, " ");
  }
  return text;
}

// tests/parity/make_tokenizer_goldens.py made these with the Python packages.
class TokenizerGoldenTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::Load(Goldens() / GetParam());
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *loaded;
    texts_ = ReadJson(Goldens() / "texts.json").get<std::vector<std::string>>();
    expected_ = ReadJson(Goldens() / GetParam() / "expected.json");
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<std::string> texts_;
  json expected_;
};

TEST_P(TokenizerGoldenTest, EncodesAndDecodesAsThePythonPackage) {
  ASSERT_EQ(texts_.size(), expected_["cases"].size());
  for (size_t i = 0; i < texts_.size(); ++i) {
    const json& expected = expected_["cases"][i];
    SCOPED_TRACE(absl::StrCat("text ", i, ": ", texts_[i]));
    const std::vector<int32_t> ids = tokenizer_->Encode(texts_[i], false);
    EXPECT_EQ(ids, expected["ids"].get<std::vector<int32_t>>());
    const std::vector<int32_t> special = tokenizer_->Encode(texts_[i], true);
    std::vector<int32_t> with_front = expected_["front"];
    with_front.insert(with_front.end(), ids.begin(), ids.end());
    EXPECT_EQ(special, with_front);
    EXPECT_EQ(tokenizer_->Decode(special, true), expected["decoded"].get<std::string>());
    EXPECT_EQ(tokenizer_->Decode(special, false), expected["kept"].get<std::string>());
    for (const json& cut : expected["cuts"]) {
      const size_t length = cut[0];
      EXPECT_EQ(tokenizer_->Decode(std::span(ids).first(length), true), cut[1].get<std::string>()) << length;
    }
  }
}

TEST_P(TokenizerGoldenTest, EncodesEveryCodePointAsThePythonPackage) {
  for (const json& block : expected_["sweep"]) {
    const std::vector<int32_t> ids = tokenizer_->Encode(Contexts(block[0]), false);
    const std::string hash =
        Sha256(absl::string_view(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)));
    EXPECT_EQ(hash.substr(0, 8), block[1].get<std::string>()) << "code points from " << block[0] << " * 4096";
  }
}

TEST_P(TokenizerGoldenTest, StreamedPiecesJoinToTheWhole) {
  for (const std::string& text : texts_) {
    std::vector<int32_t> ids = tokenizer_->Encode(text, true);
    // A character cut off in the middle, and one that goes on wrongly.
    for (const int drop : {0, 1, 2}) {
      std::vector<int32_t> cut = ids;
      cut.resize(cut.size() - std::min<size_t>(drop, cut.size()));
      if (drop == 2 && !ids.empty()) cut.push_back(ids.back());
      StreamDecoder decoder(*tokenizer_);
      std::string joined;
      for (const int32_t id : cut) {
        const std::string piece = decoder.Append(id);
        EXPECT_TRUE(json(piece).dump().size() > 0);  // throws where the piece ends inside a character
        joined += piece;
      }
      joined += decoder.Finish();
      EXPECT_EQ(joined, tokenizer_->Decode(cut, true)) << text;
    }
  }
}

TEST_P(TokenizerGoldenTest, StreamedPiecesOfAnyIdsJoinToTheWhole) {
  RandomStream random(1);
  for (const int64_t longest : {16, 400}) {
    for (int64_t i = 0; i < 24000 / longest; ++i) {
      std::vector<int32_t> ids;
      for (int64_t length = random.Between(0, longest); length > 0; --length) {
        // Half of them of the first pieces: bytes and special tokens, or single characters.
        const int32_t below =
            random.Chance(0.5) ? std::min(260, tokenizer_->vocab_size()) : tokenizer_->vocab_size();
        ids.push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(below))));
      }
      StreamDecoder decoder(*tokenizer_);
      std::string joined;
      for (const int32_t id : ids) joined += decoder.Append(id);
      joined += decoder.Finish();
      EXPECT_EQ(joined, tokenizer_->Decode(ids, true)) << testing::PrintToString(ids);
    }
  }
}

TEST_P(TokenizerGoldenTest, StreamingEndsNowhereInIdsThatAreNotInTheVocabulary) {
  RandomStream random(2);
  for (int i = 0; i < 500; ++i) {
    StreamDecoder decoder(*tokenizer_);
    std::string joined;
    for (int length = 0; length < 20; ++length) {
      const bool is_token = random.Chance(0.7);
      joined += decoder.Append(static_cast<int32_t>(random.Below(is_token ? 260 : 3)) +
                               (is_token ? 0 : tokenizer_->vocab_size()));
    }
    joined += decoder.Finish();
    EXPECT_FALSE(joined.empty());
  }
}

// Counts the ids that are decoded.
class CountingTokenizer : public Tokenizer {
 public:
  explicit CountingTokenizer(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  std::vector<int32_t> Encode(absl::string_view text, bool add_special_tokens) const override {
    return tokenizer_.Encode(text, add_special_tokens);
  }
  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const override {
    num_decoded_ += ids.size();
    return tokenizer_.Decode(ids, skip_special_tokens);
  }
  int32_t vocab_size() const override { return tokenizer_.vocab_size(); }
  std::optional<int32_t> bos_id() const override { return tokenizer_.bos_id(); }
  std::optional<int32_t> eos_id() const override { return tokenizer_.eos_id(); }
  std::optional<int32_t> TokenId(absl::string_view token) const override { return tokenizer_.TokenId(token); }
  bool IsBytePiece(int32_t id) const override { return tokenizer_.IsBytePiece(id); }
  size_t num_decoded() const { return num_decoded_; }

 private:
  const Tokenizer& tokenizer_;
  mutable size_t num_decoded_ = 0;
};

TEST_P(TokenizerGoldenTest, StreamingTakesTheSameTimeForEachTokenWhateverRepeats) {
  // What a model may go on with for ever: a blank, a byte that is no character, end-of-text, any other token.
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    const CountingTokenizer counting(*tokenizer_);
    StreamDecoder decoder(counting);
    const std::vector<int32_t> ids(200, id);
    std::string joined;
    for (const int32_t each : ids) joined += decoder.Append(each);
    EXPECT_LT(counting.num_decoded(), ids.size() * 12) << id;
    joined += decoder.Finish();
    EXPECT_EQ(joined, tokenizer_->Decode(ids, true)) << id;
  }
}

TEST_P(TokenizerGoldenTest, SkipsIdsThatAreNotInTheVocabulary) {
  std::vector<int32_t> ids = tokenizer_->Encode("Human: a", false);
  const std::string text = tokenizer_->Decode(ids, true);
  ids.insert(ids.end(), {-1, tokenizer_->vocab_size(), INT32_MAX, INT32_MIN});
  EXPECT_EQ(tokenizer_->Decode(ids, true), text);
}

INSTANTIATE_TEST_SUITE_P(Models, TokenizerGoldenTest,
                         testing::Values("byte_level", "llama3", "llama2", "sentencepiece_bpe",
                                         "sentencepiece_unigram"),
                         [](const auto& model) { return std::string(model.param); });

class TokenizerLoadTest : public testing::Test {
 protected:
  void Copy(const char* from) {
    std::filesystem::copy(Goldens() / from / "tokenizer.json", folder_ / "tokenizer.json");
  }
  void Write(const char* name, absl::string_view contents) { std::ofstream(folder_ / name) << contents; }
  absl::Status LoadStatus() { return Tokenizer::Load(folder_).status(); }

  const ScratchFolder folder_;
};

TEST_F(TokenizerLoadTest, TakesSpecialTokensFromTokenizerConfigFirst) {
  Copy("llama3");
  Write("tokenizer_config.json", R"({"bos_token": null, "eos_token": {"content": "<|endoftext|>"}})");
  Write("config.json", R"({"bos_token_id": 7, "eos_token_id": [8, 9]})");
  const auto tokenizer = Tokenizer::Load(folder_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->bos_id(), std::nullopt);
  EXPECT_EQ((*tokenizer)->eos_id(), (*tokenizer)->TokenId("<|endoftext|>"));
}

TEST_F(TokenizerLoadTest, TakesSpecialTokensFromConfigWhereTokenizerConfigIsSilent) {
  Copy("llama3");
  Write("config.json", R"({"bos_token_id": 7, "eos_token_id": [8, 9]})");
  const auto tokenizer = Tokenizer::Load(folder_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->bos_id(), 7);
  EXPECT_EQ((*tokenizer)->eos_id(), 8);
}

// What transformers' classes do; PreTrainedTokenizerFast and Qwen2Tokenizer do not look at these fields.
TEST_F(TokenizerLoadTest, PutsTheMarkersAroundATextThatTheClassInTokenizerConfigDoes) {
  Copy("llama2");
  const auto added = [&](absl::string_view fields) -> std::pair<size_t, size_t> {
    Write("tokenizer_config.json", absl::StrCat(R"({"bos_token": "<s>", "eos_token": "</s>")", fields, "}"));
    const auto tokenizer = Tokenizer::Load(folder_);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    const std::vector<int32_t> plain = (*tokenizer)->Encode("a b", false);
    const std::vector<int32_t> special = (*tokenizer)->Encode("a b", true);
    const auto found = std::search(special.begin(), special.end(), plain.begin(), plain.end());
    EXPECT_NE(found, special.end());
    const auto front = static_cast<size_t>(found - special.begin());
    EXPECT_TRUE(front == 0 || special.front() == (*tokenizer)->bos_id());
    EXPECT_TRUE(front + plain.size() == special.size() || special.back() == (*tokenizer)->eos_id());
    return {front, special.size() - plain.size() - front};
  };
  using Pair = std::pair<size_t, size_t>;
  EXPECT_EQ(added(""), Pair(1, 0));  // the file's own template
  EXPECT_EQ(added(R"(, "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": false)"), Pair(1, 0));
  EXPECT_EQ(added(R"(, "tokenizer_class": "LlamaTokenizer")"), Pair(1, 0));
  EXPECT_EQ(added(R"(, "tokenizer_class": "LlamaTokenizer", "add_bos_token": false)"), Pair(0, 0));
  EXPECT_EQ(added(R"(, "tokenizer_class": "LlamaTokenizerFast", "add_eos_token": true)"), Pair(1, 1));
  EXPECT_EQ(added(R"(, "tokenizer_class": "CodeLlamaTokenizer", "add_bos_token": false)"), Pair(0, 0));
  EXPECT_EQ(added(R"(, "tokenizer_class": "GPTNeoXTokenizer")"), Pair(0, 0));
  EXPECT_EQ(added(R"(, "tokenizer_class": "GPTNeoXTokenizerFast", "add_bos_token": true)"), Pair(1, 0));
  // A class that would put a token of which nothing is known.
  Write("tokenizer_config.json", R"({"bos_token": null, "tokenizer_class": "LlamaTokenizer"})");
  EXPECT_EQ((*Tokenizer::Load(folder_))->Encode("", true).size(), 1u);
}

TEST_F(TokenizerLoadTest, NamesTheFolderWithoutATokenizer) {
  EXPECT_EQ(LoadStatus().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(LoadStatus().message(), HasSubstr(folder_.string()));
}

TEST_F(TokenizerLoadTest, NamesTheFileThatDoesNotParse) {
  Copy("byte_level");
  std::filesystem::resize_file(folder_ / "tokenizer.json", 1000);
  EXPECT_EQ(LoadStatus().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(LoadStatus().message(), HasSubstr("tokenizer.json"));
}

TEST_F(TokenizerLoadTest, NamesTheFieldOfAnotherType) {
  Copy("byte_level");
  Write("tokenizer_config.json", R"({"eos_token": 5})");
  EXPECT_EQ(LoadStatus().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(LoadStatus().message(),
              testing::AllOf(HasSubstr("tokenizer_config.json"), HasSubstr("eos_token")));
}

TEST_F(TokenizerLoadTest, RefusesASpecialTokenThatTheVocabularyLacks) {
  Copy("byte_level");
  Write("tokenizer_config.json", R"({"eos_token": "<nowhere>"})");
  EXPECT_EQ(LoadStatus().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(LoadStatus().message(), HasSubstr("<nowhere>"));
}

TEST_F(TokenizerLoadTest, RefusesAVocabularyThatCannotEncodeEveryText) {
  Write("tokenizer.json", R"({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}})");
  EXPECT_EQ(LoadStatus().code(), absl::StatusCode::kDataLoss);
}

TEST_F(TokenizerLoadTest, IgnoresTruncationAndPaddingInTheFile) {
  json file = ReadJson(Goldens() / "byte_level" / "tokenizer.json");
  file["truncation"] = {
      {"direction", "Right"}, {"max_length", 2}, {"strategy", "LongestFirst"}, {"stride", 0}};
  Write("tokenizer.json", file.dump());
  const auto tokenizer = Tokenizer::Load(folder_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_GT((*tokenizer)->Encode("one two three four", true).size(), 4u);
}

TEST_F(TokenizerLoadTest, NamesTheSentencePieceModelThatIsDamaged) {
  std::filesystem::copy(Goldens() / "sentencepiece_bpe" / "tokenizer.model", folder_ / "tokenizer.model");
  const size_t size = std::filesystem::file_size(folder_ / "tokenizer.model");
  // Cut off anywhere: an error that names the file, or a shorter model, but never a crash.
  for (size_t length = size - 1; length > 0; length -= std::min<size_t>(length, 97)) {
    std::filesystem::resize_file(folder_ / "tokenizer.model", length);
    const absl::Status status = LoadStatus();
    if (!status.ok()) {
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
      EXPECT_THAT(status.message(), HasSubstr("tokenizer.model"));
    }
  }
}

TEST(TrainByteLevelBpeTest, MatchesThePythonPackage) {
  const auto corpus = ReadJson(Goldens() / "corpus.json").get<std::vector<std::string>>();
  const auto trained = TrainByteLevelBpe(corpus, 600, "<|endoftext|>");
  ASSERT_TRUE(trained.ok()) << trained.status();
  EXPECT_EQ(json::parse(*trained), ReadJson(Goldens() / "byte_level" / "tokenizer.json"));
}

TEST(TrainByteLevelBpeTest, RefusesAVocabularyThatDoesNotHoldTheBytes) {
  EXPECT_EQ(TrainByteLevelBpe({}, 256, "<|endoftext|>").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace almost
