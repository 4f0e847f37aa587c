// The CPU engine by itself, for tests/bench/engine_bench.py, which sets others beside it:
//   engine_bench model FOLDER float32|bfloat16|float16    writes a Llama of 134M random parameters
//   engine_bench kernels THREADS                          times matrix products and reading memory
//   engine_bench sampling                                 times drawing a token, one thread
//   engine_bench steps FOLDER THREADS                     times decode steps beside their bare products
//   engine_bench generate FOLDER THREADS <REQUEST         times requests; JSON in, JSON out
// REQUEST: {"prompts": [[id, …], …], "max_new_tokens": n, "temperature": t, "top_p": p, "repeats": r,
// "stop_token_ids": [id, …], "max_batch_sequences": s, "max_batch_tokens": b, "device": "cuda:0", "cublas":
// true, "kv_cache_bytes": c}. Each repeat has an engine of its own with an empty cache, loaded before the
// clock starts.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <tuple>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "common/engine/cpu_model.h"
#include "common/engine/engine.h"
#include "common/engine/sampler.h"
#include "nlohmann/json.hpp"

namespace almost::engine {
namespace {

using nlohmann::json;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of the shape of a small LLaMA. The head is scaled so that the next token has about 4 nats of entropy, as a
// language model's has: what top-p keeps depends on it.
absl::Status WriteRandomModel(const std::string& folder, const std::string& dtype) {
  const json source = {{"architectures", {"LlamaForCausalLM"}},
                       {"model_type", "llama"},
                       {"vocab_size", 32000},
                       {"hidden_size", 768},
                       {"intermediate_size", 2048},
                       {"num_hidden_layers", 12},
                       {"num_attention_heads", 12},
                       {"num_key_value_heads", 12},
                       {"max_position_embeddings", 16384},
                       {"rms_norm_eps", 1e-5},
                       {"hidden_act", "silu"},
                       {"rope_theta", 10000.0},
                       {"tie_word_embeddings", false},
                       {"bos_token_id", 1},
                       {"eos_token_id", 2},
                       {"torch_dtype", dtype}};
  ALMOST_ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::FromJson(source));
  const int64_t d = config.hidden_size, f = config.intermediate_size, v = config.vocab_size;
  std::vector<std::pair<std::string, std::vector<int64_t>>> shapes = {
      {"model.embed_tokens.weight", {v, d}}, {"lm_head.weight", {v, d}}, {"model.norm.weight", {d}}};
  for (int i = 0; i < config.num_layers; ++i) {
    const std::string at = absl::StrCat("model.layers.", i, ".");
    for (const char* name : {"q", "k", "v", "o"}) {
      shapes.push_back({absl::StrCat(at, "self_attn.", name, "_proj.weight"), {d, d}});
    }
    shapes.push_back({at + "mlp.gate_proj.weight", {f, d}});
    shapes.push_back({at + "mlp.up_proj.weight", {f, d}});
    shapes.push_back({at + "mlp.down_proj.weight", {d, f}});
    shapes.push_back({at + "input_layernorm.weight", {d}});
    shapes.push_back({at + "post_attention_layernorm.weight", {d}});
  }
  std::vector<std::vector<std::byte>> data;
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, shape] : shapes) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    RandomStream random(DeriveSeed(1, name));
    const double deviation = shape.size() == 1 ? 0 : name == "lm_head.weight" ? 0.126 : 0.02;
    const DType type = dtype == "float32" ? DType::kF32 : dtype == "bfloat16" ? DType::kBF16 : DType::kF16;
    std::vector<std::byte>& bytes = data.emplace_back(count * DTypeBytes(type));
    for (int64_t i = 0; i < count; ++i) {
      // Rounded to bfloat16, so that the folders are one model (float16 lacks the tiniest).
      float value = deviation == 0 ? 1.0f : static_cast<float>(deviation * random.Normal());
      const uint32_t bits = std::bit_cast<uint32_t>(value) & 0xffff0000;
      value = std::bit_cast<float>(bits);
      if (type == DType::kF32) {
        std::memcpy(&bytes[i * 4], &value, 4);
      } else if (type == DType::kBF16) {
        const auto high = static_cast<uint16_t>(bits >> 16);
        std::memcpy(&bytes[i * 2], &high, 2);
      } else {
        const auto half = static_cast<_Float16>(value);
        std::memcpy(&bytes[i * 2], &half, 2);
      }
    }
    tensors.push_back({name, type, shape, bytes});
  }
  return WriteModelFolder(folder, config, tensors);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// GFLOP/s of products by the number of rows, GB/s of one row's, and GB/s of memory that is only read.
json TimeKernels(int threads) {
  const Kernels& kernels = *Kernels::Best();
  ThreadTeam team(threads);
  json figures;
  const auto time = [&](int repeats, const auto& run) {
    std::vector<double> seconds;
    for (int i = 0; i < repeats; ++i) {
      const double start = Now();
      run();
      seconds.push_back(Now() - start);
    }
    return Median(std::move(seconds));
  };
  std::vector<char> memory(size_t{1} << 30, 1);
  const size_t piece = memory.size() / 256;
  figures["read GB/s"] = 1e-9 * memory.size() / time(9, [&] {
                           team.For(256, 1, [&](int, int begin, int end) {
                             if (std::memchr(memory.data() + begin * piece, 0, (end - begin) * piece))
                               std::abort();
                           });
                         });
  for (const auto& [name, type] :
       {std::pair("float32", WeightType::kFloat32), std::pair("bfloat16", WeightType::kBfloat16)}) {
    for (const auto& [inputs, outputs] :
         {std::pair(768, 4096), std::pair(4096, 4096), std::pair(768, 32000)}) {
      std::vector<uint16_t> weight(size_t(inputs) * outputs * (type == WeightType::kFloat32 ? 2 : 1), 0x3c00);
      const WeightView view{type, std::as_bytes(std::span(weight)).data(), outputs};
      const PackedMatrix packed({&view, 1}, inputs);
      for (const int rows : {1, 8, 64, 512}) {
        std::vector<float> x(rows * RowStride(inputs), 0.5f), out(rows * RowStride(outputs));
        const double seconds = time(15, [&] {
          Multiply(kernels, team, x.data(), RowStride(inputs), rows, packed, false, out.data(),
                   RowStride(outputs));
        });
        const std::string what = absl::StrCat(name, " ", inputs, "x", outputs, " rows ", rows);
        figures[what + " GFLOP/s"] = 2e-9 * rows * inputs * outputs / seconds;
        if (rows == 1) figures[what + " GB/s"] = 1e-9 * weight.size() * 2 / seconds;
      }
    }
  }
  return figures;
}

// Microseconds to draw a token from logits whose distribution has about 4 nats of entropy.
json TimeSampling() {
  Sampler sampler;
  json figures;
  for (const auto& [vocab, scale] : {std::pair(32000, 3.5), std::pair(151936, 4.0)}) {
    RandomStream random(vocab);
    std::vector<std::vector<float>> logits(8);
    for (std::vector<float>& row : logits) {
      for (int i = 0; i < vocab; ++i) row.push_back(static_cast<float>(scale * random.Normal()));
    }
    const std::pair<const char*, SamplingParams> cases[] = {
        {"greedy", {.temperature = 0}},
        {"whole", {}},
        {"top-p 0.9", {.top_p = 0.9}},
        {"top-p 0.95 at T 1.2", {.temperature = 1.2, .top_p = 0.95}},
        {"top-k 50", {.top_k = 50}},
        {"min-p 0.05", {.min_p = 0.05}}};
    for (const auto& [name, params] : cases) {
      std::vector<double> seconds;
      for (int i = 0; i < 64; ++i) {
        const double start = Now();
        if (!sampler(logits[i % logits.size()], params, 0, i)) std::abort();
        seconds.push_back(Now() - start);
      }
      figures[absl::StrCat("vocabulary ", vocab, " ", name, " us")] = 1e6 * Median(std::move(seconds));
    }
  }
  return figures;
}

// Milliseconds of an engine's decode step by the number of sequences, and of the bare matrix products in it.
absl::StatusOr<json> TimeSteps(const std::shared_ptr<const ModelFolder>& folder, int threads) {
  const ModelConfig& c = folder->config();
  const int up = (c.mlp == MlpKind::kSiluGated ? 2 : 1) * c.intermediate_size;
  const int q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  struct Matrix {
    int inputs, outputs, times;  // in a step
    PackedMatrix packed;
  };
  std::vector<Matrix> matrices;
  for (const auto& [inputs, outputs, times] :
       {std::tuple(c.hidden_size, q + 2 * kv, c.num_layers), std::tuple(q, c.hidden_size, c.num_layers),
        std::tuple(c.hidden_size, up, c.num_layers),
        std::tuple(c.intermediate_size, c.hidden_size, c.num_layers),
        std::tuple(c.hidden_size, c.vocab_size, 1)}) {
    const std::vector<float> weight(size_t(inputs) * outputs, 0.01f);
    const WeightView view{WeightType::kFloat32, std::as_bytes(std::span(weight)).data(), outputs};
    matrices.push_back({inputs, outputs, times, PackedMatrix({&view, 1}, inputs)});
  }
  ThreadTeam team(threads);
  constexpr int kPrompt = 16, kSteps = 48;
  json figures;
  for (const int sequences : {1, 8, 25, 100, 400}) {
    std::vector<double> products, steps;
    std::vector<float> x(sequences * RowStride(std::max(c.intermediate_size, c.hidden_size)), 0.5f);
    std::vector<float> out(sequences * RowStride(std::max(up, c.vocab_size)));
    for (int repeat = 0; repeat < 7; ++repeat) {
      const double start = Now();
      for (int step = 0; step < kSteps; ++step) {
        for (const Matrix& m : matrices) {
          for (int i = 0; i < m.times; ++i) {
            Multiply(*Kernels::Best(), team, x.data(), RowStride(m.inputs), sequences, m.packed, false,
                     out.data(), RowStride(m.outputs));
          }
        }
      }
      products.push_back((Now() - start) / kSteps);

      ALMOST_ASSIGN_OR_RETURN(
          const std::unique_ptr<Engine> engine,
          Engine::Create(folder, {.max_batch_sequences = sequences,
                                  .max_batch_tokens = sequences * (kPrompt + 1),
                                  .num_threads = threads}));
      std::vector<GenerationRequest> requests(sequences);
      double first = 0;
      for (int i = 0; i < sequences; ++i) {
        GenerationRequest& r = requests[i];
        for (int t = 0; t < kPrompt; ++t) r.prompt_ids.push_back((i * 31 + t * 7) % c.vocab_size);
        r.sampling.top_p = 0.95;
        r.sampling.max_new_tokens = kSteps + 1;
        r.sampling.seed = i;
        r.on_token = [&](int, int32_t, const TokenLogprobs&) {
          if (first == 0) first = Now();
          return Continue::kYes;
        };
      }
      for (const auto& result : engine->Generate(std::move(requests)))
        ALMOST_RETURN_IF_ERROR(result.status());
      steps.push_back((Now() - first) / kSteps);
    }
    const double step = 1e3 * Median(std::move(steps)), product = 1e3 * Median(std::move(products));
    figures[std::to_string(sequences)] = {
        {"step ms", step}, {"products ms", product}, {"ratio", step / product}};
  }
  return figures;
}

absl::StatusOr<json> Generate(const std::shared_ptr<const ModelFolder>& folder, int threads,
                              const json& request) {
  EngineOptions options;
  options.num_threads = threads;
  options.device = request.value("device", "cpu");
  options.cublas = request.value("cublas", false);
  options.kv_cache_bytes = request.value("kv_cache_bytes", int64_t{2} << 30);
  options.max_batch_sequences = request.value("max_batch_sequences", 64);
  options.max_batch_tokens = request.value("max_batch_tokens", 512);
  options.max_queued_requests = 1 << 20;
  json runs = json::array();
  for (int repeat = 0; repeat < request.value("repeats", 5); ++repeat) {
    ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(folder, options));
    std::vector<GenerationRequest> requests;
    double first_token = 0;
    for (const json& ids : request["prompts"]) {
      GenerationRequest& one = requests.emplace_back();
      one.prompt_ids = ids.get<std::vector<int32_t>>();
      one.sampling.temperature = request.value("temperature", 1.0);
      one.sampling.top_p = request.value("top_p", 1.0);
      one.sampling.max_new_tokens = request["max_new_tokens"];
      one.sampling.seed = requests.size();
      one.stop_token_ids = request.value("stop_token_ids", std::vector<int32_t>());
      one.on_token = [&](int, int32_t, const TokenLogprobs&) {
        if (first_token == 0) first_token = Now();
        return Continue::kYes;
      };
    }
    const double start = Now();
    const auto results = engine->Generate(std::move(requests));
    const double end = Now();
    for (const auto& result : results) ALMOST_RETURN_IF_ERROR(result.status());
    const EngineStats stats = engine->Stats();
    runs.push_back({{"seconds", end - start},
                    {"seconds_to_first_token", first_token - start},
                    {"samples", results.size()},
                    {"output_tokens", stats.output_tokens},
                    {"prompt_tokens", stats.prompt_tokens - stats.prefix_hit_tokens}});
  }
  return runs;
}

absl::Status Main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  if (verb == "model" && argc == 4) return WriteRandomModel(argv[2], argv[3]);
  if (verb == "kernels" && argc == 3) {
    std::cout << TimeKernels(std::stoi(argv[2])).dump(1) << "\n";
    return absl::OkStatus();
  }
  if (verb == "sampling" && argc == 2) {
    std::cout << TimeSampling().dump(1) << "\n";
    return absl::OkStatus();
  }
  if (verb == "steps" && argc == 4) {
    ALMOST_ASSIGN_OR_RETURN(const std::shared_ptr<const ModelFolder> folder, ModelFolder::Open(argv[2]));
    ALMOST_ASSIGN_OR_RETURN(const json figures, TimeSteps(folder, std::stoi(argv[3])));
    std::cout << figures.dump(1) << "\n";
    return absl::OkStatus();
  }
  if (verb == "generate" && argc == 4) {
    ALMOST_ASSIGN_OR_RETURN(const std::shared_ptr<const ModelFolder> folder, ModelFolder::Open(argv[2]));
    ALMOST_ASSIGN_OR_RETURN(const json runs, Generate(folder, std::stoi(argv[3]), json::parse(std::cin)));
    std::cout << runs.dump() << "\n";
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "usage: engine_bench model|kernels|sampling|steps|generate …; see the source's first lines");
}

}  // namespace
}  // namespace almost::engine

int main(int argc, char** argv) {
  const absl::Status status = almost::engine::Main(argc, argv);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
