#include "common/rpc/call_trace.h"

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/logging/logging.h"
#include "common/logging/trace.h"
#include "common/rpc/bearer_token.h"

namespace almost {
namespace {

using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::InterceptorBatchMethods;

constexpr char kHeader[] = "traceparent";

class ServerInterceptor final : public grpc::experimental::Interceptor {
 public:
  explicit ServerInterceptor(std::string method) : method_(std::move(method)) {}

  void Intercept(InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_INITIAL_METADATA)) {
      const auto* metadata = methods->GetRecvInitialMetadata();
      std::optional<Trace> trace;
      if (const auto found = metadata->find(kHeader); found != metadata->end()) {
        trace = Trace::Parse(absl::string_view(found->second.data(), found->second.size()));
      }
      scope_.emplace(trace ? *trace : Trace::New());
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      const auto code = static_cast<absl::StatusCode>(methods->GetSendStatus().error_code());
      const nlohmann::ordered_json fields = {{"method", method_},
                                             {"code", absl::StatusCodeToString(code)},
                                             {"seconds", absl::ToDoubleSeconds(absl::Now() - start_)}};
      code == absl::StatusCode::kOk ? log::Debug("call", fields) : log::Info("call", fields);
      // Here, in the handler's thread, and not in the destructor, which runs where the call is cleared away.
      scope_.reset();
    }
    methods->Proceed();
  }

 private:
  const std::string method_;
  const absl::Time start_ = absl::Now();
  std::optional<TraceScope> scope_;
};

class ServerFactory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  grpc::experimental::Interceptor* CreateServerInterceptor(grpc::experimental::ServerRpcInfo* info) override {
    return IsInfrastructureCall(info->method()) ? nullptr : new ServerInterceptor(info->method());
  }
};

class ClientInterceptor final : public grpc::experimental::Interceptor {
 public:
  void Intercept(InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      const Trace& current = CurrentTrace();
      const Trace sent = current.trace_id.empty() ? Trace::New() : current.Child();
      methods->GetSendInitialMetadata()->emplace(kHeader, sent.Header());
    }
    methods->Proceed();
  }
};

class ClientFactory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  grpc::experimental::Interceptor* CreateClientInterceptor(grpc::experimental::ClientRpcInfo*) override {
    return new ClientInterceptor();
  }
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> ServerCallTrace() {
  return std::make_unique<ServerFactory>();
}
std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface> ClientCallTrace() {
  return std::make_unique<ClientFactory>();
}

}  // namespace almost
