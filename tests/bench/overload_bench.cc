// Goodput under overload: the generation service with the tiny world's L behind a real port, in this process,
// under calls that arrive by a Poisson process whether or not earlier ones have been answered.
//
//   overload_bench [--seconds 10] [--deadline 4] [--threads 1]
//
// The capacity is what 32 callers get who each wait for their answer. Then loads of 0.5 to 10 times it: what
// is answered within its deadline, what is refused and how fast, and the memory.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/logging/logging.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "services/generation/rpc/generation_service.h"

namespace almost::generation {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kItems = 4;  // of a call

double Since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double ResidentMegabytes() {
  std::ifstream file("/proc/self/statm");
  double total = 0, resident = 0;
  file >> total >> resident;
  return resident * 4096 / 1e6;
}

v1::GenerateRequest Request(uint64_t seed) {
  v1::GenerateRequest request;
  request.set_model("models/L");
  types::v1::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_max_new_tokens(60);
  sampling.set_top_p(0.95);
  sampling.set_seed(seed);
  sampling.add_stop("\n");
  for (int i = 0; i < kItems; ++i) {
    types::v1::Message& message = *request.add_items()->mutable_input()->mutable_messages()->add_messages();
    message.set_role("user");
    message.set_content(absl::StrCat("What is ", (seed + i) % 6 + 1, " plus ", seed % 5 + 1, "?"));
  }
  return request;
}

// What became of a load's calls.
struct Outcome {
  std::atomic<int> in_time = 0, refused = 0, refused_without_retry_info = 0, late = 0, other = 0, left = 0;
  std::vector<double> refusal_seconds;  // by call; 0: not refused
};

struct Call {
  grpc::ClientContext context;
  v1::GenerateRequest request;
  v1::GenerateResponse response;
};

void Send(v1::GenerationService::Stub& stub, Outcome& outcome, size_t number, double deadline) {
  auto call = std::make_shared<Call>();
  call->request = Request(number);
  call->context.set_deadline(std::chrono::system_clock::now() +
                             std::chrono::microseconds(static_cast<int64_t>(deadline * 1e6)));
  ++outcome.left;
  const Clock::time_point start = Clock::now();
  stub.async()->Generate(&call->context, &call->request, &call->response,
                         [call, &outcome, number, start](const grpc::Status& status) {
                           if (status.ok()) {
                             ++outcome.in_time;
                           } else if (status.error_code() == grpc::RESOURCE_EXHAUSTED) {
                             ++outcome.refused;
                             outcome.refusal_seconds[number] = Since(start);
                             if (RetryDelay(FromGrpc(status)) == absl::ZeroDuration())
                               ++outcome.refused_without_retry_info;
                           } else if (status.error_code() == grpc::DEADLINE_EXCEEDED) {
                             ++outcome.late;
                           } else {
                             ++outcome.other;
                           }
                           --outcome.left;
                         });
}

// Calls a second that callers get who each wait for their answer.
double Capacity(v1::GenerationService::Stub& stub, int callers, double seconds) {
  std::atomic<int> calls = 0;
  const Clock::time_point start = Clock::now();
  std::vector<std::jthread> threads;
  for (int c = 0; c < callers; ++c) {
    threads.emplace_back([&, c] {
      for (uint64_t seed = c; Since(start) < seconds; seed += callers) {
        grpc::ClientContext context;
        v1::GenerateResponse response;
        if (stub.Generate(&context, Request(seed), &response).ok() && Since(start) < seconds) ++calls;
      }
    });
  }
  threads.clear();
  return calls / seconds;
}

int Main(double seconds, double deadline, int engine_threads) {
  if (!log::Start("overload_bench", "error").ok()) return 1;
  prometheus::Registry registry;
  Metrics metrics(registry);
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.drain_seconds = 1;
  ModelRegistry models(ModelRegistry::Head::kLanguageModel, nullptr,
                       std::string(std::getenv("ALMOST_SOURCE_DIR")) + "/common/world/models",
                       {.num_threads = engine_threads}, registry,
                       [&](const std::string& model) { return metrics.Of(model); },
                       LoadGate::MostCalls(options.max_threads));
  GenerationService service(models, metrics);
  const auto server =
      Server::Start(options, {{v1::GenerationService::service_full_name(), &service}}, registry);
  if (!server.ok() || !models.LoadAll({"L=L"}).ok()) return 1;
  const auto stub = v1::GenerationService::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", (*server)->port()), grpc::InsecureChannelCredentials()));
  Capacity(*stub, 32, 2);
  const double capacity = Capacity(*stub, 32, seconds);
  std::printf("capacity: %.1f calls/s of %d items, deadline %.1f s, %d engine threads\n\n", capacity, kItems,
              deadline, engine_threads);
  std::printf(
      "| load | offered calls/s | answered in time | of capacity | refused | p50 ms | p99 ms | late | MB "
      "|\n");
  std::printf("| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  int other = 0, silent = 0;
  for (const double load : {0.5, 1.0, 2.0, 4.0, 10.0}) {
    Outcome outcome;
    const auto count = static_cast<size_t>(load * capacity * seconds);
    outcome.refusal_seconds.resize(count);
    RandomStream random(static_cast<uint64_t>(load * 2));
    const Clock::time_point start = Clock::now();
    double next = 0;
    for (size_t i = 0; i < count; ++i) {
      next -= std::log(1 - random.Unit()) / (load * capacity);
      if (const double wait = next - Since(start); wait > 0)
        std::this_thread::sleep_for(std::chrono::duration<double>(wait));
      Send(*stub, outcome, i, deadline);
    }
    while (outcome.left > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    // Over the time until the last one is answered: what was queued at the end counts with its time.
    const double time = Since(start);
    std::vector<double> refusals;
    for (const double s : outcome.refusal_seconds) {
      if (s > 0) refusals.push_back(s);
    }
    std::sort(refusals.begin(), refusals.end());
    const auto quantile = [&](double q) {
      return refusals.empty()
                 ? 0.0
                 : 1e3 * refusals[static_cast<size_t>(q * static_cast<double>(refusals.size() - 1))];
    };
    std::printf("| %.1f | %.0f | %.1f/s | %.0f %% | %d | %.1f | %.1f | %d | %.0f |\n", load, load * capacity,
                outcome.in_time / time, 100 * outcome.in_time / time / capacity, outcome.refused.load(),
                quantile(0.5), quantile(0.99), outcome.late.load(), ResidentMegabytes());
    std::fflush(stdout);
    other += outcome.other;
    silent += outcome.refused_without_retry_info;
  }
  // What clients gave up last is out of the engine after a look and a step.
  const Clock::time_point end = Clock::now();
  const auto in_use = [&] {
    const engine::EngineStats stats = models.Stats()["models/L"];
    return stats.total_blocks - stats.free_blocks;
  };
  while (in_use() > 0 && Since(end) < 10) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::printf("\n%d other errors; %d refusals by gRPC itself, without RetryInfo; %ld blocks in use\n", other,
              silent, in_use());
  const bool right = other == 0 && in_use() == 0;
  return right ? 0 : 1;
}

}  // namespace
}  // namespace almost::generation

int main(int argc, char** argv) {
  CLI::App app("Goodput under overload.", "overload_bench");
  double seconds = 10, deadline = 4;
  int threads = 1;
  app.add_option("--seconds", seconds, "Of each load")->capture_default_str();
  app.add_option("--deadline", deadline, "Of each call, seconds")->capture_default_str();
  app.add_option("--threads", threads, "Of the engine")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return almost::generation::Main(seconds, deadline, threads);
}
