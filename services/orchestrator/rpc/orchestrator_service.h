#pragma once

#include "almost/orchestrator/v1/orchestrator.grpc.pb.h"
#include "common/storage/artifact_store.h"
#include "services/orchestrator/core/orchestrator.h"

namespace almost::orchestrator {

// almost.orchestrator.v1.OrchestratorService over an Orchestrator and its store. Thread-safe.
class OrchestratorService : public v1::OrchestratorService::Service {
 public:
  // Both outlive the service.
  OrchestratorService(Orchestrator* orchestrator, ArtifactStore* store)
      : orchestrator_(orchestrator), store_(store) {}

  grpc::Status CreateRun(grpc::ServerContext*, const v1::CreateRunRequest* request,
                         v1::Run* response) override;
  grpc::Status GetRun(grpc::ServerContext*, const v1::GetRunRequest* request, v1::Run* response) override;
  grpc::Status ListRuns(grpc::ServerContext*, const v1::ListRunsRequest* request,
                        v1::ListRunsResponse* response) override;
  grpc::Status CancelRun(grpc::ServerContext*, const v1::CancelRunRequest* request,
                         v1::Run* response) override;
  grpc::Status PauseRun(grpc::ServerContext* context, const v1::PauseRunRequest* request,
                        v1::Run* response) override;
  grpc::Status ResumeRun(grpc::ServerContext*, const v1::ResumeRunRequest* request,
                         v1::Run* response) override;
  grpc::Status DeleteRun(grpc::ServerContext* context, const v1::DeleteRunRequest* request,
                         v1::DeleteRunResponse* response) override;
  grpc::Status WatchRun(grpc::ServerContext* context, const v1::WatchRunRequest* request,
                        grpc::ServerWriter<v1::RunEvent>* writer) override;
  grpc::Status ListArtifacts(grpc::ServerContext*, const v1::ListArtifactsRequest* request,
                             v1::ListArtifactsResponse* response) override;
  grpc::Status ReadArtifact(grpc::ServerContext* context, const v1::ReadArtifactRequest* request,
                            grpc::ServerWriter<v1::ReadArtifactResponse>* writer) override;
  grpc::Status GetLineage(grpc::ServerContext*, const v1::GetLineageRequest* request,
                          v1::GetLineageResponse* response) override;
  grpc::Status CollectGarbage(grpc::ServerContext*, const v1::CollectGarbageRequest* request,
                              v1::CollectGarbageResponse* response) override;

 private:
  Orchestrator* const orchestrator_;
  ArtifactStore* const store_;
};

}  // namespace almost::orchestrator
