// Pretrains one model, with progress on standard error, until the trainer service does.
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include "services/trainer/torch/runtime.h"
#include "services/trainer/torch/train.h"

int main(int argc, char** argv) {
  using namespace almost::trainer;
  if (argc != 9) {
    std::fprintf(stderr,
                 "usage: %s CONFIG.json|FOLDER DATASET.jsonl|world:SEED WORK TOKENS LR MUON_LR THREADS "
                 "FIRST_DOCUMENT\n",
                 argv[0]);
    return 2;
  }
  ConfigureLibTorch();
  JobSpec spec;
  PretrainSpec pretrain;
  const std::string base = argv[1];
  (base.ends_with(".json") ? pretrain.model_config : spec.base_model) = base;
  const std::string dataset = argv[2];
  if (dataset.starts_with("world:")) {
    pretrain.world_seed = std::stoull(dataset.substr(6));
  } else {
    pretrain.dataset = dataset;
  }
  pretrain.num_tokens = std::atoll(argv[4]);
  pretrain.sequence_tokens = 320;
  pretrain.batch_sequences = 6;
  pretrain.first_document = std::atoll(argv[8]);
  spec.optimizer = {.learning_rate = std::atof(argv[5]),
                    .schedule = Schedule::kLinear,
                    .warmup_steps = 40,
                    .hold_fraction = 0.5,
                    .final_fraction = 0.03,
                    .muon_learning_rate = std::atof(argv[6]),
                    .muon_weight_decay = 0.02};
  spec.num_threads = std::atoi(argv[7]);
  spec.kind = pretrain;
  double loss = 0, tokens = 0, seconds = 0;
  TrainContext context{.work_folder = argv[3],
                       .stop = {},
                       .report =
                           [&](int64_t step, int64_t num_steps, const Metrics& metrics) {
                             loss += metrics.at("loss");
                             tokens += metrics.at("tokens");
                             seconds += metrics.at("step_seconds");
                             if (step % 50 == 0 || step == num_steps) {
                               std::fprintf(stderr, "%ld/%ld loss %.4f  %.0f tokens/s\n", long(step),
                                            long(num_steps), loss / 50, tokens / seconds);
                               loss = tokens = seconds = 0;
                             }
                           },
                       .warn = {},
                       .reward = {}};
  const auto trained = Train(spec, context);
  if (!trained.ok()) {
    std::fprintf(stderr, "%s\n", trained.status().ToString().c_str());
    return 1;
  }
  std::printf("%s %s\n", trained->output_digest.c_str(), trained->numerics_id.c_str());
}
