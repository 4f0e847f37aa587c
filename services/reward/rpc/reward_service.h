#pragma once

#include "almost/reward/v1/reward.grpc.pb.h"
#include "common/serving/model_registry.h"
#include "services/reward/metrics.h"

namespace almost::reward {

// almost.reward.v1.RewardService over a registry of reward models. A response is scored as the last turn of
// its dialogue in the model's prompt format, end-of-text behind it, by the head's output on that last token.
class RewardService final : public v1::RewardService::Service {
 public:
  // Both must outlive the service.
  RewardService(ModelRegistry& models, Metrics& metrics) : models_(models), metrics_(metrics) {}

  grpc::Status Score(grpc::ServerContext* context, const v1::ScoreRequest* request,
                     v1::ScoreResponse* response) override;
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

}  // namespace almost::reward
