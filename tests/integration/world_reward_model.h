#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "common/base/random.h"
#include "common/model/model_folder.h"

namespace almost {

// Writes the tiny world's model S with a reward head of random weights by `seed` into `folder`.
inline absl::Status WriteWorldRewardModel(const std::filesystem::path& folder, uint64_t seed) {
  namespace fs = std::filesystem;
  const fs::path source = fs::path(std::getenv("ALMOST_SOURCE_DIR")) / "common/world/models/S";
  fs::create_directories(folder);
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "almost.json"}) {
    fs::copy_file(source / name, folder / name, fs::copy_options::overwrite_existing);
  }
  const auto base = ModelFolder::Open(source);
  if (!base.ok()) return base.status();
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, view] : (*base)->tensors()) {
    tensors.push_back({.name = name, .dtype = view.dtype, .shape = view.shape, .bytes = view.bytes});
  }
  const ModelConfig config = (*base)->config().WithRewardHead(true);
  std::vector<float> head(config.hidden_size);
  RandomStream random(seed);
  for (float& weight : head) weight = static_cast<float>(random.Normal());
  tensors.push_back({.name = "score.weight",
                     .dtype = DType::kF32,
                     .shape = {1, config.hidden_size},
                     .bytes = std::as_bytes(std::span(head))});
  return WriteModelFolder(folder, config, tensors);
}

}  // namespace almost
