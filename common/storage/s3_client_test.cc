// What a server that misbehaves makes of a request; against a real one see
// tests/integration/s3_store_test.cc.

#include "common/storage/s3_client.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace almost {
namespace {

using ::testing::HasSubstr;

// Gives each connection the next of its answers, whole, and closes it; after the last one it repeats that.
class CannedServer {
 public:
  explicit CannedServer(std::vector<std::string> answers) : answers_(std::move(answers)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(listener_, 16), 0);
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::jthread([this] { Serve(); });
  }
  ~CannedServer() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
  }
  std::string endpoint() const { return absl::StrCat("http://127.0.0.1:", port_); }
  const std::vector<std::string>& requests() const { return requests_; }

 private:
  void Serve() {
    while (true) {
      const int connection = accept(listener_, nullptr, nullptr);
      if (connection < 0) return;
      std::string request;
      char piece[4096];
      while (!absl::StrContains(request, "\r\n\r\n")) {
        const ssize_t count = read(connection, piece, sizeof(piece));
        if (count <= 0) break;
        request.append(piece, static_cast<size_t>(count));
      }
      const std::string& answer = answers_[std::min(requests_.size(), answers_.size() - 1)];
      requests_.push_back(request);
      (void)!send(connection, answer.data(), answer.size(), MSG_NOSIGNAL);
      close(connection);
    }
  }

  const std::vector<std::string> answers_;
  int listener_ = -1;
  int port_ = 0;
  std::vector<std::string> requests_;  // written by the thread while a client waits for its answer
  std::jthread thread_;
};

std::string Answer(absl::string_view status, absl::string_view body) {
  return absl::StrCat("HTTP/1.1 ", status, "\r\nContent-Length: ", body.size(),
                      "\r\nConnection: close\r\n\r\n", body);
}

std::unique_ptr<S3Client> Client(const std::string& endpoint) {
  S3Options options;
  options.bucket = "bucket";
  options.endpoint = endpoint;
  options.access_key_id = "id";
  options.secret_access_key = "very secret";
  options.max_tries = 3;
  options.first_backoff = absl::Milliseconds(1);
  return S3Client::Create(options).value();
}

TEST(S3ClientTest, AsksAgainWhereThatMayHelp) {
  const std::string slow_down = "<Error><Code>SlowDown</Code><Message>later</Message></Error>";
  for (const std::string& bad :
       {Answer("503 Slow Down", slow_down), Answer("500 Internal Server Error", ""), std::string(),
        std::string("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhal"), Answer("429 Too Many", "")}) {
    CannedServer server({bad, bad, Answer("200 OK", "content")});
    const absl::StatusOr<std::string> got = Client(server.endpoint())->Get("a key");
    ASSERT_TRUE(got.ok()) << bad << got.status();
    EXPECT_EQ(*got, "content");
    EXPECT_THAT(server.requests(), ::testing::SizeIs(3));
    EXPECT_THAT(server.requests()[0], HasSubstr("GET /bucket/a%20key HTTP/1.1"));
    EXPECT_THAT(server.requests()[0], HasSubstr("AWS4-HMAC-SHA256"));
  }
}

TEST(S3ClientTest, GivesUpAfterItsTriesAndShowsNoSecret) {
  CannedServer server(
      {Answer("503 Slow Down", "<Error><Code>SlowDown</Code><Message>later</Message></Error>")});
  const absl::Status status = Client(server.endpoint())->Put("key", "bytes");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("503 SlowDown later (3 tries)"));
  EXPECT_THAT(std::string(status.message()), ::testing::Not(HasSubstr("very secret")));
  EXPECT_THAT(server.requests(), ::testing::SizeIs(3));
}

TEST(S3ClientTest, DoesNotAskAgainWhereThatCannotHelp) {
  const std::vector<std::tuple<std::string, std::string, absl::StatusCode>> cases = {
      {"404 Not Found", "NoSuchKey", absl::StatusCode::kNotFound},
      {"404 Not Found", "NoSuchBucket", absl::StatusCode::kFailedPrecondition},
      {"403 Forbidden", "SignatureDoesNotMatch", absl::StatusCode::kPermissionDenied},
      {"400 Bad Request", "InvalidRequest", absl::StatusCode::kUnknown},
  };
  for (const auto& [answer, s3_code, code] : cases) {
    CannedServer server({Answer(answer, absl::StrCat("<Error><Code>", s3_code, "</Code></Error>"))});
    const absl::Status status = Client(server.endpoint())->Get("key").status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(s3_code));
    EXPECT_THAT(server.requests(), ::testing::SizeIs(1));
  }
}

TEST(S3ClientTest, NamesWhatItsOptionsLack) {
  S3Options options;
  EXPECT_EQ(S3Client::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.bucket = "bucket";
  EXPECT_THAT(std::string(S3Client::Create(options).status().message()), HasSubstr("AWS_ACCESS_KEY_ID"));
  options.access_key_id = options.secret_access_key = "x";
  options.endpoint = "localhost:9000";
  EXPECT_THAT(std::string(S3Client::Create(options).status().message()), HasSubstr("s3_endpoint"));
}

}  // namespace
}  // namespace almost
