#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/text/prompt_format.h"
#include "common/text/tokenizer.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace almost::world {
namespace {

std::string Folder() { return absl::StrCat(getenv("ALMOST_SOURCE_DIR"), "/common/world"); }

// The token ids that Hugging Face's tokenizers give for the shipped tokenizer (testdata/make_prompt_goldens.py).
TEST(WorldPromptTest, FewShotPromptsHaveTheTokenIdsOfTheTokenizersLibrary) {
  const auto tokenizer = Tokenizer::Load(Folder() + "/models/M");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::ifstream goldens(Folder() + "/testdata/prompt_goldens.jsonl");
  int cases = 0;
  for (std::string line; std::getline(goldens, line); ++cases) {
    const nlohmann::json golden = nlohmann::json::parse(line);
    std::ifstream file(absl::StrCat(Folder(), "/data/", golden[0].get<std::string>()));
    const auto demonstrations = Demonstrations::Parse(std::string(std::istreambuf_iterator<char>(file), {}));
    ASSERT_TRUE(demonstrations.ok()) << demonstrations.status();
    const auto prompt = FewShotPrompt(PromptFormat::World(), *demonstrations, golden[1].get<int>(),
                                      {{.role = "user", .content = golden[2].get<std::string>()}});
    ASSERT_TRUE(prompt.ok()) << prompt.status();
    EXPECT_EQ((*tokenizer)->Encode(*prompt, true), golden[3].get<std::vector<int32_t>>()) << *prompt;
  }
  EXPECT_EQ(cases, 6);
}

}  // namespace
}  // namespace almost::world
