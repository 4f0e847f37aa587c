#include "clients/cli/asked_model.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/cli/endpoints.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"

namespace almost::cli {
namespace {

using Generation = generation::v1::GenerationService;
using Reward = reward::v1::RewardService;

constexpr size_t kItems = 64;  // of one call
constexpr absl::Duration kPatience = absl::Minutes(10);

// One call of at most kItems after the other. `add` puts an item into a request, `take` makes of an answer's
// item what is wanted of it; both services' items are {result | error}.
template <typename Value, typename Response, typename Item, typename Request, typename Add, typename Take,
          typename Call>
absl::StatusOr<std::vector<absl::StatusOr<Value>>> InBatches(const std::vector<Item>& items,
                                                             const Request& empty, const Add& add,
                                                             const Call& call, const Take& take) {
  std::vector<absl::StatusOr<Value>> values;
  for (size_t first = 0; first < items.size(); first += kItems) {
    Request request = empty;
    const size_t end = std::min(items.size(), first + kItems);
    for (size_t i = first; i < end; ++i) add(items[i], *request.add_items());
    ALMOST_ASSIGN_OR_RETURN(const Response response, call(request));
    if (static_cast<size_t>(response.items_size()) != end - first) {
      return absl::InternalError(
          absl::StrCat("the service answered ", response.items_size(), " of ", end - first, " items"));
    }
    for (const auto& item : response.items()) {
      if (item.has_result()) {
        values.push_back(take(item.result()));
        continue;
      }
      const absl::Status error = FromProto(item.error());
      if (!absl::IsOutOfRange(error)) return error;
      values.push_back(error);
    }
  }
  return values;
}

template <typename Service, typename Request, typename Response>
absl::StatusOr<Response> Ask(ReplicaPool& pool, const std::string& service,
                             grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                   Response*),
                             const Request& request) {
  auto response = pool.Call<Service>(method, request, 1, absl::Now() + kPatience);
  if (!response.ok()) return Annotate(response.status(), absl::StrCat(service, " at ", pool.target()));
  return response;
}

}  // namespace

absl::StatusOr<std::unique_ptr<AskedModel>> AskedModel::Find(const Cli& cli, const std::string& service,
                                                             const std::string& which) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, service));
  std::unique_ptr<AskedModel> model(new AskedModel());
  model->service_ = service;
  ReplicaPoolOptions options;
  options.tls = cli.tls;
  options.token_file = cli.token_file;
  ALMOST_ASSIGN_OR_RETURN(model->pool_, ReplicaPool::Create(endpoint.address, options));
  const ModelArgument argument = ParseModelArgument(which);
  const auto describe = [&]<typename Service>() -> absl::StatusOr<types::v1::Model> {
    if (!argument.source.empty()) {
      types::v1::LoadModelRequest load;
      load.set_name(argument.name);
      load.set_source(argument.source);
      return Ask<Service>(*model->pool_, service, &Service::Stub::LoadModel, load);
    }
    types::v1::GetModelRequest get;
    get.set_name(argument.name);
    return Ask<Service>(*model->pool_, service, &Service::Stub::GetModel, get);
  };
  absl::StatusOr<types::v1::Model> about = service == "reward" ? describe.template operator()<Reward>()
                                                               : describe.template operator()<Generation>();
  if (absl::IsUnavailable(about.status())) {
    return ServiceError(endpoint,
                        grpc::Status(grpc::StatusCode::UNAVAILABLE, std::string(about.status().message())));
  }
  ALMOST_RETURN_IF_ERROR(about.status());
  model->about_ = *std::move(about);
  return model;
}

absl::StatusOr<std::vector<absl::StatusOr<double>>> AskedModel::Rewards(
    const std::vector<std::vector<Message>>& dialogues) {
  reward::v1::ScoreRequest empty;
  empty.set_model(about_.name());
  empty.set_expected_digest(about_.digest());
  return InBatches<double, reward::v1::ScoreResponse>(
      dialogues, empty,
      [](const std::vector<Message>& dialogue, reward::v1::ScoreItem& item) {
        for (size_t i = 0; i + 1 < dialogue.size(); ++i) {
          types::v1::Message& message = *item.mutable_dialogue()->add_messages();
          message.set_role(dialogue[i].role);
          message.set_content(dialogue[i].content);
        }
        item.set_response(dialogue.back().content);
      },
      [&](const reward::v1::ScoreRequest& request) {
        return Ask<Reward>(*pool_, service_, &Reward::Stub::Score, request);
      },
      [](const reward::v1::ScoreResult& result) { return result.raw_score(); });
}

absl::StatusOr<std::vector<absl::StatusOr<double>>> AskedModel::LogLikelihoods(
    const std::vector<Continuation>& continuations) {
  std::vector<std::string> texts;
  for (const Continuation& each : continuations) {
    texts.push_back(each.text);
    texts.push_back(each.text + each.continuation);
  }
  ALMOST_ASSIGN_OR_RETURN(const std::vector<TokenIds> ids, Tokenize(texts));
  std::vector<TokensToScore> items;
  for (size_t i = 0; i < continuations.size(); ++i) {
    const TokenIds &alone = ids[2 * i], &whole = ids[2 * i + 1];
    const auto border = whole.begin() + static_cast<ptrdiff_t>(std::min(alone.size(), whole.size() - 1));
    items.push_back({{whole.begin(), border}, {border, whole.end()}});
  }
  return Score(items);
}

absl::StatusOr<AskedModel::TextScore> AskedModel::ScoreText(const std::string& text) {
  // Without a text there is only what the tokenizer puts in front.
  ALMOST_ASSIGN_OR_RETURN(const std::vector<TokenIds> ids, Tokenize({text}));
  const TokenIds& all = ids[0];
  const auto window = static_cast<size_t>(about_.context_tokens());
  std::vector<TokensToScore> windows;
  TextScore score;
  for (size_t begin = 1; begin < all.size(); begin += window - 1) {
    const size_t end = std::min(all.size(), begin + window - 1);
    const auto at = [&](size_t i) { return all.begin() + static_cast<ptrdiff_t>(i); };
    windows.push_back({{at(begin - 1), at(begin)}, {at(begin), at(end)}});
    score.tokens += static_cast<int64_t>(end - begin);
  }
  ALMOST_ASSIGN_OR_RETURN(const std::vector<absl::StatusOr<double>> sums, Score(windows));
  for (const absl::StatusOr<double>& sum : sums) {
    ALMOST_RETURN_IF_ERROR(sum.status());
    score.sum_logprob += *sum;
  }
  return score;
}

absl::StatusOr<std::vector<absl::StatusOr<generation::v1::Completion>>> AskedModel::Complete(
    const std::vector<generation::v1::GenerateItem>& items) {
  generation::v1::GenerateRequest empty;
  empty.set_model(about_.name());
  empty.set_expected_digest(about_.digest());
  return InBatches<generation::v1::Completion, generation::v1::GenerateResponse>(
      items, empty,
      [](const generation::v1::GenerateItem& from, generation::v1::GenerateItem& to) { to = from; },
      [&](const generation::v1::GenerateRequest& request) {
        return Ask<Generation>(*pool_, service_, &Generation::Stub::Generate, request);
      },
      [](const generation::v1::GenerateItemResult& result) { return result.completions(0); });
}

absl::StatusOr<std::vector<AskedModel::TokenIds>> AskedModel::Tokenize(
    const std::vector<std::string>& texts) {
  std::vector<TokenIds> ids;
  for (size_t first = 0; first < texts.size(); first += kItems) {
    generation::v1::TokenizeRequest request;
    request.set_model(about_.name());
    const size_t end = std::min(texts.size(), first + kItems);
    for (size_t i = first; i < end; ++i) request.add_inputs()->set_text(texts[i]);
    ALMOST_ASSIGN_OR_RETURN(const generation::v1::TokenizeResponse response,
                            Ask<Generation>(*pool_, service_, &Generation::Stub::Tokenize, request));
    for (const generation::v1::TokenizedInput& input : response.inputs()) {
      ids.emplace_back(input.token_ids().begin(), input.token_ids().end());
    }
  }
  if (ids.size() != texts.size()) {
    return absl::InternalError(
        absl::StrCat("the service encoded ", ids.size(), " of ", texts.size(), " texts"));
  }
  return ids;
}

absl::StatusOr<std::vector<absl::StatusOr<double>>> AskedModel::Score(
    const std::vector<TokensToScore>& items) {
  generation::v1::ScoreCompletionsRequest empty;
  empty.set_model(about_.name());
  empty.set_expected_digest(about_.digest());
  return InBatches<double, generation::v1::ScoreCompletionsResponse>(
      items, empty,
      [](const TokensToScore& from, generation::v1::CompletionToScore& item) {
        item.mutable_input()->mutable_token_ids()->mutable_ids()->Add(from.before.begin(), from.before.end());
        item.mutable_completion_ids()->mutable_ids()->Add(from.scored.begin(), from.scored.end());
      },
      [&](const generation::v1::ScoreCompletionsRequest& request) {
        return Ask<Generation>(*pool_, service_, &Generation::Stub::ScoreCompletions, request);
      },
      [](const generation::v1::CompletionScore& result) { return result.sum_logprob(); });
}

}  // namespace almost::cli
