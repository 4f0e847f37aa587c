#pragma once

#include "almost/generation/v1/generation.grpc.pb.h"
#include "common/serving/model_registry.h"
#include "services/generation/metrics.h"

namespace almost::generation {

// almost.generation.v1.GenerationService over a registry of models. Handlers wait on the engine; a client
// that goes away or a deadline that passes gives its blocks back after the engine's step under way.
class GenerationService final : public v1::GenerationService::Service {
 public:
  // Both must outlive the service.
  GenerationService(ModelRegistry& models, Metrics& metrics) : models_(models), metrics_(metrics) {}

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        v1::GenerateResponse* response) override;
  grpc::Status StreamGenerate(grpc::ServerContext* context, const v1::StreamGenerateRequest* request,
                              grpc::ServerWriter<v1::StreamGenerateResponse>* writer) override;
  grpc::Status ScoreCompletions(grpc::ServerContext* context, const v1::ScoreCompletionsRequest* request,
                                v1::ScoreCompletionsResponse* response) override;
  grpc::Status Tokenize(grpc::ServerContext* context, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override;
  grpc::Status ListModels(grpc::ServerContext* context, const types::v1::ListModelsRequest* request,
                          types::v1::ListModelsResponse* response) override;
  grpc::Status GetModel(grpc::ServerContext* context, const types::v1::GetModelRequest* request,
                        types::v1::Model* response) override;
  grpc::Status LoadModel(grpc::ServerContext* context, const types::v1::LoadModelRequest* request,
                         types::v1::Model* response) override;
  grpc::Status UnloadModel(grpc::ServerContext* context, const types::v1::UnloadModelRequest* request,
                           types::v1::UnloadModelResponse* response) override;

 private:
  ModelRegistry& models_;
  Metrics& metrics_;
};

}  // namespace almost::generation
