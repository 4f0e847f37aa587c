#include "common/model/model_folder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/model/bounded_json.h"
#include "common/storage/env.h"
#include "nlohmann/json.hpp"

namespace almost {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// The safetensors files of a folder, by name: one, or the shards that the index lists.
absl::StatusOr<std::vector<std::string>> FileNames(const fs::path& folder) {
  const fs::path index_path = folder / "model.safetensors.index.json";
  if (!fs::exists(index_path)) {
    if (fs::exists(folder / "model.safetensors")) return std::vector<std::string>{"model.safetensors"};
    return absl::NotFoundError(
        absl::StrCat(folder.string(), ": neither model.safetensors nor model.safetensors.index.json"));
  }
  ALMOST_ASSIGN_OR_RETURN(const json index, ReadBoundedJson(index_path));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return absl::DataLossError(absl::StrCat(index_path.string(), ": no weight_map"));
  }
  std::vector<std::string> names;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string() || fs::path(shard.get<std::string>()).filename() != shard.get<std::string>() ||
        !shard.get<std::string>().ends_with(".safetensors")) {
      return absl::DataLossError(absl::StrCat(index_path.string(), ": tensor ", tensor, ": ", shard.dump(),
                                              " is not a safetensors file of this folder"));
    }
    names.push_back(shard.get<std::string>());
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

// As config.json calls it: what others load the model in unless told otherwise.
const char* TorchName(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    case DType::kF64:
      return "float64";
    case DType::kF32:
      break;
  }
  return "float32";
}

// One digest a tensor, then one over all: a large model is not concatenated in memory.
std::string Digest(const ModelConfig& config, const std::map<std::string, TensorView>& tensors) {
  json object = config.ToJson();
  for (const char* who_wrote_it : {"dtype", "torch_dtype", "transformers_version", "_name_or_path"}) {
    object.erase(who_wrote_it);
  }
  std::string whole = object.dump();
  for (const auto& [name, view] : tensors) {
    absl::StrAppend(&whole, "\n", name, " ", static_cast<int>(view.dtype), " [",
                    absl::StrJoin(view.shape, ","), "] ",
                    Sha256({reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size()}));
  }
  return Sha256(whole);
}

}  // namespace

struct ModelFolder::Impl {
  fs::path path;
  ModelConfig config;
  std::vector<std::unique_ptr<const SafetensorsFile>> files;
  std::vector<std::vector<std::byte>> memory;
  std::map<std::string, TensorView> tensors;
  std::string digest;
};

ModelFolder::ModelFolder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ModelFolder::~ModelFolder() = default;
const fs::path& ModelFolder::path() const { return impl_->path; }
const ModelConfig& ModelFolder::config() const { return impl_->config; }
const std::map<std::string, TensorView>& ModelFolder::tensors() const { return impl_->tensors; }
const std::string& ModelFolder::digest() const { return impl_->digest; }

absl::StatusOr<std::shared_ptr<const ModelFolder>> ModelFolder::Open(const fs::path& folder) {
  auto impl = std::make_unique<Impl>();
  impl->path = folder;
  ALMOST_ASSIGN_OR_RETURN(impl->config, ModelConfig::FromFolder(folder));
  ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> names, FileNames(folder));
  for (const std::string& name : names) {
    ALMOST_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(folder / name));
    for (const auto& [tensor, view] : file->tensors()) {
      if (!impl->tensors.emplace(tensor, view).second) {
        return absl::DataLossError(absl::StrCat(folder.string(), ": tensor ", tensor, " is in two files"));
      }
    }
    impl->files.push_back(std::move(file));
  }
  impl->digest = Digest(impl->config, impl->tensors);
  return std::shared_ptr<const ModelFolder>(new ModelFolder(std::move(impl)));
}

std::shared_ptr<const ModelFolder> ModelFolder::InMemory(const ModelConfig& config,
                                                         const std::vector<TensorToWrite>& tensors) {
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  for (const TensorToWrite& tensor : tensors) {
    const std::vector<std::byte>& bytes = impl->memory.emplace_back(tensor.bytes.begin(), tensor.bytes.end());
    impl->tensors.emplace(tensor.name, TensorView{tensor.dtype, tensor.shape, bytes});
  }
  impl->digest = Digest(impl->config, impl->tensors);
  return std::shared_ptr<const ModelFolder>(new ModelFolder(std::move(impl)));
}

absl::StatusOr<TensorView> ModelFolder::Tensor(absl::string_view name, std::span<const int64_t> shape) const {
  const auto found = impl_->tensors.find(std::string(name));
  if (found == impl_->tensors.end()) {
    return absl::NotFoundError(absl::StrCat(impl_->path.string(), ": no tensor ", name));
  }
  if (!std::equal(shape.begin(), shape.end(), found->second.shape.begin(), found->second.shape.end())) {
    return absl::DataLossError(absl::StrCat(impl_->path.string(), ": tensor ", name, " is [",
                                            absl::StrJoin(found->second.shape, ", "),
                                            "], config.json makes it [", absl::StrJoin(shape, ", "), "]"));
  }
  return found->second;
}

absl::Status WriteModelFolder(const fs::path& folder, const ModelConfig& config,
                              const std::vector<TensorToWrite>& tensors) {
  ALMOST_RETURN_IF_ERROR(WriteSafetensors(folder / "model.safetensors", tensors));
  json object = config.ToJson();
  object.erase("dtype");  // as newer transformers spell it; all read the older name
  if (!tensors.empty()) object["torch_dtype"] = TorchName(tensors.front().dtype);
  return Env::Posix()->WriteAtomically(folder / "config.json", object.dump(2) + "\n");
}

}  // namespace almost
