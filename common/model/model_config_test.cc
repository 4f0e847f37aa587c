#include "common/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numbers>

#include "nlohmann/json.hpp"

namespace almost {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json Llama() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"vocab_size", 96},
          {"hidden_size", 32},
          {"intermediate_size", 48},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"max_position_embeddings", 128}};
}

json Changed(const json& changes) {
  json object = Llama();
  object.merge_patch(changes);
  return object;
}

TEST(ModelConfigTest, RefusesByNameWhatItWouldRunWrong) {
  const std::pair<json, const char*> cases[] = {
      {{{"model_type", "gpt_neox"}}, "model_type is \"gpt_neox\""},
      {{{"model_type", 7}}, "model_type"},
      {{{"architectures", {"LlamaForTokenClassification"}}}, "architectures"},
      {{{"architectures", {{"a", 1}}}}, "architectures"},
      {{{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}}}, "rope_scaling.rope_type is \"yarn\""},
      {{{"rope_scaling", {{"type", "dynamic"}, {"factor", 4.0}}}}, "rope_scaling.rope_type is \"dynamic\""},
      {{{"rope_scaling", {{"factor", 4.0}}}}, "rope_scaling.rope_type is null"},
      {{{"hidden_act", "gelu"}}, "hidden_act"},
      {{{"quantization_config", {{"bits", 4}}}}, "quantization_config"},
      {{{"partial_rotary_factor", 0.5}}, "partial_rotary_factor"},
      {{{"architectures", {"LlamaForSequenceClassification"}}, {"num_labels", 3}}, "num_labels"},
      {{{"architectures", {"LlamaForSequenceClassification"}}}, "num_labels"},
      {{{"architectures", {"MistralForCausalLM"}}, {"model_type", "mistral"}, {"sliding_window", 127}},
       "sliding_window"},
      {{{"architectures", {"MistralForCausalLM"}},
        {"model_type", "mistral"},
        {"max_position_embeddings", 8192}},
       "sliding_window is 4096"},
      {{{"architectures", {"Qwen2ForCausalLM"}},
        {"model_type", "qwen2"},
        {"use_sliding_window", true},
        {"sliding_window", 64}},
       "sliding_window"},
      {{{"architectures", {"Qwen3ForCausalLM"}},
        {"model_type", "qwen3"},
        {"layer_types", {"full_attention", "sliding_attention"}}},
       "layer_types"},
  };
  for (const auto& [changes, named] : cases) {
    const absl::Status status = ModelConfig::FromJson(Changed(changes)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << changes << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named)) << changes;
  }
}

TEST(ModelConfigTest, NamesTheFieldThatIsMalformed) {
  const std::pair<json, const char*> cases[] = {
      {{{"vocab_size", 0}}, "vocab_size"},
      {{{"vocab_size", "96"}}, "vocab_size"},
      {{{"hidden_size", 4294967328}}, "hidden_size"},
      {{{"num_hidden_layers", nullptr}}, "num_hidden_layers"},
      {{{"num_key_value_heads", 3}}, "num_attention_heads"},
      {{{"head_dim", 7}}, "head_dim"},
      {{{"rms_norm_eps", -1}}, "rms_norm_eps"},
      {{{"tie_word_embeddings", 1}}, "tie_word_embeddings"},
      {{{"eos_token_id", 96}}, "eos_token_id"},
      {{{"eos_token_id", {1, 4294967297}}}, "eos_token_id"},
      {{{"bos_token_id", -1}}, "bos_token_id"},
      {{{"rope_scaling", "linear"}}, "rope_scaling"},
      {{{"rope_scaling", {{"rope_type", "linear"}}}}, "factor"},
      {{{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}}}, "low_freq_factor"},
  };
  for (const auto& [changes, named] : cases) {
    const absl::Status status = ModelConfig::FromJson(Changed(changes)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << changes << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named)) << changes;
  }
  EXPECT_EQ(ModelConfig::FromJson(json::array()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ModelConfigTest, IsTheSameAfterAJourneyThroughJson) {
  for (const json& changes :
       {json::object(), json{{"rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}}}},
        json{{"architectures", {"Qwen3ForCausalLM"}}, {"model_type", "qwen3"}, {"head_dim", 24}},
        json{{"attention_bias", true}, {"mlp_bias", true}, {"eos_token_id", {2, 3}}}}) {
    const auto config = ModelConfig::FromJson(Changed(changes));
    ASSERT_TRUE(config.ok()) << config.status();
    const auto again = ModelConfig::FromJson(config->ToJson());
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->ToJson(), config->ToJson());
    EXPECT_EQ(again->rope_inverse_frequencies, config->rope_inverse_frequencies);
  }
}

TEST(ModelConfigTest, KeepsWhatItDoesNotInterpret) {
  const auto config = ModelConfig::FromJson(Changed({{"initializer_range", 0.02}}));
  EXPECT_EQ(config->ToJson()["initializer_range"], 0.02);
}

TEST(ModelConfigTest, ReadsRotaryParametersAsNewerTransformersWritesThem) {
  const auto config = ModelConfig::FromJson(
      Changed({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 500000.0}}}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope_theta, 500000.0);
  EXPECT_DOUBLE_EQ(config->rope_inverse_frequencies[1], std::pow(500000.0, -0.25));
}

TEST(ModelConfigTest, BecomesARewardModelAndBack) {
  const auto config = ModelConfig::FromJson(Llama());
  const auto reward = ModelConfig::FromJson(config->WithRewardHead(true).ToJson());
  ASSERT_TRUE(reward.ok()) << reward.status();
  EXPECT_TRUE(reward->reward_head);
  EXPECT_EQ(reward->architecture, "LlamaForSequenceClassification");
  EXPECT_EQ(reward->NumParameters(), config->NumParameters() - 96 * 32 + 32);
  const auto back = ModelConfig::FromJson(reward->WithRewardHead(false).ToJson());
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->NumParameters(), config->NumParameters());
}

}  // namespace
}  // namespace almost
