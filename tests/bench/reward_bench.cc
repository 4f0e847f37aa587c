// Scores sequences with the CPU engine, for tests/bench/reward_bench.py, which sets transformers beside it:
//   reward_bench FOLDER THREADS
// Standard input: lines of {"sequences": [[id, …], …], "batch": n}, n sequences a call (64 where there is
// none); standard output, a line each: {"seconds": s, "scores": [x, …], "computed_tokens": n}. Each line has
// an engine of its own with an empty cache, made before the clock starts.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include "common/base/status_macros.h"
#include "common/engine/engine.h"
#include "nlohmann/json.hpp"

namespace almost::engine {
namespace {

using nlohmann::json;

absl::Status Main(int argc, char** argv) {
  if (argc != 3) return absl::InvalidArgumentError("usage: reward_bench FOLDER THREADS");
  ALMOST_ASSIGN_OR_RETURN(const std::shared_ptr<const ModelFolder> folder, ModelFolder::Open(argv[1]));
  for (std::string line; std::getline(std::cin, line);) {
    const json request = json::parse(line);
    const auto sequences = request["sequences"].get<std::vector<std::vector<int32_t>>>();
    const size_t batch = request.value("batch", size_t{64});
    ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                            Engine::Create(folder, {.num_threads = std::atoi(argv[2])}));
    std::vector<float> scores;
    const auto start = std::chrono::steady_clock::now();
    for (size_t begin = 0; begin < sequences.size(); begin += batch) {
      const auto part = std::span(sequences).subspan(begin, std::min(batch, sequences.size() - begin));
      ALMOST_ASSIGN_OR_RETURN(const std::vector<float> some, engine->ScoreSequences(part));
      scores.insert(scores.end(), some.begin(), some.end());
    }
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    const EngineStats stats = engine->Stats();
    const json answer = {{"seconds", time.count()},
                         {"scores", scores},
                         {"computed_tokens", stats.prompt_tokens - stats.prefix_hit_tokens}};
    std::cout << answer.dump() << std::endl;
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace almost::engine

int main(int argc, char** argv) {
  const absl::Status status = almost::engine::Main(argc, argv);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
