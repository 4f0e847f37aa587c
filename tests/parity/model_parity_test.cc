#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "common/base/scratch_folder.h"
#include "common/engine/engine.h"
#include "nlohmann/json.hpp"
#include "tests/parity/whole_logits.h"

// The engine against what transformers computed with the same checkpoints (make_model_goldens.py).
namespace almost::engine {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

fs::path Goldens() { return fs::path(std::getenv("ALMOST_SOURCE_DIR")) / "tests/parity/goldens/models"; }

json Expected(const fs::path& folder) {
  std::ifstream file(folder / "expected.json");
  return json::parse(file);
}

double StandardDeviation(const std::vector<double>& x) {
  double sum = 0, squares = 0;
  for (const double value : x) sum += value;
  for (const double value : x) squares += (value - sum / x.size()) * (value - sum / x.size());
  return std::sqrt(squares / x.size());
}

class ModelParity : public testing::TestWithParam<std::string> {};

// 1e-4 of the standard deviation: float32 rounding over two layers comes to about 1e-6 of it, the smallest
// mistake in a formula to 1e-2.
TEST_P(ModelParity, LogitsAreThoseOfTransformers) {
  const fs::path folder = Goldens() / GetParam();
  const auto opened = ModelFolder::Open(folder);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto model = CpuModel::Load(**opened);
  ASSERT_TRUE(model.ok()) << model.status();
  const json expected = Expected(folder);
  const std::vector<float> logits = WholeLogits(**model, expected["token_ids"].get<std::vector<int32_t>>());

  const auto golden = SafetensorsFile::Open(folder / "expected.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  const TensorView& view = (*golden)->tensors().at("logits_f64");
  std::vector<double> wanted(view.num_elements());
  std::memcpy(wanted.data(), view.bytes.data(), view.bytes.size());
  const std::vector<float> single = (*golden)->tensors().at("logits_f32").ToFloat();
  const size_t skipped = expected["first_position"].get<size_t>() * view.shape[1];
  ASSERT_EQ(logits.size(), skipped + wanted.size());
  const double tolerance = 1e-4 * StandardDeviation(wanted);
  for (size_t i = 0; i < wanted.size(); ++i) {
    ASSERT_NEAR(logits[skipped + i], wanted[i], tolerance) << "element " << i;
    ASSERT_NEAR(logits[skipped + i], single[i], tolerance) << "element " << i;
  }
}

TEST_P(ModelParity, GreedyCompletionsAreThoseOfTransformers) {
  const fs::path folder = Goldens() / GetParam();
  const auto engine = Engine::Create(*ModelFolder::Open(folder), {});
  ASSERT_TRUE(engine.ok()) << engine.status();
  const json expected = Expected(folder);
  std::vector<GenerationRequest> requests;
  for (const json& one : expected["greedy"]) {
    GenerationRequest& request = requests.emplace_back();
    request.prompt_ids = one["prompt_ids"].get<std::vector<int32_t>>();
    request.sampling.temperature = 0;
    request.sampling.max_new_tokens = static_cast<int>(one["completion_ids"].size());
  }
  const auto results = (*engine)->Generate(std::move(requests));
  ASSERT_FALSE(results.empty());
  for (size_t i = 0; i < results.size(); ++i) {
    ASSERT_TRUE(results[i].ok()) << results[i].status();
    EXPECT_EQ(results[i]->front().token_ids,
              expected["greedy"][i]["completion_ids"].get<std::vector<int32_t>>());
  }
}

INSTANTIATE_TEST_SUITE_P(Families, ModelParity,
                         testing::Values("llama", "llama_gqa_llama3", "llama_linear_biases", "llama_yarn",
                                         "mistral", "mistral_window", "qwen2", "qwen3", "pythia",
                                         "neox_sequential"),
                         [](const testing::TestParamInfo<std::string>& model) { return model.param; });

class RewardParity : public testing::Test {
 protected:
  // Engine's scores of the golden sequences are transformers' to 1e-4 of their spread, about 3.
  static void ExpectGoldenScores(const fs::path& model, const std::string& golden) {
    const auto opened = ModelFolder::Open(model);
    ASSERT_TRUE(opened.ok()) << opened.status();
    const auto engine = Engine::Create(*opened, {});
    ASSERT_TRUE(engine.ok()) << engine.status();
    const json expected = Expected(Goldens() / golden);
    const auto sequences = expected["sequences"].get<std::vector<std::vector<int32_t>>>();
    const auto wanted = expected["scores_f64"].get<std::vector<double>>();
    const auto scores = (*engine)->ScoreSequences(sequences);
    ASSERT_TRUE(scores.ok()) << scores.status();
    ASSERT_EQ(scores->size(), wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_NEAR((*scores)[i], wanted[i], 1e-4 * StandardDeviation(wanted));
    }
  }
};

TEST_F(RewardParity, ScoresAreThoseOfTransformers) {
  for (const char* name : {"llama_reward", "pythia_reward"}) ExpectGoldenScores(Goldens() / name, name);
}

TEST_F(RewardParity, ReadsTheHeadUnderItsOfficialName) {
  const auto opened = ModelFolder::Open(Goldens() / "llama_reward");
  ASSERT_TRUE(opened.ok()) << opened.status();
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, view] : (*opened)->tensors()) {
    tensors.push_back({name == "score.weight" ? "v_head.weight" : name, view.dtype, view.shape, view.bytes});
  }
  const ScratchFolder folder;
  ASSERT_TRUE(WriteModelFolder(folder, (*opened)->config(), tensors).ok());
  ExpectGoldenScores(folder, "llama_reward");
}

}  // namespace
}  // namespace almost::engine
