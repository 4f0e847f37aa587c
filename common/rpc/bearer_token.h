#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/support/client_interceptor.h"

namespace almost {

// The one secret that the callers of a suite share; each call shows it as `authorization: Bearer <token>`.
// It says that a caller belongs to the suite, not who it is; on a wire that others can read it needs TLS. A
// judge or a reward service that a recipe names is shown it too.
// Immutable.
class BearerToken {
 public:
  // The token in a file: visible ASCII, at least 16 characters; white space around it is not part of it. Read
  // once: a new token needs a restart. kNotFound: the file cannot be read; kInvalidArgument: another content.
  // No error repeats the content.
  static absl::StatusOr<BearerToken> Read(const std::string& path);

  // "Bearer <token>".
  const std::string& header() const { return header_; }
  // Whether `header` is the same, in a time that does not depend on where they differ.
  bool Matches(absl::string_view header) const;

 private:
  explicit BearerToken(absl::string_view token);
  std::string header_;
  std::string digest_;
};

// Whether `path`, "/package.Service/Method", is of health or reflection: for probes and tools, without token
// and trace.
bool IsInfrastructureCall(absl::string_view path);

// Makes `credentials` refuse with UNAUTHENTICATED, before its handler runs, every call without `token` but
// those of IsInfrastructureCall. `refused` runs at each, in any thread.
void RequireToken(grpc::ServerCredentials& credentials, BearerToken token, std::function<void()> refused);

// As grpc::InsecureServerCredentials(), which cannot be given to RequireToken.
std::shared_ptr<grpc::ServerCredentials> PlainTextServerCredentials();

// Shows `token` in every call of a channel. An interceptor, since gRPC has CallCredentials for encrypted
// channels only, and the suite also runs on loopback and behind the TLS of a mesh.
std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface> ShowToken(const BearerToken& token);

}  // namespace almost
