// Peak memory of a training step, measured beside what it should be, for each way to hold a model:
//   memory_bench [CONFIG.json [TOKENS]]
// on one thread a rank: two steps on a single sample of TOKENS (1024) random tokens, in a process of its own
// each. The default model has 110 million parameters (12 layers of width 768). Prints a table.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "common/base/random.h"
#include "common/model/transformer.h"
#include "nlohmann/json.hpp"
#include "services/trainer/torch/learner.h"
#include "services/trainer/torch/rendezvous.h"
#include "services/trainer/torch/runtime.h"
#include "services/trainer/torch/token_logprobs.h"

namespace almost::trainer {
namespace {

struct Way {
  const char* name;
  torch::ScalarType dtype;
  bool recompute;
  int adapter_rank;
  int ranks;
};

constexpr Way kWays[] = {
    {"float32", torch::kFloat32, false, 0, 1},
    {"float32, layers recomputed", torch::kFloat32, true, 0, 1},
    {"float32, layers recomputed, 2 ranks", torch::kFloat32, true, 0, 2},
    {"bfloat16, layers recomputed", torch::kBFloat16, true, 0, 1},
    {"float32, LoRA of rank 16", torch::kFloat32, false, 16, 1},
    {"float32, LoRA, layers recomputed", torch::kFloat32, true, 16, 1},
    {"bfloat16, LoRA, layers recomputed", torch::kBFloat16, true, 16, 1},
};

// Of this process, from its status: "VmHWM", "VmRSS".
double Bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(field, 0) == 0) return 1024.0 * std::atof(line.c_str() + field.size() + 1);
  }
  return 0;
}

struct Measured {
  double peak_bytes, seconds;
};

// In a process of its own. `before` is what it takes without a model.
Measured Step(const Way& way, const ModelConfig& config, int64_t num_tokens, Group group) {
  torch::mm(torch::ones({64, 64}), torch::ones({64, 64}));  // MKL's own buffers
  const double before = Bytes("VmRSS");
  Transformer model = Transformer::Initialize(config, way.dtype, /*seed=*/1);
  if (way.recompute) model.RecomputeLayers();
  if (way.adapter_rank > 0) model.AddAdapters(way.adapter_rank, 2.0 * way.adapter_rank, /*seed=*/2);
  Learner learner(std::move(model), {.learning_rate = 1e-4}, /*num_threads=*/1, group);
  RandomStream random(3);
  std::vector<std::vector<int32_t>> sample(1);
  for (int64_t i = 0; i < num_tokens; ++i) {
    sample[0].push_back(static_cast<int32_t>(random.Below(config.vocab_size)));
  }
  const PackedSamples samples = PackedSamples::Pack(sample);
  const torch::Tensor rows_M = torch::arange(num_tokens - 1);
  const torch::Tensor targets_M = samples.tokens_N.narrow(0, 1, num_tokens - 1);
  Measured measured{};
  for (int step = 0; step < 2; ++step) {
    const auto begin = std::chrono::steady_clock::now();
    learner.Update(group.size(), 1.0, [&](const Transformer& replica, size_t) {
      return -TokenLogprobs(replica.Hidden(samples, rows_M), replica.HeadWeight(), targets_M).mean();
    });
    measured.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  measured.peak_bytes = Bytes("VmHWM") - before;
  return measured;
}

Measured Run(const Way& way, const ModelConfig& config, int64_t num_tokens) {
  const int port = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t length = sizeof address;
  bind(port, reinterpret_cast<sockaddr*>(&address), length);
  getsockname(port, reinterpret_cast<sockaddr*>(&address), &length);
  int results[2];
  if (pipe(results) != 0) std::abort();
  std::vector<pid_t> children;
  for (int rank = 0; rank < way.ranks; ++rank) {
    children.push_back(fork());
    if (children.back() != 0) continue;
    ConfigureLibTorch();
    Group group;
    std::unique_ptr<Rendezvous> rendezvous;
    if (way.ranks > 1) {
      rendezvous = Rendezvous::Open({.rank = rank,
                                     .world_size = way.ranks,
                                     .master_port = ntohs(address.sin_port),
                                     .listen_socket = rank == 0 ? dup(port) : -1})
                       .value();
      group = rank == 0 ? rendezvous->Call("", "", {}, nullptr).value()
                        : rendezvous->Follow("", {}).value().group;
    }
    const Measured measured = Step(way, config, num_tokens, std::move(group));
    if (rank == 0 && write(results[1], &measured, sizeof measured) < 0) std::abort();
    _exit(0);
  }
  Measured measured{};
  for (const pid_t child : children) waitpid(child, nullptr, 0);
  if (read(results[0], &measured, sizeof measured) != sizeof measured) std::abort();
  for (const int fd : {port, results[0], results[1]}) close(fd);
  return measured;
}

// What weights, gradients and the optimizer take, and what a backward pass finds of the forward one.
struct Theory {
  double state_bytes, activation_bytes;
};

Theory Expect(const Way& way, const ModelConfig& c, int64_t n) {
  const double d = c.hidden_size, f = c.intermediate_size, layers = c.num_layers;
  const double q = double{1} * c.num_heads * c.head_dim, kv = double{1} * c.num_kv_heads * c.head_dim;
  const double all = static_cast<double>(c.NumParameters());
  const double width = way.dtype == torch::kFloat32 ? 4 : 2;
  double trained = all;
  if (way.adapter_rank > 0) {
    trained = layers * way.adapter_rank * ((d + q) + 2 * (d + kv) + (q + d) + 2 * (d + f) + (f + d));
  }
  // Gradients and two moments in float32, a float32 copy of 16-bit weights; moments and copy are shared out.
  const double optimizer = trained * (8 + (width < 4 ? 4 : 0)) / way.ranks;
  const double adapters = way.adapter_rank > 0 ? width * trained : 0;
  const double state = width * all + adapters + 4 * trained + optimizer;
  // Of a layer, by token, in float32: its input and that of the second half, both normed, turned q, k and v,
  // attention's output, gate and up; with adapters the product of those too. LibTorch's operators, in
  // bfloat16, keep more: the normed rows before their weights, q, k and v before they are turned and as
  // squares, silu(gate).
  const double floats = 4 * d + (q + 2 * kv) + q + (way.adapter_rank > 0 ? 3 : 2) * f;
  const double more = 4 * d + 3 * (q + 2 * kv) + 2 * q + 4 * f;
  const double layer = n * width * (width == 4 ? floats : more);
  const double kept = way.recompute ? layers * n * width * d + layer : layers * layer;
  return {state, kept};
}

ModelConfig DefaultConfig() {
  return ModelConfig::FromJson({{"architectures", {"LlamaForCausalLM"}},
                                {"model_type", "llama"},
                                {"vocab_size", 32000},
                                {"hidden_size", 768},
                                {"intermediate_size", 2048},
                                {"num_hidden_layers", 12},
                                {"num_attention_heads", 12},
                                {"num_key_value_heads", 12},
                                {"max_position_embeddings", 2048},
                                {"rms_norm_eps", 1e-5},
                                {"rope_theta", 10000.0},
                                {"hidden_act", "silu"},
                                {"tie_word_embeddings", true},
                                {"eos_token_id", 2}})
      .value();
}

int Main(int argc, char** argv) {
  ModelConfig config = DefaultConfig();
  if (argc > 1) {
    std::ifstream file(argv[1]);
    config = ModelConfig::FromJson(nlohmann::json::parse(file)).value();
  }
  const int64_t num_tokens = argc > 2 ? std::atoll(argv[2]) : 1024;
  std::printf("%.1f million parameters, %lld tokens; MB of a rank beyond an idle process\n",
              1e-6 * static_cast<double>(config.NumParameters()), static_cast<long long>(num_tokens));
  std::printf("| %-36s | state | activations | sum | measured | seconds a step |\n", "");
  std::printf("| %s | --: | --: | --: | --: | --: |\n", std::string(36, '-').c_str());
  for (const Way& way : kWays) {
    const Theory theory = Expect(way, config, num_tokens);
    const Measured measured = Run(way, config, num_tokens);
    std::printf("| %-36s | %.0f | %.0f | %.0f | %.0f | %.1f |\n", way.name, 1e-6 * theory.state_bytes,
                1e-6 * theory.activation_bytes, 1e-6 * (theory.state_bytes + theory.activation_bytes),
                1e-6 * measured.peak_bytes, measured.seconds);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace almost::trainer

int main(int argc, char** argv) { return almost::trainer::Main(argc, argv); }
