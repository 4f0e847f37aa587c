#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "clients/cli/verbs.h"
#include "grpcpp/grpcpp.h"

namespace almost::cli {

// A service of the suite as the command line reaches it.
struct Endpoint {
  std::string service;  // "generation", …
  std::string address;  // host:port
  std::shared_ptr<grpc::Channel> channel;
};

// Names and default gRPC ports of the services, in the order in which they start.
struct ServicePorts {
  const char* service;
  int grpc_port;
  int metrics_port;
};
inline constexpr ServicePorts kDefaultPorts[] = {
    {"generation", 50051, 9451}, {"reward", 50052, 9452},       {"simulator", 50053, 9453},
    {"trainer", 50054, 9454},    {"orchestrator", 50055, 9455},
};

// Where `service` is: the command line's flag, else what `<store>/up.json` says, else the default port of
// this machine. Its calls show the token of `cli.token_file`. kDataLoss: an up.json that does not parse;
// kNotFound, kInvalidArgument: as BearerToken::Read and ChannelCredentials.
absl::StatusOr<Endpoint> FindEndpoint(const Cli& cli, absl::string_view service);

// The judge of `almost up --world_judge`, as recipes and --judge name it.
inline constexpr absl::string_view kJudgeOfUp = "up:judge";

// host:port of a JudgeService: `judge` itself, unless it is kJudgeOfUp or empty; then what `<store>/up.json`
// says, empty where no such judge runs. kDataLoss: as FindEndpoint.
absl::StatusOr<std::string> FindJudge(const Cli& cli, const std::string& judge);

// What `status` says, with the service and address in front and, when it could not be reached, what to do.
absl::Status ServiceError(const Endpoint& endpoint, const grpc::Status& status);

// Calls one method of `Service` once, waiting at most `timeout` in all.
template <typename Service, typename Request, typename Response>
absl::StatusOr<Response> Call(const Endpoint& endpoint,
                              grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                    Response*),
                              const Request& request, absl::Duration timeout = absl::Minutes(1)) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  Response response;
  const auto stub = Service::NewStub(endpoint.channel);
  const grpc::Status status = ((*stub).*method)(&context, request, &response);
  if (!status.ok()) return ServiceError(endpoint, status);
  return response;
}

// `runs/x` for "x" and for "runs/x".
std::string ResourceName(absl::string_view collection, absl::string_view id);

// A model as flags name one; `source` is where it is loaded from first, empty for one that is loaded already.
struct ModelArgument {
  std::string name;  // models/ID
  std::string source;
};
inline constexpr char kModelArgument[] =
    "ID of a loaded one, artifacts/DIGEST, DIR/ECTORY beneath --model_root, or ID=either";

// Of ID, ID=SOURCE, or a SOURCE alone, which is told by its '/'; its ID has '.' in their place.
ModelArgument ParseModelArgument(absl::string_view argument);

}  // namespace almost::cli
