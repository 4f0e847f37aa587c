#pragma once

#include "almost/judge/v1/judge.grpc.pb.h"
#include "common/world/world.h"

namespace almost::cli {

// A world's ground truth as a judge: the higher score of common/world/judge.h wins, equal ones tie.
// An item whose prompt is no question of that world is INVALID_ARGUMENT; the others are judged all the same.
class WorldJudge final : public almost::judge::v1::JudgeService::Service {
 public:
  // The world outlives it.
  explicit WorldJudge(const world::World& world) : world_(world) {}

  grpc::Status Compare(grpc::ServerContext* context, const almost::judge::v1::CompareRequest* request,
                       almost::judge::v1::CompareResponse* response) override;

 private:
  const world::World& world_;
};

}  // namespace almost::cli
