#include "common/serving/model_registry.h"

#include <chrono>
#include <cmath>
#include <fstream>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/ids.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/base/unicode.h"
#include "common/engine/weights.h"
#include "common/kernels/thread_team.h"
#include "common/metrics/metrics_server.h"
#include "common/model/model_folder.h"
#include "common/rpc/status.h"
#include "common/storage/env.h"
#include "nlohmann/json.hpp"

namespace almost {
namespace {

types::v1::DType DTypeOf(DType type) {
  return type == DType::kBF16  ? types::v1::DTYPE_BFLOAT16
         : type == DType::kF16 ? types::v1::DTYPE_FLOAT16
                               : types::v1::DTYPE_FLOAT32;
}

// Of all engines of the process: they take turns on one team.
engine::EngineOptions OnOneTeam(engine::EngineOptions options) {
  if (options.num_threads == 0) options.num_threads = UsableProcessors();
  options.team = std::make_shared<SharedTeam>(options.num_threads);
  return options;
}

constexpr absl::string_view kPrefix = "models/";

absl::Status CheckName(absl::string_view name) {
  if (!absl::StartsWith(name, kPrefix)) return InvalidField("name", "models/{id}", name);
  return ValidateId("name", name.substr(kPrefix.size()));
}

// almost.json beside the weights: prompt format and, for reward models, how scores are normalised.
absl::Status ReadManifest(const std::filesystem::path& folder, ServedModel& model) {
  model.format = PromptFormat::Paper();
  const std::filesystem::path path = folder / "almost.json";
  std::ifstream file(path);
  if (!file) return absl::OkStatus();
  const nlohmann::json manifest = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!manifest.is_object()) return absl::DataLossError(absl::StrCat(path.string(), " is not a JSON object"));
  try {
    ALMOST_ASSIGN_OR_RETURN(model.format, PromptFormat::Named(manifest.value("prompt_format", "paper")));
    if (manifest.contains("reward")) {
      model.reward_mean = manifest["reward"].at("mean");
      model.reward_std = manifest["reward"].at("std");
    }
  } catch (const nlohmann::json::exception& e) {
    return absl::DataLossError(absl::StrCat(path.string(), ": ", e.what()));
  }
  if (!std::isfinite(model.reward_mean) || !(model.reward_std > 0)) {
    return absl::DataLossError(absl::StrCat(path.string(), ": reward: mean must be finite and std above 0"));
  }
  return absl::OkStatus();
}

// The weights' digest, and what is said beside them of how text becomes tokens: an answer depends on both.
absl::StatusOr<std::string> DigestWithText(const ModelFolder& weights) {
  std::string whole = weights.digest();
  for (const char* name : {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "almost.json"}) {
    const absl::StatusOr<std::string> contents = Env::Posix()->Read(weights.path() / name);
    if (absl::IsNotFound(contents.status())) continue;
    ALMOST_RETURN_IF_ERROR(contents.status());
    absl::StrAppend(&whole, "\n", name, " ", Sha256(*contents));
  }
  return Sha256(whole);
}

}  // namespace

absl::Status CheckUtf8(absl::string_view field, absl::string_view text) {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid == text.size()) return absl::OkStatus();
  return InvalidField(field, "valid UTF-8", absl::StrCat("an invalid byte at position ", valid));
}

engine::ScoringLimits LimitsOf(const grpc::ServerContext& context, const LoadGate::Ticket& ticket) {
  return {.deadline = absl::FromChrono(context.deadline()),
          .is_wanted = [&context] { return !context.IsCancelled(); },
          .between_looks = ticket.TimeBetweenLooks()};
}

absl::Status CallStatus(const absl::Status& ended, absl::Time deadline) {
  const bool untouched = ended.GetPayload(std::string(engine::kNothingComputed)).has_value();
  const bool expired =
      absl::IsDeadlineExceeded(ended) || (absl::IsCancelled(ended) && EndsByDeadline(deadline));
  return untouched && expired ? ExpiredBeforeWorkError() : ended;
}

absl::StatusOr<std::vector<int32_t>> ReadInput(const ServedModel& model, const types::v1::Input& input) {
  switch (input.input_case()) {
    case types::v1::Input::kText:
      ALMOST_RETURN_IF_ERROR(CheckUtf8("input.text", input.text()));
      return model.tokenizer->Encode(input.text(), /*add_special_tokens=*/true);
    case types::v1::Input::kTokenIds:
      return std::vector<int32_t>(input.token_ids().ids().begin(), input.token_ids().ids().end());
    case types::v1::Input::kMessages: {
      std::vector<Message> messages;
      for (const types::v1::Message& message : input.messages().messages()) {
        ALMOST_RETURN_IF_ERROR(CheckUtf8("input.messages", message.content()));
        messages.push_back({message.role(), message.content()});
      }
      if (messages.empty() || messages.back().role != "user") {
        return InvalidField("input.messages", "ended by the user's message",
                            absl::StrCat(messages.size(), " messages"));
      }
      absl::StatusOr<EncodedDialogue> encoded = EncodeDialogue(model.format, *model.tokenizer, messages);
      if (!encoded.ok()) return Annotate(encoded.status(), "input.messages");
      return std::move(encoded->ids);
    }
    default:
      return InvalidField("input", "text, token_ids or messages", "nothing");
  }
}

ModelRegistry::ModelRegistry(Head head, std::shared_ptr<ArtifactStore> store,
                             std::filesystem::path model_root, const engine::EngineOptions& options,
                             prometheus::Registry& registry, MakeObserver make_observer, int max_calls)
    : head_(head),
      store_(std::move(store)),
      model_root_(std::move(model_root)),
      options_(OnOneTeam(options)),
      calls_(std::make_shared<LoadGate::Calls>(max_calls)),
      make_observer_(std::move(make_observer)),
      load_seconds_(prometheus::BuildHistogram()
                        .Name("almost_model_load_seconds")
                        .Help("Time to bring a model into memory.")
                        .Register(registry)
                        .Add({}, LatencyBuckets())) {}

absl::StatusOr<types::v1::Model> ModelRegistry::Load(const types::v1::LoadModelRequest& request,
                                                     const std::function<bool()>& is_wanted) {
  ALMOST_RETURN_IF_ERROR(CheckName(request.name()));
  // Who keeps a model loaded asks again and again: its folder is not to be read and hashed each time.
  if (!request.expected_digest().empty()) {
    if (const auto present = Find(request.name(), request.expected_digest()); present.ok()) {
      return (*present)->description;
    }
  }
  const auto check_wanted = [&] {
    return is_wanted && !is_wanted() ? absl::CancelledError("nobody waits for the model") : absl::OkStatus();
  };
  engine::EngineOptions options = options_;
  if (!request.device().empty()) options.device = request.device();
  absl::MutexLock load_lock(&load_mutex_);
  ALMOST_RETURN_IF_ERROR(check_wanted());
  const auto start = std::chrono::steady_clock::now();
  ALMOST_ASSIGN_OR_RETURN(const LocalFolder source,
                          ResolveModelSource(store_.get(), model_root_, request.source()));
  const std::filesystem::path& folder = source.path;
  ALMOST_ASSIGN_OR_RETURN(const std::shared_ptr<const ModelFolder> weights, ModelFolder::Open(folder));
  ALMOST_RETURN_IF_ERROR(check_wanted());
  ALMOST_ASSIGN_OR_RETURN(const std::string digest, DigestWithText(*weights));
  if (!request.expected_digest().empty() && digest != request.expected_digest()) {
    return absl::FailedPreconditionError(absl::StrCat("expected_digest: ", request.source(), " has digest ",
                                                      digest, ", not ", request.expected_digest()));
  }
  if (const auto present = Find(request.name()); present.ok()) {
    if ((*present)->digest() == digest) return (*present)->description;
    return absl::AlreadyExistsError(
        absl::StrCat(request.name(), " is loaded with digest ", (*present)->digest(), ", not ", digest));
  }
  const ModelConfig& config = weights->config();
  if (config.reward_head != (head_ == Head::kReward)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "source: ", request.source(), " is ", config.architecture,
        head_ == Head::kReward ? ", which has no reward head" : ", which has no language-model head"));
  }
  // The CPU computes in float32, whatever the weights' width; a GPU in their own.
  const types::v1::DType dtype =
      options.device == "cpu" ? types::v1::DTYPE_FLOAT32 : DTypeOf(engine::ComputedType(*weights));
  if (request.dtype() != types::v1::DTYPE_UNSPECIFIED && request.dtype() != dtype) {
    return InvalidField("dtype", absl::StrCat(types::v1::DType_Name(dtype), " on ", options.device),
                        types::v1::DType_Name(request.dtype()));
  }
  auto model = std::make_shared<ServedModel>();
  model->gate = std::make_unique<LoadGate>(calls_);
  ALMOST_RETURN_IF_ERROR(ReadManifest(folder, *model));
  ALMOST_ASSIGN_OR_RETURN(model->tokenizer, Tokenizer::Load(folder));
  ALMOST_ASSIGN_OR_RETURN(
      model->engine,
      engine::Engine::Create(weights, options, make_observer_ ? make_observer_(request.name()) : nullptr));
  model->end_ids.assign(config.eos_token_ids.begin(), config.eos_token_ids.end());
  if (const auto eos = model->tokenizer->eos_id(); eos && !absl::c_linear_search(model->end_ids, *eos)) {
    model->end_ids.push_back(*eos);
  }
  types::v1::Model& d = model->description;
  d.set_name(request.name());
  d.set_digest(digest);
  d.set_numerics_id(model->engine->numerics_id());
  d.set_architecture(config.architecture);
  d.set_num_parameters(config.NumParameters());
  int64_t weight_bytes = 0;
  for (const auto& [name, tensor] : weights->tensors()) {
    weight_bytes += static_cast<int64_t>(tensor.bytes.size()) / (tensor.dtype == DType::kF64 ? 2 : 1);
  }
  d.set_weight_bytes(weight_bytes);
  d.set_cache_tokens(model->engine->cache_tokens());
  d.set_context_tokens(config.max_positions);
  d.set_vocab_size(config.vocab_size);
  d.set_device(options.device);
  d.set_dtype(dtype);
  d.set_prompt_format(model->format.name);
  d.set_reward_head(config.reward_head);
  load_seconds_.Observe(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  absl::MutexLock lock(&mutex_);
  ALMOST_RETURN_IF_ERROR(check_wanted());  // who has given up may have unloaded it already
  return (models_[request.name()] = std::move(model))->description;
}

absl::Status ModelRegistry::LoadAll(const std::vector<std::string>& sources) {
  for (const std::string& entry : sources) {
    const size_t equals = entry.find('=');
    if (equals == std::string::npos) return InvalidField("load", "id=source", entry);
    types::v1::LoadModelRequest request;
    request.set_name(absl::StrCat(kPrefix, entry.substr(0, equals)));
    request.set_source(entry.substr(equals + 1));
    ALMOST_RETURN_IF_ERROR(Load(request).status());
  }
  return absl::OkStatus();
}

absl::Status ModelRegistry::Unload(const types::v1::UnloadModelRequest& request) {
  std::shared_ptr<const ServedModel> last;  // freed after the lock
  absl::MutexLock lock(&mutex_);
  const auto found = models_.find(request.name());
  if (found == models_.end())
    return absl::NotFoundError(absl::StrCat("no model ", request.name(), " is loaded"));
  last = std::move(found->second);
  models_.erase(found);
  return absl::OkStatus();
}

absl::StatusOr<types::v1::ListModelsResponse> ModelRegistry::List(
    const types::v1::ListModelsRequest& request) const {
  if (request.page_size() < 0 || request.page_size() > 1000) {
    return InvalidField("page_size", "in [0, 1000]", absl::StrCat(request.page_size()));
  }
  const int size = request.page_size() == 0 ? 100 : request.page_size();
  types::v1::ListModelsResponse response;
  absl::MutexLock lock(&mutex_);
  for (auto it = models_.upper_bound(request.page_token()); it != models_.end(); ++it) {
    if (response.models_size() == size) {
      response.set_next_page_token(response.models(size - 1).name());
      break;
    }
    *response.add_models() = it->second->description;
  }
  return response;
}

absl::StatusOr<std::shared_ptr<const ServedModel>> ModelRegistry::Find(
    absl::string_view name, absl::string_view expected_digest) const {
  absl::MutexLock lock(&mutex_);
  const auto found = models_.find(std::string(name));
  if (found == models_.end()) return absl::NotFoundError(absl::StrCat("no model \"", name, "\" is loaded"));
  if (!expected_digest.empty() && found->second->digest() != expected_digest) {
    return absl::FailedPreconditionError(absl::StrCat("expected_digest: ", name, " has digest ",
                                                      found->second->digest(), ", not ", expected_digest));
  }
  return found->second;
}

std::map<std::string, engine::EngineStats> ModelRegistry::Stats() const {
  absl::MutexLock lock(&mutex_);
  std::map<std::string, engine::EngineStats> stats;
  for (const auto& [name, model] : models_) stats[name] = model->engine->Stats();
  return stats;
}

}  // namespace almost
