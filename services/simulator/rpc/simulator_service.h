#pragma once

#include "absl/time/time.h"
#include "almost/simulator/v1/simulator.grpc.pb.h"
#include "common/rpc/replica_pool.h"
#include "services/simulator/metrics.h"

namespace almost::simulator {

// almost.simulator.v1.SimulatorService on top of a generation and a reward service. A request is cut into
// batches of about 64 completions, a few of them under way at once; its stream is in item order and depends
// on the request and the models alone. kInvalidArgument and kFailedPrecondition name the field; what the
// services answer, beyond texts too long for a context, ends the stream with their own code.
class SimulatorService final : public v1::SimulatorService::Service {
 public:
  // `calls_in_flight` and `call_timeout` as in Options. The others must outlive the service.
  SimulatorService(ReplicaPool& generation, ReplicaPool& reward, int calls_in_flight,
                   absl::Duration call_timeout, Metrics& metrics)
      : generation_(generation),
        reward_(reward),
        calls_in_flight_(calls_in_flight),
        call_timeout_(call_timeout),
        metrics_(metrics) {}

  grpc::Status GeneratePrompts(grpc::ServerContext* context, const v1::GeneratePromptsRequest* request,
                               grpc::ServerWriter<v1::GeneratePromptsResponse>* writer) override;
  grpc::Status SimulateDialogues(grpc::ServerContext* context, const v1::SimulateDialoguesRequest* request,
                                 grpc::ServerWriter<v1::SimulateDialoguesResponse>* writer) override;

 private:
  ReplicaPool& generation_;
  ReplicaPool& reward_;
  const int calls_in_flight_;
  const absl::Duration call_timeout_;
  Metrics& metrics_;
};

}  // namespace almost::simulator
