#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "almost/trainer/v1/trainer.grpc.pb.h"
#include "common/storage/artifact_store.h"
#include "services/trainer/core/job_queue.h"
#include "services/trainer/core/job_spec.h"

namespace almost::trainer {

// almost.trainer.v1.TrainerService over a queue of jobs. What a job's spec bytes are: the serialised JobSpec.
class TrainerService final : public v1::TrainerService::Service {
 public:
  // All must outlive the service. `store` may be null: then only files beneath `model_root` can be named.
  // `numerics` tells a job's numerics_id before it has run.
  TrainerService(JobQueue& jobs, ArtifactStore* store, std::filesystem::path model_root,
                 std::function<std::string(const JobSpec&)> numerics)
      : jobs_(jobs), store_(store), model_root_(std::move(model_root)), numerics_(std::move(numerics)) {}

  grpc::Status CreateJob(grpc::ServerContext* context, const v1::CreateJobRequest* request,
                         v1::Job* response) override;
  grpc::Status GetJob(grpc::ServerContext* context, const v1::GetJobRequest* request,
                      v1::Job* response) override;
  grpc::Status ListJobs(grpc::ServerContext* context, const v1::ListJobsRequest* request,
                        v1::ListJobsResponse* response) override;
  grpc::Status CancelJob(grpc::ServerContext* context, const v1::CancelJobRequest* request,
                         v1::Job* response) override;
  grpc::Status PauseJob(grpc::ServerContext* context, const v1::PauseJobRequest* request,
                        v1::Job* response) override;
  grpc::Status ResumeJob(grpc::ServerContext* context, const v1::ResumeJobRequest* request,
                         v1::Job* response) override;
  grpc::Status WatchJob(grpc::ServerContext* context, const v1::WatchJobRequest* request,
                        grpc::ServerWriter<v1::JobEvent>* writer) override;

 private:
  JobQueue& jobs_;
  ArtifactStore* const store_;
  const std::filesystem::path model_root_;
  const std::function<std::string(const JobSpec&)> numerics_;
};

}  // namespace almost::trainer
