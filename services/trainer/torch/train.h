#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/trainer/core/job_queue.h"
#include "services/trainer/core/job_spec.h"
#include "services/trainer/core/reward_function.h"

namespace almost::trainer {

class Group;

struct CheckpointWork {
  enum class Operation { kWrite, kRestore } operation;
  std::chrono::duration<double> seconds;
  absl::Status status;
};

// What a job is run with. Its functions may be null; they are called on the thread that trains.
struct TrainContext {
  // Kept between calls for the same job: checkpoints, and in the end the model.
  std::filesystem::path work_folder;
  std::stop_token stop;  // when requested: write a checkpoint and return kCancelled after the step under way
  // After each step. `step` counts steps done.
  std::function<void(int64_t step, int64_t num_steps, const std::map<std::string, double>& metrics)> report;
  std::function<void(const std::string& message)> warn;   // a damaged checkpoint was passed over
  std::function<void(const CheckpointWork&)> checkpoint;  // one was written, or could not be; or was read
  std::function<void()> not_finite;                       // before a job ends that way
  RewardFunction reward;                                  // of a ppo or grpo job
  RewardFunction guard;                                   // of a ppo or grpo job, where it has one
  std::vector<Reader> scorers;                            // what is known of these two: none, one or both
  // Of OpenDevice. On a GPU one thread drives it, whatever the spec says of threads.
  c10::Device device = c10::kCPU;
  // The ranks that train together; null: this process alone. All call Train with the same spec; rank 0 owns
  // the work folder, is told of progress and asks for rewards, the others need neither of these.
  Group* group = nullptr;
};

// Runs the job from where its work folder stands to the end, and leaves the model in work_folder/model: a
// Hugging Face folder, whole or not at all. Called again after a crash at any point it ends with the same
// bits. output_digest is the model's. One job at a time. A rank that is asked to stop stops all, with a
// checkpoint. kInvalidArgument and kNotFound name the field or the file; kFailedPrecondition: a checkpoint
// made with other numerics; kCancelled; kUnavailable with the group lost: call again with another; kInternal:
// LibTorch failed, or a loss or a gradient is not a finite number: no checkpoint holds what came of it.
absl::StatusOr<TrainedModel> Train(const JobSpec& spec, const TrainContext& context);

}  // namespace almost::trainer
