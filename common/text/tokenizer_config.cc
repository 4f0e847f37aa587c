#include "common/text/tokenizer_config.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"

namespace almost {
namespace {

using nlohmann::json;

absl::StatusOr<json> ReadJsonIfThere(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return json::object();
  json parsed = json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return absl::DataLossError("not a JSON object");
  return parsed;
}

absl::StatusOr<std::optional<std::optional<std::string>>> Token(const json& object, const char* field) {
  using Value = std::optional<std::optional<std::string>>;
  const auto it = object.find(field);
  if (it == object.end()) return Value();
  if (it->is_null()) return Value(std::optional<std::string>());
  if (it->is_string()) return Value(it->get<std::string>());
  // An AddedToken written out: {"content": …, "lstrip": …}.
  if (it->is_object() && it->contains("content") && (*it)["content"].is_string()) {
    return Value((*it)["content"].get<std::string>());
  }
  return absl::DataLossError(
      absl::StrCat(field, ": expected a string, null or {\"content\": …}, found ", it->dump()));
}

absl::StatusOr<bool> Flag(const json& object, const char* field, bool otherwise) {
  const auto it = object.find(field);
  if (it == object.end() || it->is_null()) return otherwise;
  if (!it->is_boolean()) {
    return absl::DataLossError(absl::StrCat(field, ": expected true or false, found ", it->dump()));
  }
  return it->get<bool>();
}

absl::StatusOr<std::optional<int32_t>> Id(const json& object, const char* field) {
  const auto it = object.find(field);
  if (it == object.end() || it->is_null()) return std::optional<int32_t>();
  const json& value = it->is_array() && !it->empty() ? it->front() : *it;
  if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() > INT32_MAX) {
    return absl::DataLossError(absl::StrCat(field, ": expected a token id, found ", it->dump()));
  }
  return std::optional<int32_t>(value.get<int32_t>());
}

absl::StatusOr<std::optional<int32_t>> Resolve(const char* field,
                                               const std::optional<std::optional<std::string>>& spelled,
                                               std::optional<int32_t> id, const Tokenizer& tokenizer) {
  if (!spelled.has_value()) return id;
  if (!spelled->has_value()) return std::optional<int32_t>();
  const std::optional<int32_t> found = tokenizer.TokenId(**spelled);
  if (!found.has_value()) {
    return absl::DataLossError(
        absl::StrCat("tokenizer_config.json: ", field, " \"", **spelled, "\" is not in the vocabulary"));
  }
  return found;
}

}  // namespace

absl::StatusOr<TokenizerConfig> TokenizerConfig::Read(const std::filesystem::path& folder) {
  TokenizerConfig config;
  const auto read_tokenizer_config = [&]() -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(const json file, ReadJsonIfThere(folder / "tokenizer_config.json"));
    ALMOST_ASSIGN_OR_RETURN(config.bos_token, Token(file, "bos_token"));
    ALMOST_ASSIGN_OR_RETURN(config.eos_token, Token(file, "eos_token"));
    ALMOST_ASSIGN_OR_RETURN(const auto named, Token(file, "tokenizer_class"));
    const std::string tokenizer_class = named.value_or(std::nullopt).value_or("");
    const absl::string_view kind = absl::StripSuffix(tokenizer_class, "Fast");
    config.replaces_template =
        kind == "LlamaTokenizer" || kind == "CodeLlamaTokenizer" || kind == "GPTNeoXTokenizer";
    config.add_bos_token = kind != "GPTNeoXTokenizer";
    ALMOST_ASSIGN_OR_RETURN(config.add_bos_token, Flag(file, "add_bos_token", config.add_bos_token));
    ALMOST_ASSIGN_OR_RETURN(config.add_eos_token, Flag(file, "add_eos_token", config.add_eos_token));
    return absl::OkStatus();
  };
  const auto read_config = [&]() -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(const json file, ReadJsonIfThere(folder / "config.json"));
    ALMOST_ASSIGN_OR_RETURN(config.bos_token_id, Id(file, "bos_token_id"));
    ALMOST_ASSIGN_OR_RETURN(config.eos_token_id, Id(file, "eos_token_id"));
    return absl::OkStatus();
  };
  ALMOST_RETURN_IF_ERROR(Annotate(read_tokenizer_config(), (folder / "tokenizer_config.json").string()));
  ALMOST_RETURN_IF_ERROR(Annotate(read_config(), (folder / "config.json").string()));
  return config;
}

absl::StatusOr<SpecialTokenIds> ResolveSpecialTokens(const TokenizerConfig& config,
                                                     const Tokenizer& tokenizer) {
  SpecialTokenIds ids;
  ALMOST_ASSIGN_OR_RETURN(ids.bos, Resolve("bos_token", config.bos_token, config.bos_token_id, tokenizer));
  ALMOST_ASSIGN_OR_RETURN(ids.eos, Resolve("eos_token", config.eos_token, config.eos_token_id, tokenizer));
  return ids;
}

}  // namespace almost
