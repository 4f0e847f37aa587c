#include "common/rpc/peer_tls.h"

#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace almost {
namespace {

absl::StatusOr<std::string> ReadPem(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

void AddPeerTlsFlags(CLI::App& app, PeerTls& tls, const std::string& prefix) {
  const std::string group = "TLS of the services called";
  const auto flag = [&](const char* name) { return absl::StrCat("--", prefix, "tls_", name); };
  app.add_option(flag("ca"), tls.ca, "PEM file that signs their certificates; empty: plain text")
      ->group(group);
  app.add_option(flag("cert"), tls.cert, "PEM file shown to them")->group(group);
  app.add_option(flag("key"), tls.key, "Its key")->group(group);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelCredentials(const PeerTls& tls) {
  if (tls.cert.empty() != tls.key.empty()) {
    return absl::InvalidArgumentError("TLS: a certificate and its key go together");
  }
  if (tls.ca.empty() && !tls.cert.empty()) {
    return absl::InvalidArgumentError("TLS: a certificate is shown only to services whose CA is given");
  }
  if (tls.ca.empty()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions ssl;
  ALMOST_ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadPem(tls.ca));
  ALMOST_ASSIGN_OR_RETURN(ssl.pem_cert_chain, ReadPem(tls.cert));
  ALMOST_ASSIGN_OR_RETURN(ssl.pem_private_key, ReadPem(tls.key));
  return grpc::SslCredentials(ssl);
}

}  // namespace almost
