// What the CPU engine's work costs as it grows, for tests/bench/cost_bench.py, which makes table and plot of
// it:
//   cost_bench THREADS WIDTH LAYERS      threads of each engine; of the model: width, a multiple of 64, and
//   layers
// One line of JSON a point: {"axis": "batch", "x": 16, "decode_tokens_per_second": …}. Axes: batch, prefix,
// context, models; and memory, bytes a cached token as allocated, as resident and in theory. Weights are
// random, float32, in memory; greedy.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "common/engine/cpu_model.h"
#include "common/engine/engine.h"
#include "nlohmann/json.hpp"

namespace almost::engine {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int kNewTokens = 17;  // one of prefill, 16 of decode
constexpr int kContext = 8448;

double Seconds(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

double ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  double total = 0, resident = 0;
  file >> total >> resident;
  return resident * 4096;
}

absl::StatusOr<std::shared_ptr<const ModelFolder>> RandomModel(int width, int layers) {
  const int feed_forward = width * 8 / 3 / 16 * 16, vocab = 32000;
  ALMOST_ASSIGN_OR_RETURN(const ModelConfig config,
                          ModelConfig::FromJson({{"architectures", {"LlamaForCausalLM"}},
                                                 {"model_type", "llama"},
                                                 {"vocab_size", vocab},
                                                 {"hidden_size", width},
                                                 {"intermediate_size", feed_forward},
                                                 {"num_hidden_layers", layers},
                                                 {"num_attention_heads", width / 64},
                                                 {"max_position_embeddings", kContext},
                                                 {"tie_word_embeddings", true}}));
  std::vector<std::vector<float>> kept;
  std::vector<TensorToWrite> tensors;
  RandomStream random(1);
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    std::vector<float>& values = kept.emplace_back(count, 1.0f);
    if (shape.size() > 1) {
      const double bound = 1 / std::sqrt(static_cast<double>(shape[1]));
      for (float& value : values) value = static_cast<float>(bound * (2 * random.Unit() - 1));
    }
    tensors.push_back({name, DType::kF32, shape, std::as_bytes(std::span(values))});
  };
  add("model.embed_tokens.weight", {vocab, width});
  add("model.norm.weight", {width});
  for (int i = 0; i < layers; ++i) {
    const std::string at = absl::StrCat("model.layers.", i, ".");
    add(at + "input_layernorm.weight", {width});
    add(at + "post_attention_layernorm.weight", {width});
    for (const char* name : {"q", "k", "v", "o"})
      add(absl::StrCat(at, "self_attn.", name, "_proj.weight"), {width, width});
    add(at + "mlp.gate_proj.weight", {feed_forward, width});
    add(at + "mlp.up_proj.weight", {feed_forward, width});
    add(at + "mlp.down_proj.weight", {width, feed_forward});
  }
  return ModelFolder::InMemory(config, tensors);
}

std::vector<int32_t> Tokens(uint64_t seed, int count) {
  RandomStream random(seed);
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random.Below(32000)));
  return tokens;
}

struct Rates {
  double first_token_seconds;  // from the submission to when all have their first token
  double decode_tokens_per_second;
};

// All the prompts at once, over the engines in turn.
Rates Run(std::span<Engine* const> engines, const std::vector<std::vector<int32_t>>& prompts) {
  std::mutex mutex;
  size_t begun = 0, tokens = 0;
  Clock::time_point all_begun, end;
  std::vector<std::vector<GenerationRequest>> requests(engines.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    GenerationRequest& request = requests[i % engines.size()].emplace_back();
    request.prompt_ids = prompts[i];
    request.sampling.temperature = 0;
    request.sampling.max_new_tokens = kNewTokens;
    request.on_token = [&, first = true](int, int32_t, const TokenLogprobs&) mutable {
      const std::lock_guard lock(mutex);
      end = Clock::now();
      if (std::exchange(first, false) && ++begun == prompts.size()) {
        all_begun = end;
        tokens = 0;
      } else {
        ++tokens;
      }
      return Continue::kYes;
    };
  }
  const Clock::time_point start = Clock::now();
  std::vector<std::jthread> threads;
  for (size_t e = 0; e < engines.size(); ++e) {
    threads.emplace_back([&, e] { engines[e]->Generate(std::move(requests[e])); });
  }
  threads.clear();
  return {Seconds(start, all_begun), static_cast<double>(tokens) / Seconds(all_begun, end)};
}

void Print(const char* axis, double x, const json& more) {
  json line = {{"axis", axis}, {"x", x}};
  line.update(more);
  std::cout << line.dump() << std::endl;
}

absl::Status Main(int threads, int width, int layers) {
  ALMOST_ASSIGN_OR_RETURN(const auto model, RandomModel(width, layers));
  const ModelConfig& config = model->config();
  const int64_t token_bytes = KvCache::BlockBytes(config) / kBlockTokens;
  const auto engine_for = [&](int64_t tokens, int sequences) {
    return Engine::Create(model, {.kv_cache_bytes = (tokens + 64 * kBlockTokens) * token_bytes,
                                  .max_batch_sequences = sequences,
                                  .num_threads = threads});
  };
  const auto at_once = [](Engine& engine, const std::vector<std::vector<int32_t>>& prompts) {
    Engine* const one = &engine;
    return Run({&one, 1}, prompts);
  };
  for (const int batch : {1, 2, 4, 8, 16, 32, 64, 128, 256}) {
    ALMOST_ASSIGN_OR_RETURN(const auto engine, engine_for(batch * (96 + kBlockTokens), batch));
    std::vector<std::vector<int32_t>> prompts;
    for (int i = 0; i < batch; ++i) prompts.push_back(Tokens(i, 64));
    const Rates rates = at_once(*engine, prompts);
    Print("batch", batch, {{"decode_tokens_per_second", rates.decode_tokens_per_second}});
  }
  for (const int prefix : {0, 256, 1024, 2048, 4096}) {
    ALMOST_ASSIGN_OR_RETURN(const auto engine, engine_for(prefix + 32 * 128, 32));
    const std::vector<int32_t> common = Tokens(99, prefix);
    std::vector<std::vector<int32_t>> prompts;
    for (int i = 0; i < 32; ++i) {
      prompts.push_back(common);
      const std::vector<int32_t> own = Tokens(100 + i, 64);
      prompts.back().insert(prompts.back().end(), own.begin(), own.end());
    }
    double prefill = 0;
    if (prefix > 0) {
      prefill = at_once(*engine, {prompts[0]}).first_token_seconds;
      prompts.erase(prompts.begin());
    }
    const Rates rates = at_once(*engine, prompts);
    Print("prefix", prefix,
          {{"decode_tokens_per_second", rates.decode_tokens_per_second},
           {"first_token_seconds_cold", prefill},
           {"first_token_seconds_of_31", rates.first_token_seconds}});
  }
  for (const int context : {128, 512, 2048, 8192}) {
    ALMOST_ASSIGN_OR_RETURN(const auto engine, engine_for(context + 64, 1));
    const double before = ResidentBytes();
    const Rates rates = at_once(*engine, {Tokens(7, context)});
    Print("context", context,
          {{"decode_tokens_per_second", rates.decode_tokens_per_second},
           {"prefill_tokens_per_second", context / rates.first_token_seconds}});
    if (context < 8192) continue;
    Print("memory", context,
          {{"theory", 2.0 * config.num_layers * config.num_kv_heads * config.head_dim * sizeof(float)},
           {"allocated", token_bytes},
           {"resident", (ResidentBytes() - before) / (context + kNewTokens)}});
  }
  std::vector<std::unique_ptr<Engine>> engines;
  for (int count = 1; count <= 4; ++count) {
    ALMOST_ASSIGN_OR_RETURN(auto engine, engine_for(64 * 128, 64));
    engines.push_back(std::move(engine));
    std::vector<Engine*> all;
    for (const auto& one : engines) all.push_back(one.get());
    std::vector<std::vector<int32_t>> prompts;
    for (int i = 0; i < 64; ++i) prompts.push_back(Tokens(1000 * count + i, 64));
    const Rates rates = Run(all, prompts);
    Print("models", count, {{"decode_tokens_per_second", rates.decode_tokens_per_second}});
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace almost::engine

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: cost_bench THREADS WIDTH LAYERS\n");
    return 1;
  }
  const absl::Status status =
      almost::engine::Main(std::atoi(argv[1]), std::atoi(argv[2]), std::atoi(argv[3]));
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
