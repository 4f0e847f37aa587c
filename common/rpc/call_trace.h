#pragma once

#include <memory>

#include "grpcpp/support/client_interceptor.h"
#include "grpcpp/support/server_interceptor.h"

namespace almost {

// On a server: makes the caller's `traceparent`, or a new trace where there is none or it is malformed,
// CurrentTrace() of the handler's thread, and logs the end of each call with method, code and seconds; at
// debug level when it ended well, else at info. Not for health and reflection. For synchronous services: of
// them gRPC runs interceptors and handler in one thread.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> ServerCallTrace();

// On a client: sends `traceparent`: CurrentTrace() of the thread that makes the call, with a span of its own;
// a new trace where the thread works for none. Every try of a call is a span.
std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface> ClientCallTrace();

}  // namespace almost
