// Prints what this suite's CPU engine computes, for make_model_goldens.py to compare with transformers.
//
//   print_logits MODEL_FOLDER [COPY]
//
// Standard input: {"sequences": [[id, …], …], "prompts": [[id, …], …], "max_new_tokens": n}
// Standard output: {"logits": [[[…]]] (per sequence and position; a reward model: [[score]]), "completions":
// […]} With COPY, an existing folder, the model is also written there as this suite writes models.

#include <cstdio>
#include <iostream>

#include "common/base/status_macros.h"
#include "common/engine/engine.h"
#include "nlohmann/json.hpp"
#include "tests/parity/whole_logits.h"

namespace almost::engine {
namespace {

using nlohmann::json;

absl::Status Copy(const ModelFolder& folder, const char* to) {
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, view] : folder.tensors()) {
    tensors.push_back({name, view.dtype, view.shape, view.bytes});
  }
  return WriteModelFolder(to, folder.config(), tensors);
}

absl::StatusOr<json> Answer(const std::shared_ptr<const ModelFolder>& folder, const json& request) {
  json answer = {{"logits", json::array()}, {"completions", json::array()}};
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<const CpuModel> model, CpuModel::Load(*folder));
  const size_t width = folder->config().reward_head ? 1 : folder->config().vocab_size;
  for (const json& ids : request["sequences"]) {
    const std::vector<float> logits = WholeLogits(*model, ids.get<std::vector<int32_t>>());
    json rows = json::array();
    for (size_t at = 0; at < logits.size(); at += width) {
      rows.push_back(std::vector<float>(logits.begin() + at, logits.begin() + at + width));
    }
    answer["logits"].push_back(std::move(rows));
  }
  if (folder->config().reward_head) return answer;
  ALMOST_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(folder, {}));
  std::vector<GenerationRequest> requests;
  for (const json& ids : request["prompts"]) {
    GenerationRequest& one = requests.emplace_back();
    one.prompt_ids = ids.get<std::vector<int32_t>>();
    one.sampling.temperature = 0;
    one.sampling.max_new_tokens = request["max_new_tokens"];
  }
  for (absl::StatusOr<std::vector<Candidate>>& result : engine->Generate(std::move(requests))) {
    ALMOST_RETURN_IF_ERROR(result.status());
    answer["completions"].push_back(result->front().token_ids);
  }
  return answer;
}

absl::Status Main(int argc, char** argv) {
  if (argc < 2) return absl::InvalidArgumentError("usage: print_logits MODEL_FOLDER [COPY]");
  ALMOST_ASSIGN_OR_RETURN(const std::shared_ptr<const ModelFolder> folder, ModelFolder::Open(argv[1]));
  if (argc > 2) ALMOST_RETURN_IF_ERROR(Copy(*folder, argv[2]));
  ALMOST_ASSIGN_OR_RETURN(const json answer, Answer(folder, json::parse(std::cin)));
  std::cout << answer.dump() << "\n";
  return absl::OkStatus();
}

}  // namespace
}  // namespace almost::engine

int main(int argc, char** argv) {
  const absl::Status status = almost::engine::Main(argc, argv);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
