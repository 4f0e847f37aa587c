// Times a training job in this process, as the trainer service would run it:
//   training_bench pretrain CONFIG.json WORLD_SEED
//   training_bench sft|reward_model|dpo MODEL DATASET
//   training_bench ppo MODEL DATASET REWARD_MODEL
// with the tiny world's settings, on ALMOST_BENCH_THREADS threads (2); ALMOST_BENCH_KEEP: a folder to copy
// the model to. Prints one JSON object.
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <string>

#include "absl/time/clock.h"
#include "nlohmann/json.hpp"
#include "services/trainer/torch/runtime.h"
#include "services/trainer/torch/train.h"
#include "tests/bench/in_process_reward.h"

namespace almost::trainer {
namespace {

double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) { return time.tv_sec + 1e-6 * time.tv_usec; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

KindSpec Kind(const std::string& kind, const std::string& data, OptimizerSpec& optimizer) {
  if (kind == "pretrain") {
    optimizer.learning_rate = 4e-3;
    optimizer.muon_learning_rate = 0.02;
    optimizer.muon_weight_decay = 0.02;
    return PretrainSpec{
        .world_seed = std::stoull(data), .num_tokens = 192000, .sequence_tokens = 320, .batch_sequences = 6};
  }
  if (kind == "sft") {
    optimizer.learning_rate = 1e-3;
    return SftSpec{.dataset = data, .epochs = 3, .batch_size = 16};
  }
  if (kind == "reward_model") {
    optimizer.learning_rate = 5e-4;
    return RewardModelSpec{.dataset = data, .batch_size = 16, .held_out_fraction = 0.05};
  }
  if (kind == "dpo") {
    optimizer.learning_rate = 1e-4;
    return DpoSpec{.dataset = data, .batch_size = 16};
  }
  optimizer.learning_rate = 3e-4;
  return PpoSpec{.dataset = data,
                 .num_iterations = 60,
                 .rollouts = 64,
                 .epochs = 2,
                 .minibatch_size = 32,
                 .max_new_tokens = 60,
                 .kl_coefficient = 0.05,
                 .value_learning_rate = 2e-3,
                 .missing_stop_reward = -3,
                 .normalize_rewards = true};
}

int Main(int argc, char** argv) {
  if (argc < 4 || (std::string(argv[1]) == "ppo" && argc < 5)) {
    std::cerr << "usage: training_bench KIND MODEL DATA [REWARD_MODEL] (see the source)\n";
    return 2;
  }
  ConfigureLibTorch();
  const std::string kind = argv[1];
  const char* keep = std::getenv("ALMOST_BENCH_KEEP");
  const char* threads = std::getenv("ALMOST_BENCH_THREADS");
  JobSpec spec{.num_threads = threads == nullptr ? 2 : std::atoi(threads)};
  spec.optimizer = {
      .schedule = Schedule::kLinear, .warmup_steps = 10, .final_fraction = 0.05, .max_grad_norm = 1};
  spec.kind = Kind(kind, argv[3], spec.optimizer);
  if (kind == "pretrain") {
    std::get<PretrainSpec>(spec.kind).model_config = argv[2];
  } else {
    spec.base_model = argv[2];
  }
  const std::filesystem::path work =
      std::filesystem::temp_directory_path() / ("training_bench-" + std::to_string(getpid()));
  nlohmann::json last;
  double tokens = 0, step_seconds = 0;
  TrainContext context{
      .work_folder = work,
      .stop = {},
      .report =
          [&](int64_t step, int64_t num_steps, const std::map<std::string, double>& metrics) {
            last = metrics;
            tokens += metrics.at("tokens");
            step_seconds += metrics.at("step_seconds");
            if (step % 10 == 0 || step == num_steps)
              std::cerr << step << "/" << num_steps << " " << last << "\n";
          },
      .warn = {},
      .reward = kind == "ppo" ? InProcessReward(argv[4]) : RewardFunction()};
  const absl::Time begin = absl::Now();
  const double cpu_begin = CpuSeconds();
  const auto trained = Train(spec, context);
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begin), cpu = CpuSeconds() - cpu_begin;
  if (!trained.ok()) {
    std::cerr << trained.status() << "\n";
    return 1;
  }
  std::ifstream manifest(work / "model" / "almost.json");
  std::cout << nlohmann::json{{"kind", kind},
                              {"seconds", seconds},
                              {"cpu_seconds", cpu},
                              {"tokens_per_second", tokens / step_seconds},
                              {"last_step", last},
                              {"manifest", nlohmann::json::parse(manifest)},
                              {"digest", trained->output_digest}}
                   .dump(1)
            << "\n";
  if (keep != nullptr) std::filesystem::copy(work / "model", keep, std::filesystem::copy_options::recursive);
  std::filesystem::remove_all(work);
  return 0;
}

}  // namespace
}  // namespace almost::trainer

int main(int argc, char** argv) { return almost::trainer::Main(argc, argv); }
