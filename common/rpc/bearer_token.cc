#include "common/rpc/bearer_token.h"

#include <grpc/grpc_security.h>
#include <grpcpp/security/auth_metadata_processor.h>
#include <openssl/crypto.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/sha256.h"
#include "common/rpc/status.h"

namespace almost {
namespace {

using grpc::experimental::InterceptionHookPoints;

constexpr absl::string_view kHeader = "authorization";
constexpr size_t kLeastCharacters = 16;

class TokenCheck final : public grpc::AuthMetadataProcessor {
 public:
  TokenCheck(BearerToken token, std::function<void()> refused)
      : token_(std::move(token)), refused_(std::move(refused)) {}

  bool IsBlocking() const override { return false; }
  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext*, OutputMetadata*,
                       OutputMetadata*) override {
    const auto header = [&](absl::string_view name) {
      const auto found = metadata.find(grpc::string_ref(name.data(), name.size()));
      return found == metadata.end() ? absl::string_view()
                                     : absl::string_view(found->second.data(), found->second.size());
    };
    if (metadata.count(grpc::string_ref(kHeader.data(), kHeader.size())) == 1 &&
        token_.Matches(header(kHeader))) {
      return grpc::Status::OK;
    }
    if (IsInfrastructureCall(header(":path"))) return grpc::Status::OK;
    refused_();
    return ToGrpc(absl::UnauthenticatedError("needs the metadata authorization: Bearer <token>"));
  }

 private:
  const BearerToken token_;
  const std::function<void()> refused_;
};

// gRPC's own insecure credentials end the process when they are given a processor, though the core beneath
// them takes one.
class PlainText final : public grpc::ServerCredentials {
 public:
  PlainText() : credentials_(grpc_insecure_server_credentials_create()) {}
  ~PlainText() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>& processor) override {
    grpc_server_credentials_set_auth_metadata_processor(
        credentials_, {&Process, &Destroy, new std::shared_ptr<grpc::AuthMetadataProcessor>(processor)});
  }

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }
  bool IsInsecure() const override { return true; }

  static void Process(void* state, grpc_auth_context*, const grpc_metadata* metadata, size_t num_metadata,
                      grpc_process_auth_metadata_done_cb done, void* user_data) {
    grpc::AuthMetadataProcessor::InputMetadata input;
    const auto text = [](const grpc_slice& slice) {
      return grpc::string_ref(reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)),
                              GRPC_SLICE_LENGTH(slice));
    };
    for (size_t i = 0; i < num_metadata; ++i) input.emplace(text(metadata[i].key), text(metadata[i].value));
    grpc::AuthMetadataProcessor::OutputMetadata consumed, response;
    const grpc::Status status = (*static_cast<std::shared_ptr<grpc::AuthMetadataProcessor>*>(state))
                                    ->Process(input, nullptr, &consumed, &response);
    done(user_data, nullptr, 0, nullptr, 0, static_cast<grpc_status_code>(status.error_code()),
         status.error_message().c_str());
  }
  static void Destroy(void* state) {
    delete static_cast<std::shared_ptr<grpc::AuthMetadataProcessor>*>(state);
  }

  grpc_server_credentials* const credentials_;
};

class TokenShower final : public grpc::experimental::Interceptor {
 public:
  explicit TokenShower(const std::string& header) : header_(header) {}
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->emplace(std::string(kHeader), header_);
    }
    methods->Proceed();
  }

 private:
  const std::string& header_;
};

class TokenShowers final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit TokenShowers(std::string header) : header_(std::move(header)) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(grpc::experimental::ClientRpcInfo*) override {
    return new TokenShower(header_);
  }

 private:
  const std::string header_;
};

}  // namespace

BearerToken::BearerToken(absl::string_view token)
    : header_(absl::StrCat("Bearer ", token)), digest_(Sha256(header_)) {}

absl::StatusOr<BearerToken> BearerToken::Read(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  if (!file) return absl::NotFoundError(absl::StrCat("token_file: cannot read ", path));
  text << file.rdbuf();
  const std::string content = text.str();
  const absl::string_view token = absl::StripAsciiWhitespace(content);
  if (token.size() < kLeastCharacters ||
      !std::all_of(token.begin(), token.end(), [](char c) { return absl::ascii_isgraph(c); })) {
    return absl::InvalidArgumentError(
        absl::StrCat("token_file: must hold at least ", kLeastCharacters,
                     " visible ASCII characters and no space between them; see ", path));
  }
  return BearerToken(token);
}

bool BearerToken::Matches(absl::string_view header) const {
  const std::string digest = Sha256(header);
  return CRYPTO_memcmp(digest.data(), digest_.data(), digest.size()) == 0;
}

bool IsInfrastructureCall(absl::string_view path) {
  return absl::StartsWith(path, "/grpc.health.") || absl::StartsWith(path, "/grpc.reflection.");
}

void RequireToken(grpc::ServerCredentials& credentials, BearerToken token, std::function<void()> refused) {
  credentials.SetAuthMetadataProcessor(std::make_shared<TokenCheck>(std::move(token), std::move(refused)));
}

std::shared_ptr<grpc::ServerCredentials> PlainTextServerCredentials() {
  return std::make_shared<PlainText>();
}

std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface> ShowToken(const BearerToken& token) {
  return std::make_unique<TokenShowers>(token.header());
}

}  // namespace almost
