#include "common/rpc/status.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/unicode.h"
#include "google/rpc/error_details.pb.h"

namespace almost {
namespace {

constexpr absl::string_view kRetryInfoUrl = "type.googleapis.com/google.rpc.RetryInfo";
constexpr absl::string_view kErrorInfoUrl = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr absl::string_view kExpiredBeforeWork = "EXPIRED_BEFORE_WORK";
constexpr absl::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD
constexpr absl::Duration kDefaultRetryDelay = absl::Milliseconds(200);

// Clients take 8 KiB of trailers, in which a message stands up to three times, its characters written out.
constexpr size_t kMaxMessageBytes = 1024;

// UTF-8 of at most so many bytes and the sign that it goes on.
std::string Shown(absl::string_view message, size_t max_bytes) {
  std::string shown;
  while (!message.empty()) {
    const CodePoint first = FirstCodePoint(message);
    const bool is_none = first.value == 0xFFFD && first.size == 1;
    const absl::string_view character = is_none ? kReplacement : message.substr(0, first.size);
    if (shown.size() + character.size() > max_bytes) return absl::StrCat(shown, "…");
    absl::StrAppend(&shown, character);
    message.remove_prefix(first.size);
  }
  return shown;
}

google::rpc::ErrorInfo ErrorInfoOf(const absl::Status& status) {
  google::rpc::ErrorInfo info;
  const absl::optional<absl::Cord> payload = status.GetPayload(std::string(kErrorInfoUrl));
  if (payload && info.ParseFromString(std::string(*payload))) return info;
  info.set_domain("almost");
  info.set_reason(absl::StatusCodeToString(status.code()));
  return info;
}

google::rpc::RetryInfo RetryInfoOf(absl::Duration delay) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(absl::IDivDuration(delay, absl::Seconds(1), &delay));
  retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(delay)));
  return retry;
}

google::rpc::Status Proto(const absl::Status& status, size_t max_message_bytes) {
  google::rpc::Status proto;
  if (status.ok()) return proto;
  const std::string message = Shown(status.message(), max_message_bytes);
  proto.set_code(static_cast<int>(status.code()));
  proto.set_message(message);
  proto.add_details()->PackFrom(ErrorInfoOf(status));
  if (const size_t colon = message.find(": ");
      absl::IsInvalidArgument(status) && colon != std::string::npos) {
    google::rpc::BadRequest bad;
    google::rpc::BadRequest::FieldViolation* violation = bad.add_field_violations();
    violation->set_field(message.substr(0, colon));
    violation->set_description(message.substr(colon + 2));
    proto.add_details()->PackFrom(bad);
  }
  if (absl::IsResourceExhausted(status)) {
    const absl::Duration delay = RetryDelay(status);
    proto.add_details()->PackFrom(RetryInfoOf(delay == absl::ZeroDuration() ? kDefaultRetryDelay : delay));
  }
  return proto;
}

}  // namespace

google::rpc::Status ToProto(const absl::Status& status) { return Proto(status, std::string::npos); }

absl::Status FromProto(const google::rpc::Status& proto) {
  if (proto.code() == 0) return absl::OkStatus();
  absl::Status status(static_cast<absl::StatusCode>(proto.code()), proto.message());
  for (const google::protobuf::Any& detail : proto.details()) {
    status.SetPayload(detail.type_url(), absl::Cord(detail.value()));
  }
  return status;
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status proto = Proto(status, kMaxMessageBytes);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), proto.message(),
                      proto.SerializeAsString());
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  google::rpc::Status proto;
  if (!status.error_details().empty() && proto.ParseFromString(status.error_details()) && proto.code() != 0) {
    return FromProto(proto);
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

bool EndsByDeadline(absl::Time deadline) {
  constexpr absl::Duration kSlack = absl::Milliseconds(250);
  return absl::Now() >= deadline - kSlack;
}

absl::Status ExpiredBeforeWorkError() {
  absl::Status status = absl::DeadlineExceededError("the deadline passed before any work began");
  google::rpc::ErrorInfo info;
  info.set_domain("almost");
  info.set_reason(std::string(kExpiredBeforeWork));
  status.SetPayload(std::string(kErrorInfoUrl), absl::Cord(info.SerializeAsString()));
  return status;
}

bool ExpiredBeforeWork(const grpc::Status& status) {
  return status.error_code() == grpc::DEADLINE_EXCEEDED &&
         ErrorInfoOf(FromGrpc(status)).reason() == kExpiredBeforeWork;
}

absl::Status RetryLater(absl::string_view message, absl::Duration delay) {
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(std::string(kRetryInfoUrl), absl::Cord(RetryInfoOf(delay).SerializeAsString()));
  return status;
}

absl::Duration RetryDelay(const absl::Status& status) {
  google::rpc::RetryInfo retry;
  const absl::optional<absl::Cord> payload = status.GetPayload(std::string(kRetryInfoUrl));
  if (!payload || !retry.ParseFromString(std::string(*payload))) return absl::ZeroDuration();
  return absl::Seconds(retry.retry_delay().seconds()) + absl::Nanoseconds(retry.retry_delay().nanos());
}

absl::Status InvalidField(absl::string_view field, absl::string_view rule, absl::string_view value) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": must be ", rule, ", got ", value));
}

}  // namespace almost
