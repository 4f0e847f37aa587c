#include "clients/cli/endpoints.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "clients/cli/up_file.h"
#include "common/base/status_macros.h"
#include "common/rpc/bearer_token.h"
#include "common/rpc/call_trace.h"
#include "common/rpc/status.h"

namespace almost::cli {

absl::StatusOr<Endpoint> FindEndpoint(const Cli& cli, absl::string_view service) {
  Endpoint endpoint;
  endpoint.service = std::string(service);
  if (const auto flag = cli.addresses.find(endpoint.service); flag != cli.addresses.end()) {
    endpoint.address = flag->second;
  } else {
    ALMOST_ASSIGN_OR_RETURN(const UpFile up, ReadUpFile(cli.store));
    if (const auto entry = up.services.find(endpoint.service); entry != up.services.end()) {
      endpoint.address = entry->second.address;
    }
  }
  for (const ServicePorts& ports : kDefaultPorts) {
    if (endpoint.address.empty() && service == ports.service) {
      endpoint.address = absl::StrCat("127.0.0.1:", ports.grpc_port);
    }
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);  // the servers bound what they send
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(ClientCallTrace());
  if (!cli.token_file.empty()) {
    ALMOST_ASSIGN_OR_RETURN(const BearerToken token, BearerToken::Read(cli.token_file));
    interceptors.push_back(ShowToken(token));
  }
  ALMOST_ASSIGN_OR_RETURN(const auto credentials, ChannelCredentials(cli.tls));
  endpoint.channel = grpc::experimental::CreateCustomChannelWithInterceptors(
      endpoint.address, credentials, arguments, std::move(interceptors));
  return endpoint;
}

absl::StatusOr<std::string> FindJudge(const Cli& cli, const std::string& judge) {
  if (!judge.empty() && judge != kJudgeOfUp) return judge;
  ALMOST_ASSIGN_OR_RETURN(const UpFile up, ReadUpFile(cli.store));
  const auto service = up.services.find("judge");
  return service == up.services.end() ? "" : service->second.address;
}

absl::Status ServiceError(const Endpoint& endpoint, const grpc::Status& status) {
  const absl::Status error =
      Annotate(FromGrpc(status), absl::StrCat(endpoint.service, " at ", endpoint.address));
  if (!absl::IsUnavailable(error)) return error;
  return absl::UnavailableError(absl::StrCat(
      error.message(), "\n  Is `almost up` running? Its addresses are looked up in the --store folder; --",
      endpoint.service, " host:port names another one."));
}

std::string ResourceName(absl::string_view collection, absl::string_view id) {
  return absl::StartsWith(id, absl::StrCat(collection, "/")) ? std::string(id)
                                                             : absl::StrCat(collection, "/", id);
}

ModelArgument ParseModelArgument(absl::string_view argument) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(argument, absl::MaxSplits('=', 1));
  if (!parts.second.empty()) return {ResourceName("models", parts.first), std::string(parts.second)};
  if (absl::StartsWith(argument, "models/") || !absl::StrContains(argument, '/')) {
    return {ResourceName("models", argument), ""};
  }
  return {absl::StrCat("models/", absl::StrReplaceAll(argument, {{"/", "."}})), std::string(argument)};
}

}  // namespace almost::cli
