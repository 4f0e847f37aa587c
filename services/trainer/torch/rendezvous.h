#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/trainer/torch/group.h"

namespace c10d {
class Store;
}

namespace almost::trainer {

// One process's place among those that train together, as Kubernetes' training operators and torchrun set it
// in RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
struct RankOptions {
  int rank = 0;
  int world_size = 1;
  std::string master_addr = "127.0.0.1";  // rank 0's host
  int master_port = 29500;
  // How long a rank may be silent within a step before the others give it up.
  absl::Duration silence = absl::Minutes(30);
  // Where this rank computes; ranks on GPUs exchange gradients and weights by NCCL.
  c10::Device device = c10::kCPU;
  // A bound socket for rank 0 to listen on instead; the store takes it over.
  int listen_socket = -1;
};

// Where the ranks meet: a key-value store that rank 0 keeps (c10d's TCPStore). Rank 0 calls the others to
// each attempt at a job; they come, and a group is formed for this attempt alone. So a process that ends
// takes the attempt with it and nothing else: whoever starts in its place is there for the next one. Used by
// one thread.
class Rendezvous {
 public:
  // kInvalidArgument names the option; kUnimplemented: ranks on GPUs, and LibTorch without NCCL;
  // kUnavailable: rank 0's port is taken. Other ranks connect later.
  static absl::StatusOr<std::unique_ptr<Rendezvous>> Open(const RankOptions& options);
  ~Rendezvous();

  int rank() const { return options_.rank; }

  // Rank 0: calls all to `job`, bytes of the caller's, and waits until everybody has come; `waiting` is told
  // now and then how many have not. `numerics` must be everybody's, else kFailedPrecondition names the rank.
  // kCancelled: stop was requested; kUnavailable: a rank went away meanwhile, call again.
  absl::StatusOr<Group> Call(const std::string& job, const std::string& numerics, const std::stop_token& stop,
                             const std::function<void(int missing)>& waiting);
  // Rank 0, after a group was lost: what a rank said of its end; OK when it just went.
  absl::Status Complaint();

  struct Attempt {
    std::string job;
    Group group;
  };
  // The others: waits for the next call and follows it; connects to rank 0 as often as needed. kCancelled:
  // stop was requested.
  absl::StatusOr<Attempt> Follow(const std::string& numerics, const std::stop_token& stop);
  // The others, before they leave a group because of an error of their own.
  void Complain(const absl::Status& status);

 private:
  explicit Rendezvous(RankOptions options) : options_(std::move(options)) {}
  std::string Key(absl::string_view what) const;
  Group Connect() const;

  const RankOptions options_;
  c10::intrusive_ptr<c10d::Store> store_;
  int64_t attempt_ = 0;  // the latest that this process took part in
};

}  // namespace almost::trainer
