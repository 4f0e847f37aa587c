#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"

// The one table between absl::Status and what travels. Codes are the same numbers. Details that a status
// gains on its way out: BadRequest for kInvalidArgument whose message begins with "field: ", RetryInfo for
// kResourceExhausted, and ErrorInfo with the code's name as a stable reason, domain "almost", unless it has
// one. What is not UTF-8 in a message is replaced.
namespace almost {

google::rpc::Status ToProto(const absl::Status& status);
absl::Status FromProto(const google::rpc::Status& status);

// A message beyond a KiB is cut: it would not fit what clients accept beside an answer.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

// For handlers: moves the value into `*response`, or returns the error.
template <typename Response>
grpc::Status Answer(absl::StatusOr<Response> value, Response* response) {
  if (!value.ok()) return ToGrpc(value.status());
  *response = std::move(*value);
  return grpc::Status::OK;
}

// Whether a call that ends now, its client gone, does so by its deadline. A client hangs up when its own
// deadline passes, which may be a little before the server's does: that began when the call arrived.
bool EndsByDeadline(absl::Time deadline);

// kDeadlineExceeded of a call whose deadline passed before any work on it began; its ErrorInfo has the reason
// EXPIRED_BEFORE_WORK.
absl::Status ExpiredBeforeWorkError();
bool ExpiredBeforeWork(const grpc::Status& status);

// kResourceExhausted whose RetryInfo says `delay`.
absl::Status RetryLater(absl::string_view message, absl::Duration delay);
// When to try again, as the server's RetryInfo says; zero where it says nothing.
absl::Duration RetryDelay(const absl::Status& status);

// kInvalidArgument in the form that ToProto turns into a field violation.
absl::Status InvalidField(absl::string_view field, absl::string_view rule, absl::string_view value);

}  // namespace almost
