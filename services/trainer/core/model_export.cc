#include "services/trainer/core/model_export.h"

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/storage/env.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// The file's JSON object; an empty one where there is no file.
absl::StatusOr<json> ReadObject(const fs::path& file) {
  const absl::StatusOr<std::string> text = Env::Posix()->Read(file);
  if (absl::IsNotFound(text.status())) return json::object();
  ALMOST_RETURN_IF_ERROR(text.status());
  json object = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::DataLossError(absl::StrCat(file.string(), " is not a JSON object"));
  return object;
}

absl::Status WriteObject(const fs::path& file, const json& object) {
  return Env::Posix()->Write(file, object.dump(2) + "\n");
}

}  // namespace

absl::StatusOr<PromptFormat> ChoosePromptFormat(const std::string& name, const fs::path& folder) {
  if (!name.empty()) return PromptFormat::Named(name);
  ALMOST_ASSIGN_OR_RETURN(const json manifest, ReadObject(folder / "almost.json"));
  const auto found = manifest.find("prompt_format");
  if (found == manifest.end()) return PromptFormat::Paper();
  if (!found->is_string()) {
    return absl::DataLossError(
        absl::StrCat((folder / "almost.json").string(), ": prompt_format is no string"));
  }
  return PromptFormat::Named(found->get<std::string>());
}

absl::Status WriteModelFiles(const ExportedModel& model, bool is_chat, const fs::path& folder) {
  Env& env = *Env::Posix();
  for (const char* name : {"tokenizer.json", "tokenizer.model", "special_tokens_map.json",
                           "added_tokens.json", "vocab.json", "merges.txt"}) {
    const absl::StatusOr<std::string> contents = env.Read(model.tokenizer_folder / name);
    if (absl::IsNotFound(contents.status())) continue;
    ALMOST_RETURN_IF_ERROR(contents.status());
    ALMOST_RETURN_IF_ERROR(env.Write(folder / name, *contents));
  }

  ALMOST_ASSIGN_OR_RETURN(json tokenizer, ReadObject(model.tokenizer_folder / "tokenizer_config.json"));
  if (is_chat) {
    const std::vector<int32_t> markers = model.tokenizer->Encode("", /*add_special_tokens=*/true);
    const bool begins_with_bos = !markers.empty() && markers.front() == model.tokenizer->bos_id();
    tokenizer["chat_template"] = model.format.ChatTemplate(begins_with_bos);
  }
  ALMOST_RETURN_IF_ERROR(WriteObject(folder / "tokenizer_config.json", tokenizer));

  if (!model.config.reward_head) {
    ALMOST_ASSIGN_OR_RETURN(json generation, ReadObject(model.tokenizer_folder / "generation_config.json"));
    std::vector<int> ends = model.config.eos_token_ids;
    if (const auto eos = model.tokenizer->eos_id(); eos && !absl::c_linear_search(ends, *eos)) {
      ends.push_back(*eos);
    }
    if (!ends.empty()) generation["eos_token_id"] = ends;
    if (model.config.bos_token_id) generation["bos_token_id"] = *model.config.bos_token_id;
    ALMOST_RETURN_IF_ERROR(WriteObject(folder / "generation_config.json", generation));
  }

  json manifest = {{"prompt_format", model.format.name},
                   {"stop", is_chat ? std::vector<std::string>{} : model.format.stop},
                   {"training", model.training}};
  if (!model.reward.is_null()) manifest["reward"] = model.reward;
  return WriteObject(folder / "almost.json", manifest);
}

}  // namespace almost::trainer
