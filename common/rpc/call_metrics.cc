#include "common/rpc/call_metrics.h"

#include <chrono>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/metrics/metrics_server.h"
#include "common/rpc/bearer_token.h"
#include "common/rpc/status.h"
#include "google/protobuf/descriptor.h"
#include "grpcpp/server_context.h"

namespace almost {
namespace {

using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::InterceptorBatchMethods;

const char* TypeName(bool client_streams, bool server_streams) {
  if (client_streams) return server_streams ? "bidi_stream" : "client_stream";
  return server_streams ? "server_stream" : "unary";
}

// The families of one side.
class Families {
 public:
  Families(prometheus::Registry& registry, const std::string& side)
      : started_(Counter(registry, side, "started_total", "Calls started.")),
        handled_(Counter(registry, side, "handled_total", "Calls ended, by code.")),
        received_(Counter(registry, side, "msg_received_total", "Messages received.")),
        sent_(Counter(registry, side, "msg_sent_total", "Messages sent.")),
        seconds_(prometheus::BuildHistogram()
                     .Name(absl::StrCat("grpc_", side, "_handling_seconds"))
                     .Help("Time from start to end of calls.")
                     .Register(registry)) {}

  // Prometheus sees no increase in the value that a series begins with: what a service fails by its own fault
  // is counted from 0, for each of its methods.
  void CountFailuresOf(const google::protobuf::ServiceDescriptor& service) {
    for (int i = 0; i < service.method_count(); ++i) {
      const google::protobuf::MethodDescriptor& method = *service.method(i);
      prometheus::Labels labels = {
          {"grpc_type", TypeName(method.client_streaming(), method.server_streaming())},
          {"grpc_service", service.full_name()},
          {"grpc_method", method.name()}};
      for (const absl::StatusCode code :
           {absl::StatusCode::kUnknown, absl::StatusCode::kDeadlineExceeded, absl::StatusCode::kInternal,
            absl::StatusCode::kUnavailable, absl::StatusCode::kDataLoss}) {
        labels["grpc_code"] = absl::StatusCodeToString(code);
        handled_.Add(labels);
      }
    }
  }

  // One call, from its start to its end.
  class Call {
   public:
    Call(Families& families, absl::string_view method, const char* type)
        : families_(families), start_(std::chrono::steady_clock::now()) {
      // "/package.Service/Method"
      const size_t slash = method.rfind('/');
      labels_ = {{"grpc_type", type},
                 {"grpc_service", std::string(method.substr(1, slash - 1))},
                 {"grpc_method", std::string(method.substr(slash + 1))}};
      families_.started_.Add(labels_).Increment();
    }
    void Received() { families_.received_.Add(labels_).Increment(); }
    void Sent() { families_.sent_.Add(labels_).Increment(); }
    void Handled(grpc::StatusCode code) {
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start_;
      families_.seconds_.Add(labels_, LatencyBuckets()).Observe(time.count());
      prometheus::Labels labels = labels_;
      labels["grpc_code"] = absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
      families_.handled_.Add(labels).Increment();
    }

   private:
    Families& families_;
    const std::chrono::steady_clock::time_point start_;
    prometheus::Labels labels_;
  };

 private:
  static prometheus::Family<prometheus::Counter>& Counter(prometheus::Registry& registry,
                                                          const std::string& side, const char* name,
                                                          const char* help) {
    return prometheus::BuildCounter()
        .Name(absl::StrCat("grpc_", side, "_", name))
        .Help(help)
        .Register(registry);
  }
  prometheus::Family<prometheus::Counter>&started_, &handled_, &received_, &sent_;
  prometheus::Family<prometheus::Histogram>& seconds_;
};

// What became of requests that were not answered, and how many are being handled; on a server.
struct Requests {
  explicit Requests(prometheus::Registry& registry)
      : inflight(prometheus::BuildGauge()
                     .Name("almost_inflight_requests")
                     .Help("Calls that are being handled.")
                     .Register(registry)
                     .Add({})),
        queue_full(RejectedRequests(registry, "queue_full")),
        too_large(RejectedRequests(registry, "too_large")),
        too_late(RejectedRequests(registry, "deadline")),
        given_up(
            prometheus::BuildCounter()
                .Name("almost_requests_cancelled_total")
                .Help("Calls that ended without an answer since the client had gone or had set a deadline.")
                .Register(registry)),
        by_client(given_up.Add({{"cause", "client"}})),
        by_deadline(given_up.Add({{"cause", "deadline"}})) {}

  prometheus::Gauge& inflight;
  prometheus::Counter &queue_full, &too_large, &too_late;
  prometheus::Family<prometheus::Counter>& given_up;
  prometheus::Counter &by_client, &by_deadline;
};

class ServerInterceptor : public grpc::experimental::Interceptor {
 public:
  ServerInterceptor(Families& families, Requests* requests, grpc::experimental::ServerRpcInfo* info)
      : call_(families, info->method(), TypeName(info->type())),
        requests_(requests),
        context_(*info->server_context()) {
    if (requests_ != nullptr) requests_->inflight.Increment();
  }
  ~ServerInterceptor() override {
    if (requests_ != nullptr) requests_->inflight.Decrement();
  }

  void Intercept(InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE) &&
        methods->GetRecvMessage() != nullptr) {
      call_.Received();
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_MESSAGE)) call_.Sent();
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      const grpc::Status status = methods->GetSendStatus();
      call_.Handled(status.error_code());
      if (requests_ != nullptr) Unanswered(status);
    }
    methods->Proceed();
  }

 private:
  void Unanswered(const grpc::Status& status) {
    const grpc::StatusCode code = status.error_code();
    if (code == grpc::RESOURCE_EXHAUSTED) requests_->queue_full.Increment();
    if (code == grpc::OUT_OF_RANGE) requests_->too_large.Increment();
    if (code != grpc::CANCELLED && code != grpc::DEADLINE_EXCEEDED) return;
    (!EndsByDeadline(absl::FromChrono(context_.deadline())) ? requests_->by_client
     : ExpiredBeforeWork(status)                            ? requests_->too_late
                                                            : requests_->by_deadline)
        .Increment();
  }

  static const char* TypeName(grpc::experimental::ServerRpcInfo::Type type) {
    using Type = grpc::experimental::ServerRpcInfo::Type;
    switch (type) {
      case Type::UNARY:
        return "unary";
      case Type::CLIENT_STREAMING:
        return "client_stream";
      case Type::SERVER_STREAMING:
        return "server_stream";
      default:
        return "bidi_stream";
    }
  }
  Families::Call call_;
  Requests* const requests_;  // null: health and reflection
  const grpc::ServerContextBase& context_;
};

class ClientInterceptor : public grpc::experimental::Interceptor {
 public:
  ClientInterceptor(Families& families, grpc::experimental::ClientRpcInfo* info)
      : call_(families, info->method(), TypeName(info->type())) {}

  void Intercept(InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_MESSAGE)) call_.Sent();
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE) &&
        methods->GetRecvMessage() != nullptr) {
      call_.Received();
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_STATUS)) {
      call_.Handled(methods->GetRecvStatus()->error_code());
    }
    methods->Proceed();
  }

 private:
  static const char* TypeName(grpc::experimental::ClientRpcInfo::Type type) {
    using Type = grpc::experimental::ClientRpcInfo::Type;
    switch (type) {
      case Type::UNARY:
        return "unary";
      case Type::CLIENT_STREAMING:
        return "client_stream";
      case Type::SERVER_STREAMING:
        return "server_stream";
      default:
        return "bidi_stream";
    }
  }
  Families::Call call_;
};

class ServerFactory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  ServerFactory(prometheus::Registry& registry, const std::vector<std::string>& services)
      : families_(registry, "server"), requests_(registry) {
    for (const std::string& name : services) {
      const auto* service = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(name);
      if (service != nullptr) families_.CountFailuresOf(*service);
    }
  }
  grpc::experimental::Interceptor* CreateServerInterceptor(grpc::experimental::ServerRpcInfo* info) override {
    return new ServerInterceptor(families_, IsInfrastructureCall(info->method()) ? nullptr : &requests_,
                                 info);
  }

 private:
  Families families_;
  Requests requests_;
};

class ClientFactory : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit ClientFactory(prometheus::Registry& registry) : families_(registry, "client") {}
  grpc::experimental::Interceptor* CreateClientInterceptor(grpc::experimental::ClientRpcInfo* info) override {
    return new ClientInterceptor(families_, info);
  }

 private:
  Families families_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> ServerCallMetrics(
    prometheus::Registry& registry, const std::vector<std::string>& services) {
  return std::make_unique<ServerFactory>(registry, services);
}
std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface> ClientCallMetrics(
    prometheus::Registry& registry) {
  return std::make_unique<ClientFactory>(registry);
}

}  // namespace almost
