#include "common/engine/cpu_model.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "common/base/random.h"

namespace almost::engine {
namespace {

std::shared_ptr<const ModelFolder> SmallModel() {
  return *ModelFolder::Open(std::string(getenv("ALMOST_SOURCE_DIR")) + "/common/world/models/S");
}

// The small model with its weights cut to 16 bits, and stored in 16 or in 32.
std::shared_ptr<const ModelFolder> CutModel(DType stored) {
  const std::shared_ptr<const ModelFolder> whole = SmallModel();
  std::vector<std::vector<std::byte>> data;
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, view] : whole->tensors()) {
    std::vector<std::byte>& bytes = data.emplace_back();
    for (const float value : view.ToFloat()) {
      const uint32_t bits = std::bit_cast<uint32_t>(value) & 0xffff0000;
      const auto* from = reinterpret_cast<const std::byte*>(&bits);
      bytes.insert(bytes.end(), from + (stored == DType::kF32 ? 0 : 2), from + 4);
    }
    tensors.push_back({name, stored, view.shape, bytes});
  }
  return ModelFolder::InMemory(whole->config(), tensors);
}

// The logits of every position of three sequences that are computed together, in chunks of `chunk` tokens.
std::vector<float> Logits(const CpuModel& model, int num_threads, int chunk) {
  constexpr int kSequences = 3, kTokens = 70, kBlocks = (kTokens + kBlockTokens - 1) / kBlockTokens;
  KvCache cache(model.config(), kSequences * kBlocks);
  ThreadTeam team(num_threads);
  Workspace workspace(team);
  std::vector<std::vector<int32_t>> tokens(kSequences);
  std::vector<std::vector<int>> blocks(kSequences, std::vector<int>(kBlocks));
  for (int s = 0; s < kSequences; ++s) {
    RandomStream random(s);
    for (int t = 0; t < kTokens; ++t) tokens[s].push_back(static_cast<int32_t>(random.Between(1, 895)));
    std::iota(blocks[s].begin(), blocks[s].end(), s * kBlocks);
  }
  const size_t vocab = model.config().vocab_size;
  std::vector<float> all(kSequences * kTokens * vocab), hidden, logits;
  for (int begin = 0; begin < kTokens; begin += chunk) {
    const int count = std::min(chunk, kTokens - begin);
    std::vector<SequenceChunk> chunks;
    for (int s = 0; s < kSequences; ++s) {
      chunks.push_back({std::span(tokens[s]).subspan(begin, count), begin, blocks[s], count});
    }
    model.Forward(chunks, cache, workspace, hidden);
    model.Logits(hidden, workspace, logits);
    for (int s = 0; s < kSequences; ++s) {
      std::copy_n(logits.begin() + s * count * vocab, count * vocab,
                  all.begin() + (s * kTokens + begin) * vocab);
    }
  }
  return all;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(CpuModelTest, ThreadsAndChunksChangeNoBit) {
  const auto model = CpuModel::Load(*SmallModel());
  ASSERT_TRUE(model.ok()) << model.status();
  const std::vector<float> wanted = Logits(**model, 1, 70);
  for (const int threads : {1, 2, 3}) {
    for (const int chunk : {70, 33, 1}) {
      EXPECT_TRUE(SameBits(Logits(**model, threads, chunk), wanted)) << threads << " " << chunk;
    }
  }
}

TEST(CpuModelTest, InstructionSetsAgreeToTheBit) {
  const Kernels* wide = Kernels::For(Kernels::InstructionSet::kAvx512);
  if (wide == nullptr) GTEST_SKIP() << "this processor has no AVX-512";
  const auto a = CpuModel::Load(*SmallModel(), wide);
  const auto b = CpuModel::Load(*SmallModel(), Kernels::For(Kernels::InstructionSet::kAvx2));
  for (const int chunk : {70, 1}) EXPECT_TRUE(SameBits(Logits(**a, 2, chunk), Logits(**b, 1, chunk)));
}

TEST(CpuModelTest, SixteenBitWeightsGiveWhatTheirWidenedValuesGive) {
  const auto narrow = CpuModel::Load(*CutModel(DType::kBF16));
  const auto wide = CpuModel::Load(*CutModel(DType::kF32));
  ASSERT_TRUE(narrow.ok() && wide.ok()) << narrow.status() << wide.status();
  for (const int chunk : {70, 1}) EXPECT_TRUE(SameBits(Logits(**narrow, 2, chunk), Logits(**wide, 1, chunk)));
}

}  // namespace
}  // namespace almost::engine
