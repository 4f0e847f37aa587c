#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/model/model_config.h"
#include "common/model/safetensors.h"

// Hugging Face model folders: config.json, model.safetensors or its shards with model.safetensors.index.json.
namespace almost {

// An opened, verified folder. Immutable and thread-safe; keeps its files mapped.
// Every header length, offset, shape product and overlap is checked before use: a hostile or truncated file
// is kDataLoss naming the file and the tensor. Pickle files are never read.
class ModelFolder {
 public:
  static absl::StatusOr<std::shared_ptr<const ModelFolder>> Open(const std::filesystem::path& folder);
  // The same of tensors in memory, which are copied: a model in training, for the engine. Its path is empty.
  static std::shared_ptr<const ModelFolder> InMemory(const ModelConfig& config,
                                                     const std::vector<TensorToWrite>& tensors);
  ~ModelFolder();

  const std::filesystem::path& path() const;
  const ModelConfig& config() const;
  const std::map<std::string, TensorView>& tensors() const;
  // kNotFound names the tensor; kDataLoss: another shape than `shape`.
  absl::StatusOr<TensorView> Tensor(absl::string_view name, std::span<const int64_t> shape) const;
  // SHA-256 over config.json (but for what only says who wrote it) and the tensors' names, dtypes, shapes and
  // bytes: equal weights, equal digest, however they are sharded.
  const std::string& digest() const;

 private:
  struct Impl;
  explicit ModelFolder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Writes config.json and model.safetensors into the existing `folder`, each by write, fsync, rename.
// Tokenizer files, generation_config.json and almost.json are the caller's.
absl::Status WriteModelFolder(const std::filesystem::path& folder, const ModelConfig& config,
                              const std::vector<TensorToWrite>& tensors);

}  // namespace almost
