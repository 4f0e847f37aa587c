#include "common/engine/cuda/cuda_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <filesystem>

#include "common/base/random.h"
#include "common/kernels/thread_team.h"

// The GPU's engine beside the CPU's. Where there is no GPU its kernels run in an emulation.
namespace almost::engine::cuda {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const fs::path kSource = std::getenv("ALMOST_SOURCE_DIR");

std::shared_ptr<const ModelFolder> Open(const fs::path& folder) {
  const auto model = ModelFolder::Open(kSource / folder);
  EXPECT_TRUE(model.ok()) << model.status();
  return *model;
}
std::shared_ptr<const ModelFolder> Golden(const std::string& name) {
  return Open(fs::path("tests/parity/goldens/models") / name);
}

// The model with weights of another type and, where it is not 0, another context.
std::shared_ptr<const ModelFolder> As(DType type, const ModelFolder& model, int max_positions = 0) {
  ModelConfig config = model.config();
  if (max_positions != 0) config.max_positions = max_positions;
  std::vector<std::vector<std::byte>> data;
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, view] : model.tensors()) {
    std::vector<std::byte>& bytes = data.emplace_back();
    for (const float value : view.ToFloat()) {
      const uint32_t bits = std::bit_cast<uint32_t>(value);
      const uint16_t half =
          type == DType::kBF16 ? bits >> 16 : std::bit_cast<uint16_t>(static_cast<_Float16>(value));
      const auto* from = type == DType::kF32 ? reinterpret_cast<const std::byte*>(&bits)
                                             : reinterpret_cast<const std::byte*>(&half);
      bytes.insert(bytes.end(), from, from + DTypeBytes(type));
    }
    tensors.push_back({name, type, view.shape, bytes});
  }
  return ModelFolder::InMemory(config, tensors);
}

absl::StatusOr<std::unique_ptr<Engine>> OnGpu(const ModelFolder& model, const EngineOptions& options = {}) {
  auto runner = MakeRunner(model, {.kv_cache_bytes = options.kv_cache_bytes,
                                   .max_tokens = options.max_batch_tokens,
                                   .max_sequences = options.max_batch_sequences,
                                   .deterministic = true});
  if (!runner.ok()) return runner.status();
  return EngineOf(*std::move(runner), std::make_shared<SharedTeam>(1), options, nullptr);
}
std::unique_ptr<Engine> Gpu(const ModelFolder& model, EngineOptions options = {.kv_cache_bytes = 8 << 20}) {
  auto engine = OnGpu(model, options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}
std::unique_ptr<Engine> Cpu(const std::shared_ptr<const ModelFolder>& model) {
  auto engine = Engine::Create(model, {.kv_cache_bytes = 64 << 20});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

std::vector<int32_t> Tokens(uint64_t seed, int count, int vocab = 96) {
  RandomStream stream(seed);
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(stream.Between(1, vocab - 1)));
  return tokens;
}

std::vector<int32_t> Joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class FamilyTest : public testing::TestWithParam<std::string> {};

// Log-likelihoods or rewards of sequences that come in one batch, some of them behind a common prefix.
TEST_P(FamilyTest, AgreesWithTheCpuEngine) {
  const auto model = As(DType::kF32, *Golden(GetParam()));
  const ModelConfig& c = model->config();
  const auto gpu = OnGpu(*model, {.kv_cache_bytes = 8 << 20, .max_batch_tokens = 40});
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  const auto cpu = Cpu(model);
  const int most = std::min(60, c.max_positions);
  const std::vector<int32_t> prefix = Tokens(1, most / 2, c.vocab_size);
  if (c.reward_head) {
    const std::vector<std::vector<int32_t>> sequences = {
        prefix, Joined(prefix, Tokens(2, most / 3, c.vocab_size)), Tokens(3, 1, c.vocab_size)};
    const auto wanted = cpu->ScoreSequences(sequences), found = (*gpu)->ScoreSequences(sequences);
    ASSERT_TRUE(wanted.ok() && found.ok()) << wanted.status() << found.status();
    for (size_t i = 0; i < sequences.size(); ++i) EXPECT_NEAR((*found)[i], (*wanted)[i], 1e-4);
    return;
  }
  std::vector<CompletionScoreRequest> requests;
  for (int i = 0; i < 4; ++i) {
    requests.push_back(
        {i < 2 ? prefix : Tokens(10 + i, 1 + i, c.vocab_size), Tokens(20 + i, most / 3, c.vocab_size)});
  }
  const auto wanted = cpu->ScoreCompletions(requests), found = (*gpu)->ScoreCompletions(requests);
  ASSERT_TRUE(wanted.ok() && found.ok()) << wanted.status() << found.status();
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_EQ((*found)[i].size(), (*wanted)[i].size());
    for (size_t t = 0; t < (*wanted)[i].size(); ++t)
      EXPECT_NEAR((*found)[i][t], (*wanted)[i][t], 1e-4) << i << " " << t;
  }
}

std::vector<std::string> Families() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kSource / "tests/parity/goldens/models"))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}
INSTANTIATE_TEST_SUITE_P(Goldens, FamilyTest, testing::ValuesIn(Families()), [](const auto& test) {
  std::string name = test.param;
  std::replace_if(name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
  return name;
});

// Greedy and drawn, cut in every way, several candidates, some behind a common prefix.
std::vector<GenerationRequest> MixedRequests() {
  const std::vector<int32_t> prefix = Tokens(99, 40);
  std::vector<GenerationRequest> requests(10);
  for (int i = 0; i < 10; ++i) {
    GenerationRequest& r = requests[i];
    r.prompt_ids = Joined(i % 3 == 0 ? prefix : std::vector<int32_t>(), Tokens(i, 1 + i * 37 % 30));
    r.sampling = {.temperature = i % 5 == 0 ? 0.0 : 0.7 + 0.1 * (i % 7),
                  .top_p = i % 4 == 1 ? 0.9 : 1.0,
                  .top_k = i % 4 == 2 ? 20 : 0,
                  .min_p = i % 4 == 3 ? 0.05 : 0.0,
                  .max_new_tokens = 1 + i,
                  .seed = 1000u + i,
                  .logprobs = true};
    r.num_candidates = 1 + i % 2;
  }
  return requests;
}

std::vector<Candidate> Candidates(Engine& engine, std::vector<GenerationRequest> requests) {
  std::vector<Candidate> all;
  for (auto& result : engine.Generate(std::move(requests))) {
    EXPECT_TRUE(result.ok()) << result.status();
    for (Candidate& each : *result) all.push_back(std::move(each));
  }
  return all;
}

void ExpectSame(const std::vector<Candidate>& found, const std::vector<Candidate>& wanted, float tolerance) {
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_EQ(found[i].token_ids, wanted[i].token_ids) << i;
    ASSERT_EQ(found[i].logprobs.size(), wanted[i].logprobs.size());
    for (size_t t = 0; t < wanted[i].logprobs.size(); ++t) {
      EXPECT_NEAR(found[i].logprobs[t].model, wanted[i].logprobs[t].model, tolerance) << i << " " << t;
      EXPECT_NEAR(found[i].logprobs[t].sampled, wanted[i].logprobs[t].sampled, tolerance) << i << " " << t;
    }
  }
}

TEST(CudaRunnerTest, DrawsWhatTheCpuEngineDraws) {
  const auto model = Golden("llama");
  ExpectSame(Candidates(*Gpu(*model), MixedRequests()), Candidates(*Cpu(model), MixedRequests()), 1e-4f);
}

TEST(CudaRunnerTest, CompanyChunksAndPreemptionChangeNoBit) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const auto model = As(type, *Golden("llama_gqa_llama3"));
    std::vector<Candidate> alone;
    const auto engine = Gpu(*model);
    for (GenerationRequest& request : MixedRequests()) {
      for (Candidate& each : Candidates(*engine, {request})) alone.push_back(std::move(each));
    }
    ExpectSame(Candidates(*Gpu(*model), MixedRequests()), alone, 0);
    ExpectSame(Candidates(*Gpu(*model, {.kv_cache_bytes = 8 << 20, .max_batch_tokens = 7}), MixedRequests()),
               alone, 0);
    // Eight blocks of 16 tokens, 2 layers, 2 heads of 16 numbers, keys and values.
    const int64_t tight = int64_t{8} * 16 * 2 * 2 * 16 * 2 * static_cast<int64_t>(DTypeBytes(type));
    const auto small = Gpu(*model, {.kv_cache_bytes = tight, .max_batch_sequences = 8});
    ExpectSame(Candidates(*small, MixedRequests()), alone, 0);
    EXPECT_GT(small->Stats().preemptions, 0);
  }
}

// Prompts of several splits, which share some of them, computed together and chunk by chunk.
TEST(CudaRunnerTest, LongContextsAgreeWithTheCpuEngine) {
  const auto model = As(DType::kF32, *Golden("llama_gqa_llama3"), 2048);
  const std::vector<int32_t> prefix = Tokens(5, 1030);
  std::vector<CompletionScoreRequest> requests;
  for (int i = 0; i < 3; ++i) requests.push_back({Joined(prefix, Tokens(30 + i, 7 * i)), Tokens(40 + i, 5)});
  const auto wanted = Cpu(model)->ScoreCompletions(requests);
  for (const int at_once : {2048, 100}) {
    const auto found =
        Gpu(*model, {.kv_cache_bytes = 32 << 20, .max_batch_tokens = at_once})->ScoreCompletions(requests);
    ASSERT_TRUE(wanted.ok() && found.ok()) << wanted.status() << found.status();
    for (size_t i = 0; i < requests.size(); ++i) {
      for (size_t t = 0; t < 5; ++t) EXPECT_NEAR((*found)[i][t], (*wanted)[i][t], 1e-4) << i << " " << t;
    }
  }
}

TEST(CudaRunnerTest, SixteenBitWeightsStrayByTheirPrecision) {
  for (const auto& [type, tolerance] : {std::pair{DType::kBF16, 0.15f}, std::pair{DType::kF16, 0.02f}}) {
    const auto model = As(type, *Golden("qwen2"));
    const std::vector<CompletionScoreRequest> requests = {{Tokens(1, 40), Tokens(2, 40)}};
    const auto wanted = Cpu(model)->ScoreCompletions(requests),
               found = Gpu(*model)->ScoreCompletions(requests);
    ASSERT_TRUE(wanted.ok() && found.ok()) << wanted.status() << found.status();
    for (size_t t = 0; t < 40; ++t) EXPECT_NEAR((*found)[0][t], (*wanted)[0][t], tolerance) << t;
  }
}

TEST(CudaRunnerTest, SaysWhatItCannotDo) {
  EXPECT_THAT(OnGpu(*Golden("llama"), {.kv_cache_bytes = 100}).status().ToString(),
              HasSubstr("kv_cache_bytes"));
  ModelConfig wide = Golden("llama")->config();
  wide.num_heads = 32;
  wide.num_kv_heads = 1;
  EXPECT_THAT(OnGpu(*ModelFolder::InMemory(wide, {})).status().ToString(), HasSubstr("num_key_value_heads"));
}

}  // namespace
}  // namespace almost::engine::cuda
