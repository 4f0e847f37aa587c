#pragma once

#include <memory>
#include <string>
#include <vector>

#include "grpcpp/support/client_interceptor.h"
#include "grpcpp/support/server_interceptor.h"
#include "prometheus/registry.h"

namespace almost {

// Counts and times every call, with the names of go-grpc-prometheus:
// grpc_{server,client}_{started,handled,msg_received,msg_sent}_total and
// grpc_{server,client}_handling_seconds by grpc_type, grpc_service, grpc_method and, where a call has ended,
// grpc_code. A server's calls except those of health and reflection also make up almost_inflight_requests,
// almost_requests_cancelled_total and, of almost_requests_rejected_total, what ends RESOURCE_EXHAUSTED
// (queue_full), OUT_OF_RANGE (too_large) or as ExpiredBeforeWork says (deadline).
// What the methods of `services` fail by the server's own fault is there from the start, as 0.
// `registry` must outlive the calls.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> ServerCallMetrics(
    prometheus::Registry& registry, const std::vector<std::string>& services);
std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface> ClientCallMetrics(
    prometheus::Registry& registry);

}  // namespace almost
