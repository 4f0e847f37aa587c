#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/text/tokenizer.h"

namespace almost {

// What a model folder says of its special tokens beside the vocabulary itself.
struct TokenizerConfig {
  // tokenizer_config.json: how the token is spelled. The outer level is empty where the file is silent, the
  // inner one where it says null (the model has no such token).
  std::optional<std::optional<std::string>> bos_token;
  std::optional<std::optional<std::string>> eos_token;
  // What is put around a text: of tokenizer.model, as LlamaTokenizer of transformers has it; of
  // tokenizer.json in place of what that says itself, where the tokenizer_class is one of those that replace
  // its template.
  bool add_bos_token = true;
  bool add_eos_token = false;
  bool replaces_template = false;
  // config.json, taken where tokenizer_config.json is silent; of a list the first.
  std::optional<int32_t> bos_token_id;
  std::optional<int32_t> eos_token_id;

  // Files that are absent leave the defaults. kDataLoss: a file that does not parse, or a field of another
  // type.
  static absl::StatusOr<TokenizerConfig> Read(const std::filesystem::path& folder);
};

struct SpecialTokenIds {
  std::optional<int32_t> bos;
  std::optional<int32_t> eos;
};

// kDataLoss: a token that tokenizer_config.json names is not in the vocabulary.
absl::StatusOr<SpecialTokenIds> ResolveSpecialTokens(const TokenizerConfig& config,
                                                     const Tokenizer& tokenizer);

}  // namespace almost
