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

// As EleutherAI's files have it.
json Pythia(const json& changes = json::object()) {
  json object = {{"architectures", {"GPTNeoXForCausalLM"}},
                 {"model_type", "gpt_neox"},
                 {"vocab_size", 96},
                 {"hidden_size", 64},
                 {"intermediate_size", 256},
                 {"num_hidden_layers", 2},
                 {"num_attention_heads", 4},
                 {"hidden_act", "gelu"},
                 {"layer_norm_eps", 1e-05},
                 {"rotary_emb_base", 10000},
                 {"rotary_pct", 0.25},
                 {"use_parallel_residual", true},
                 {"tie_word_embeddings", false},
                 {"max_position_embeddings", 128}};
  object.merge_patch(changes);
  return object;
}

TEST(ModelConfigTest, RefusesByNameWhatItWouldRunWrong) {
  const std::pair<json, const char*> cases[] = {
      {{{"model_type", "gpt2"}}, "model_type is \"gpt2\""},
      {{{"model_type", 7}}, "model_type"},
      {{{"architectures", {"LlamaForTokenClassification"}}}, "architectures"},
      {{{"architectures", {{"a", 1}}}}, "architectures"},
      {{{"rope_scaling", {{"rope_type", "longrope"}}}}, "rope_scaling.rope_type is \"longrope\""},
      {{{"rope_scaling", {{"factor", 4.0}}}}, "rope_scaling.rope_type is null"},
      {{{"hidden_act", "gelu"}}, "hidden_act"},
      {{{"quantization_config", {{"bits", 4}}}}, "quantization_config"},
      {{{"partial_rotary_factor", 0.5}}, "partial_rotary_factor"},
      {{{"architectures", {"LlamaForSequenceClassification"}}, {"num_labels", 3}}, "num_labels"},
      {{{"architectures", {"LlamaForSequenceClassification"}}}, "num_labels"},
      {{{"rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}}},
       "partial_rotary_factor"},
      {{{"architectures", {"Qwen3ForCausalLM"}},
        {"model_type", "qwen3"},
        {"layer_types", {"full_attention", "sliding_attention"}}},
       "layer_types"},
      {{{"layer_types", {"chunked_attention", "full_attention"}}}, "layer_types is \"chunked_attention\""},
  };
  for (const auto& [changes, named] : cases) {
    const absl::Status status = ModelConfig::FromJson(Changed(changes)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << changes << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named)) << changes;
  }
  const absl::Status status = ModelConfig::FromJson(Pythia({{"hidden_act", "relu"}})).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("hidden_act is \"relu\""));
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
      {{{"rope_scaling", {{"rope_type", "yarn"}}}}, "factor"},
      {{{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}, {"beta_fast", -1}}}}, "beta_fast"},
      {{{"rope_theta", 1.0}, {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}}}}, "rope_theta"},
      {{{"rope_scaling", {{"rope_type", "linear"}}}}, "factor"},
      {{{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}}}, "low_freq_factor"},
  };
  for (const auto& [changes, named] : cases) {
    const absl::Status status = ModelConfig::FromJson(Changed(changes)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << changes << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named)) << changes;
  }
  for (const auto& [changes, named] : std::vector<std::pair<json, const char*>>{
           {{{"rotary_pct", 0.01}}, "rotary_pct"},
           {{{"rotary_pct", 1.5}}, "rotary_pct"},
           {{{"num_attention_heads", 5}}, "num_attention_heads"},
           {{{"use_parallel_residual", "yes"}}, "use_parallel_residual"}}) {
    const absl::Status status = ModelConfig::FromJson(Pythia(changes)).status();
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
    EXPECT_EQ(again->rotary.inverse_frequencies, config->rotary.inverse_frequencies);
  }
  const auto pythia = ModelConfig::FromJson(Pythia());
  ASSERT_TRUE(pythia.ok()) << pythia.status();
  EXPECT_EQ(ModelConfig::FromJson(pythia->ToJson())->ToJson(), pythia->ToJson());
}

TEST(ModelConfigTest, ReadsGptNeoX) {
  const auto config = ModelConfig::FromJson(Pythia());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->layer_norm && config->parallel_residual && config->attention_bias && config->mlp_bias);
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->mlp, MlpKind::kGelu);
  EXPECT_EQ(config->rotary.num_dims(), 4);  // a quarter of 16
  EXPECT_DOUBLE_EQ(config->rotary.inverse_frequencies[1], 0.01);
  // Embedding and head; per layer two norms, four matrices and their biases; the last norm.
  EXPECT_EQ(config->NumParameters(), 2 * 96 * 64 + 2 * (4 * 64 + 12 * 64 * 64 + 9 * 64) + 2 * 64);
  EXPECT_EQ(config->WithRewardHead(true).architecture, "GPTNeoXForSequenceClassification");

  const auto other = ModelConfig::FromJson(
      Pythia({{"hidden_act", "gelu_new"}, {"attention_bias", false}, {"use_parallel_residual", false}}));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(other->mlp, MlpKind::kGeluTanh);
  EXPECT_FALSE(other->parallel_residual || other->attention_bias || other->attention_output_bias);
}

// Up to its length a sliding window hides nothing, so a model is served that far and no farther.
TEST(ModelConfigTest, AShorterSlidingWindowIsTheContext) {
  const auto context = [](const json& changes) {
    const auto config = ModelConfig::FromJson(Changed(changes));
    EXPECT_TRUE(config.ok()) << config.status();
    return config->max_positions;
  };
  const json mistral = {{"architectures", {"MistralForCausalLM"}}, {"model_type", "mistral"}};
  const json qwen = {{"architectures", {"Qwen2ForCausalLM"}}, {"model_type", "qwen2"}};
  const auto with = [](json object, const json& changes) {
    object.update(changes);
    return object;
  };
  EXPECT_EQ(context(with(mistral, {{"sliding_window", 100}})), 100);
  EXPECT_EQ(context(with(mistral, {{"sliding_window", 200}})), 128);
  EXPECT_EQ(context(with(mistral, {{"max_position_embeddings", 8192}})), 4096);  // transformers' default
  EXPECT_EQ(context(with(qwen, {{"sliding_window", 100}})), 128);                // off
  EXPECT_EQ(context(with(qwen, {{"sliding_window", 100}, {"use_sliding_window", true}})), 100);
  json with_null = Changed(mistral);
  with_null["sliding_window"] = nullptr;  // a merge patch would take it out
  EXPECT_EQ(ModelConfig::FromJson(with_null)->max_positions, 128);
  // What is written is what was read.
  const auto config = ModelConfig::FromJson(Changed(with(mistral, {{"sliding_window", 100}})));
  EXPECT_EQ(config->ToJson()["max_position_embeddings"], 128);
}

// The blend by dimension, of which transformers' code is the definition: tests/parity compares whole models.
TEST(ModelConfigTest, YarnKeepsFastDimensionsAndSlowsSlowOnes) {
  const auto config = ModelConfig::FromJson(
      Changed({{"head_dim", 64},
               {"rope_scaling",
                {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 1024}}}}));
  ASSERT_TRUE(config.ok()) << config.status();
  const std::vector<double>& frequencies = config->rotary.inverse_frequencies;
  const auto plain = [](int i) { return std::pow(10000.0, -2.0 * i / 64); };
  EXPECT_DOUBLE_EQ(frequencies[0], plain(0));
  EXPECT_DOUBLE_EQ(frequencies[31], plain(31) / 4);
  EXPECT_LT(frequencies[12], plain(12));
  EXPECT_GT(frequencies[12], plain(12) / 4);
  EXPECT_DOUBLE_EQ(config->rotary.attention_factor, 0.1 * std::log(4.0) + 1);
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
  EXPECT_DOUBLE_EQ(config->rotary.inverse_frequencies[1], std::pow(500000.0, -0.25));
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
