// Runs one training job in this process, for comparisons with other programs:
//   run_job SPEC.json WORK_FOLDER [REWARD_MODEL]
// SPEC.json is a JobSpec; its folders and files are addressed from the working directory. Prints a line of
// JSON a step: its metrics. The model is left in WORK_FOLDER/model. REWARD_MODEL: a folder, scored in this
// process.
//   run_job order SEED SAMPLES EPOCHS BATCH
// prints the samples of each step, for a program that is to take the same.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "google/protobuf/util/json_util.h"
#include "nlohmann/json.hpp"
#include "services/trainer/core/data_order.h"
#include "services/trainer/rpc/job_spec_proto.h"
#include "services/trainer/torch/runtime.h"
#include "services/trainer/torch/train.h"
#include "tests/bench/in_process_reward.h"

namespace almost::trainer {
namespace {

int PrintOrder(char** argv) {
  DataOrder order(std::stoull(argv[2]), std::stoll(argv[3]), std::stoi(argv[4]), std::stoi(argv[5]));
  for (int64_t step = 0; step < order.num_steps(); ++step) {
    std::cout << nlohmann::json(order.Batch(step)).dump() << "\n";
  }
  return 0;
}

int Main(int argc, char** argv) {
  if (argc == 6 && std::string(argv[1]) == "order") return PrintOrder(argv);
  if (argc != 3 && argc != 4) {
    std::cerr << "usage: run_job SPEC.json WORK_FOLDER [REWARD_MODEL] (see the source)\n";
    return 2;
  }
  ConfigureLibTorch();
  std::ifstream file(argv[1]);
  std::stringstream text;
  text << file.rdbuf();
  v1::JobSpec proto;
  if (const auto status = google::protobuf::util::JsonStringToMessage(text.str(), &proto); !status.ok()) {
    std::cerr << argv[1] << ": " << status.ToString() << "\n";
    return 2;
  }
  const auto spec = ReadJobSpec(proto, /*store=*/nullptr, std::filesystem::current_path());
  if (!spec.ok()) {
    std::cerr << spec.status() << "\n";
    return 2;
  }
  TrainContext context;
  context.work_folder = argv[2];
  context.report = [](int64_t step, int64_t num_steps, const std::map<std::string, double>& metrics) {
    nlohmann::json line = metrics;
    line["step"] = step;
    line["num_steps"] = num_steps;
    std::cout << line.dump() << std::endl;
  };
  if (argc == 4) context.reward = InProcessReward(argv[3]);
  const auto trained = Train(*spec, context);
  if (!trained.ok()) std::cerr << trained.status() << "\n";
  return trained.ok() ? 0 : 1;
}

}  // namespace
}  // namespace almost::trainer

int main(int argc, char** argv) { return almost::trainer::Main(argc, argv); }
