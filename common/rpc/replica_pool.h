#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/rpc/bearer_token.h"
#include "common/rpc/peer_tls.h"
#include "common/rpc/status.h"
#include "grpcpp/grpcpp.h"
#include "prometheus/registry.h"

namespace almost {

struct ReplicaPoolOptions {
  // Behaviour.
  PeerTls tls;
  std::string token_file;  // shown to every replica (BearerToken); empty: none
  int max_tries = 5;       // of a call, the first one included
  // Performance.
  absl::Duration resolve_every = absl::Seconds(5);  // dns:/// targets are looked up again
  absl::Duration avoid_for = absl::Seconds(2);      // a replica that could not be reached, or lacked a model
  absl::Duration first_backoff = absl::Milliseconds(50);
  absl::Duration longest_backoff = absl::Seconds(5);
};

// The replicas behind one target: "host:port", several separated by commas, or "dns:///name:port", whose
// addresses may come and go. One channel an address; each call goes to the replica with the least outstanding
// cost. A call is tried again, elsewhere where there is an elsewhere, when it ends UNAVAILABLE or is cut off
// by a server that stops, and after the server's RetryInfo when it ends RESOURCE_EXHAUSTED. One that ends
// NOT_FOUND is asked of every other replica before that is the answer: one that has just come up may not have
// the model yet that the others hold. So what is sent through a pool must be harmless to repeat. Calls carry
// the thread's trace (ClientCallTrace). Thread-safe.
class ReplicaPool {
 public:
  // kInvalidArgument: an empty or malformed target; kNotFound: a PEM file or the token's. Replicas need not
  // be there yet. With `registry`, calls are counted as grpc_client_*; it must outlive the pool.
  static absl::StatusOr<std::unique_ptr<ReplicaPool>> Create(const std::string& target,
                                                             const ReplicaPoolOptions& options,
                                                             prometheus::Registry* registry = nullptr);
  ~ReplicaPool();

  const std::string& target() const { return target_; }
  // Addresses known now.
  std::vector<std::string> Addresses() const;

  // Calls `method` of Service (e.g. &RewardService::Stub::Score) within `deadline`, all tries together.
  // `cost` is what the call adds to its replica's load, for instance its tokens. `stop` ends it at once, and
  // what the replica does for it: kCancelled.
  template <typename Service, typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                      Response*),
                                const Request& request, double cost, absl::Time deadline,
                                const std::stop_token& stop = {}) {
    Response response;
    const absl::Status status =
        Try(cost, deadline, stop,
            [&](const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext& context) {
              typename Service::Stub stub(channel);
              response.Clear();
              return (stub.*method)(&context, request, &response);
            });
    if (!status.ok()) return status;
    return response;
  }

  // The same for anything else done over one channel, such as a stream read to its end.
  using Attempt = std::function<grpc::Status(const std::shared_ptr<grpc::Channel>&, grpc::ClientContext&)>;
  absl::Status Try(double cost, absl::Time deadline, const std::stop_token& stop, const Attempt& attempt);
  // Once at every replica listed now, for what each of them must hold, such as a model. OK when one did it
  // and the others could not be reached; otherwise the first error.
  absl::Status TryEach(absl::Time deadline, const std::stop_token& stop, const Attempt& attempt);

 private:
  struct Replica {
    std::string address;
    std::shared_ptr<grpc::Channel> channel;
    double outstanding = 0;
    absl::Time avoid_until = absl::InfinitePast();
    bool listed = true;  // false: no longer in DNS; goes when its calls have ended
  };

  ReplicaPool(std::string target, const ReplicaPoolOptions& options, prometheus::Registry* registry);
  void SetAddresses(const std::vector<std::string>& addresses);
  // The best one, not `last` if there is another, and none of `lacking`; null if there is none.
  std::shared_ptr<Replica> Acquire(double cost, const Replica* last,
                                   const std::set<std::shared_ptr<Replica>>& lacking);
  void Release(const std::shared_ptr<Replica>& replica, double cost, const absl::Status& status);
  static absl::Status Once(Replica& replica, absl::Time deadline, const std::stop_token& stop,
                           const Attempt& attempt);
  void ResolveLoop(const std::stop_token& stop);

  const std::string target_;
  const ReplicaPoolOptions options_;
  prometheus::Registry* const registry_;
  std::shared_ptr<grpc::ChannelCredentials> credentials_;
  std::optional<BearerToken> token_;
  mutable absl::Mutex mutex_;
  std::vector<std::shared_ptr<Replica>> replicas_ ABSL_GUARDED_BY(mutex_);
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;  // ties go round
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::jthread resolver_;
};

}  // namespace almost
