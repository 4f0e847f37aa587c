// almost generate, score: single calls of the generation and reward services.

#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "almost/generation/v1/generation.grpc.pb.h"
#include "almost/reward/v1/reward.grpc.pb.h"
#include "clients/cli/endpoints.h"
#include "clients/cli/table.h"
#include "clients/cli/verbs.h"
#include "common/base/status_macros.h"
#include "common/base/unicode.h"

namespace almost::cli {
namespace {

namespace generation = almost::generation::v1;
namespace reward = almost::reward::v1;
namespace types = almost::types::v1;

constexpr absl::Duration kModelTimeout = absl::Minutes(10);

struct GenerateFlags {
  std::string model, text, user;
  types::SamplingParams sampling;
  bool stream = false;
};

// The name of what `which` names, loaded.
template <typename Service>
absl::StatusOr<std::string> FindModel(const Endpoint& endpoint, const std::string& which) {
  const ModelArgument model = ParseModelArgument(which);
  if (model.source.empty()) return model.name;
  types::LoadModelRequest request;
  request.set_name(model.name);
  request.set_source(model.source);
  ALMOST_RETURN_IF_ERROR(Call<Service>(endpoint, &Service::Stub::LoadModel, request, kModelTimeout).status());
  return model.name;
}

absl::Status Stream(const Endpoint& endpoint, const std::string& model,
                    const generation::GenerateItem& item) {
  generation::StreamGenerateRequest request;
  request.set_model(model);
  *request.mutable_item() = item;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kModelTimeout));
  const auto stub = generation::GenerationService::NewStub(endpoint.channel);
  const auto stream = stub->StreamGenerate(&context, request);
  generation::StreamGenerateResponse piece;
  while (stream->Read(&piece)) {
    absl::PrintF("%s", piece.text());
    fflush(stdout);
  }
  absl::PrintF("\n");
  return ServiceError(endpoint, stream->Finish());
}

absl::Status CheckUtf8(absl::string_view flag, absl::string_view text) {
  if (ValidUtf8Prefix(text) == text.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, ": must be UTF-8"));
}

absl::Status Generate(const Cli& cli, const GenerateFlags& flags) {
  ALMOST_RETURN_IF_ERROR(CheckUtf8("TEXT", flags.text));
  ALMOST_RETURN_IF_ERROR(CheckUtf8("--user", flags.user));
  for (const std::string& stop : flags.sampling.stop()) ALMOST_RETURN_IF_ERROR(CheckUtf8("--stop", stop));
  if (flags.stream && flags.sampling.n() > 1) {
    return absl::InvalidArgumentError("--stream: shows one completion, so -n must be 1");
  }
  generation::GenerateItem item;
  if (!flags.user.empty()) {
    types::Message* message = item.mutable_input()->mutable_messages()->add_messages();
    message->set_role("user");
    message->set_content(flags.user);
  } else {
    item.mutable_input()->set_text(flags.text);
  }
  *item.mutable_sampling() = flags.sampling;
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "generation"));
  ALMOST_ASSIGN_OR_RETURN(const std::string model,
                          FindModel<generation::GenerationService>(endpoint, flags.model));
  if (flags.stream) return Stream(endpoint, model, item);

  generation::GenerateRequest request;
  request.set_model(model);
  *request.add_items() = item;
  ALMOST_ASSIGN_OR_RETURN(
      const generation::GenerateResponse response,
      Call<generation::GenerationService>(endpoint, &generation::GenerationService::Stub::Generate, request,
                                          kModelTimeout));
  if (cli.json) {
    PrintJson(stdout, response);
    return absl::OkStatus();
  }
  for (const generation::GenerateItemResponse& answer : response.items()) {
    if (answer.has_error()) {
      return absl::Status(static_cast<absl::StatusCode>(answer.error().code()), answer.error().message());
    }
    for (const generation::Completion& completion : answer.result().completions()) {
      absl::PrintF("%s\n", completion.text());
    }
  }
  return absl::OkStatus();
}

struct ScoreFlags {
  std::string model, prompt, response;
};

absl::Status Score(const Cli& cli, const ScoreFlags& flags) {
  ALMOST_RETURN_IF_ERROR(CheckUtf8("--prompt", flags.prompt));
  ALMOST_RETURN_IF_ERROR(CheckUtf8("--response", flags.response));
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "reward"));
  ALMOST_ASSIGN_OR_RETURN(const std::string model, FindModel<reward::RewardService>(endpoint, flags.model));
  reward::ScoreRequest request;
  request.set_model(model);
  reward::ScoreItem* item = request.add_items();
  item->set_prompt(flags.prompt);
  item->set_response(flags.response);
  ALMOST_ASSIGN_OR_RETURN(
      const reward::ScoreResponse response,
      Call<reward::RewardService>(endpoint, &reward::RewardService::Stub::Score, request, kModelTimeout));
  if (cli.json) {
    PrintJson(stdout, response);
    return absl::OkStatus();
  }
  for (const reward::ScoreItemResponse& answer : response.items()) {
    if (answer.has_error()) {
      return absl::Status(static_cast<absl::StatusCode>(answer.error().code()), answer.error().message());
    }
    absl::PrintF("%.6f (raw %.6f)\n", answer.result().score(), answer.result().raw_score());
  }
  return absl::OkStatus();
}

}  // namespace

void AddGenerate(CLI::App& app, Cli& cli) {
  auto flags = std::make_shared<GenerateFlags>();
  types::SamplingParams& sampling = flags->sampling;
  CLI::App* generate = app.add_subcommand("generate", "Continues a text or answers a question");
  generate->add_option("--model", flags->model, kModelArgument)->required();
  CLI::Option* text = generate->add_option("TEXT", flags->text, "What to continue, taken as it is");
  generate->add_option("--user", flags->user, "A question instead, in the model's own dialogue format")
      ->excludes(text);
  const auto number = [&](const char* flag, const char* help, auto set) {
    generate->add_option_function<double>(flag, set, help);
  };
  number("--temperature", "Divides the logits; 0 is greedy",
         [&](double value) { sampling.set_temperature(value); });
  number("--top_p", "Nucleus", [&](double value) { sampling.set_top_p(value); });
  generate->add_option_function<int>("-n", [&](int value) { sampling.set_n(value); }, "Completions");
  generate->add_option_function<int>(
      "--max_new_tokens", [&](int value) { sampling.set_max_new_tokens(value); },
      "Most tokens of a completion");
  generate
      ->add_option_function<uint64_t>(
          "--seed", [&](uint64_t value) { sampling.set_seed(value); }, "Equal seeds, equal completions")
      ->check(CLI::NonNegativeNumber);
  generate->add_option_function<std::vector<std::string>>(
      "--stop",
      [&](const std::vector<std::string>& stops) {
        sampling.mutable_stop()->Assign(stops.begin(), stops.end());
      },
      "Ends a completion; may be repeated");
  generate->add_flag("--stream", flags->stream, "Prints the text as it comes");
  generate->callback([&cli, flags] { cli.action = [&cli, flags] { return Generate(cli, *flags); }; });

  auto score_flags = std::make_shared<ScoreFlags>();
  CLI::App* score = app.add_subcommand("score", "Scores a response with a reward model");
  score->add_option("--model", score_flags->model, kModelArgument)->required();
  score->add_option("--prompt", score_flags->prompt, "The user's turn")->required();
  score->add_option("--response", score_flags->response, "The assistant's answer")->required();
  score->callback(
      [&cli, score_flags] { cli.action = [&cli, score_flags] { return Score(cli, *score_flags); }; });
}

}  // namespace almost::cli
