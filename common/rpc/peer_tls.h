#pragma once

#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "grpcpp/security/credentials.h"

namespace almost {

// How callers know the services they call, and are known to them. PEM files, read once.
struct PeerTls {
  std::string ca;         // that signs the services' certificates; empty: plain text
  std::string cert, key;  // shown to them; empty: none
};

// --<prefix>tls_ca, --<prefix>tls_cert, --<prefix>tls_key.
void AddPeerTlsFlags(CLI::App& app, PeerTls& tls, const std::string& prefix);

// For channels. kNotFound: a file cannot be read; kInvalidArgument: a certificate without a CA to trust, or
// without its key.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelCredentials(const PeerTls& tls);

}  // namespace almost
