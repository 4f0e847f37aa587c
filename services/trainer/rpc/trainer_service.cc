#include "services/trainer/rpc/trainer_service.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "services/trainer/rpc/job_spec_proto.h"

namespace almost::trainer {
namespace {

constexpr absl::string_view kPrefix = "jobs/";
constexpr absl::Duration kHeartbeat = absl::Seconds(5);
// A waiting stream looks at least this often whether its client is still there.
constexpr absl::Duration kLook = absl::Milliseconds(200);

absl::StatusOr<std::string> JobId(const std::string& name) {
  if (!absl::StartsWith(name, kPrefix)) return InvalidField("name", "jobs/{id}", name);
  return name.substr(kPrefix.size());
}

// Equal specs have equal bytes: a repeat of CreateJob is recognised by them. (No map fields, so serialisation
// in field order is a function of the message.)
std::string SpecBytes(const v1::JobSpec& spec) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  spec.SerializeToCodedStream(&coded);
  coded.Trim();
  return bytes;
}

v1::JobState ToProtoState(JobState state) {
  switch (state) {
    case JobState::kQueued:
      return v1::JOB_STATE_QUEUED;
    case JobState::kRunning:
      return v1::JOB_STATE_RUNNING;
    case JobState::kPaused:
      return v1::JOB_STATE_PAUSED;
    case JobState::kSucceeded:
      return v1::JOB_STATE_SUCCEEDED;
    case JobState::kFailed:
      return v1::JOB_STATE_FAILED;
    case JobState::kCancelled:
      return v1::JOB_STATE_CANCELLED;
  }
  return v1::JOB_STATE_UNSPECIFIED;
}

google::protobuf::Timestamp ToTimestamp(absl::Time time) {
  google::protobuf::Timestamp proto;
  proto.set_seconds(absl::ToUnixSeconds(time));
  proto.set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(proto.seconds()))));
  return proto;
}

v1::Job ToProtoJob(const JobRecord& record) {
  v1::Job job;
  job.set_name(absl::StrCat(kPrefix, record.id));
  job.mutable_spec()->ParseFromString(record.spec);
  job.set_state(ToProtoState(record.state));
  job.set_step(record.step);
  job.set_num_steps(record.num_steps);
  job.mutable_metrics()->insert(record.metrics.begin(), record.metrics.end());
  if (!record.error.ok()) *job.mutable_error() = ToProto(record.error);
  job.set_output_digest(record.output_digest);
  job.set_numerics_id(record.numerics_id);
  *job.mutable_create_time() = ToTimestamp(record.create_time);
  if (HasEnded(record.state)) *job.mutable_end_time() = ToTimestamp(record.end_time);
  return job;
}

absl::StatusOr<v1::Job> ToProtoJob(const absl::StatusOr<JobRecord>& record) {
  if (!record.ok()) return record.status();
  return ToProtoJob(*record);
}

v1::JobEvent ToProtoEvent(const JobEvent& event) {
  v1::JobEvent proto;
  proto.set_sequence(event.sequence);
  proto.set_state(ToProtoState(event.state));
  proto.set_step(event.step);
  proto.set_num_steps(event.num_steps);
  proto.mutable_metrics()->insert(event.metrics.begin(), event.metrics.end());
  if (!event.error.ok()) *proto.mutable_error() = ToProto(event.error);
  return proto;
}

}  // namespace

grpc::Status TrainerService::CreateJob(grpc::ServerContext*, const v1::CreateJobRequest* request,
                                       v1::Job* response) {
  // A job known already is answered even when the files it began from have gone since.
  const std::string bytes = SpecBytes(request->spec());
  if (const auto known = jobs_.Get(request->job_id()); known.ok() && known->spec == bytes) {
    *response = ToProtoJob(*known);
    return grpc::Status::OK;
  }
  const auto spec = ReadJobSpec(request->spec(), store_, model_root_);
  if (!spec.ok()) return ToGrpc(spec.status());
  if (request->validate_only()) {
    response->set_name(absl::StrCat(kPrefix, request->job_id()));
    *response->mutable_spec() = request->spec();
    response->set_numerics_id(numerics_(*spec));
    return grpc::Status::OK;
  }
  return Answer(ToProtoJob(jobs_.Create(request->job_id(), bytes, request->spec().priority())), response);
}

grpc::Status TrainerService::GetJob(grpc::ServerContext*, const v1::GetJobRequest* request,
                                    v1::Job* response) {
  const auto id = JobId(request->name());
  if (!id.ok()) return ToGrpc(id.status());
  return Answer(ToProtoJob(jobs_.Get(*id)), response);
}

grpc::Status TrainerService::ListJobs(grpc::ServerContext*, const v1::ListJobsRequest* request,
                                      v1::ListJobsResponse* response) {
  if (request->page_size() < 0 || request->page_size() > 1000) {
    return ToGrpc(InvalidField("page_size", "in [0, 1000]", absl::StrCat(request->page_size())));
  }
  // Jobs are never removed, so "everything older than that many" is a stable place.
  const std::vector<JobRecord> records = jobs_.List();
  size_t older = records.size();
  if (!request->page_token().empty() &&
      (!absl::SimpleAtoi(request->page_token(), &older) || older > records.size())) {
    return ToGrpc(InvalidField("page_token", "a next_page_token", request->page_token()));
  }
  const size_t size = request->page_size() == 0 ? 100 : static_cast<size_t>(request->page_size());
  const size_t count = std::min(size, older);
  for (size_t i = records.size() - older; i < records.size() - older + count; ++i) {
    *response->add_jobs() = ToProtoJob(records[i]);
  }
  if (older > count) response->set_next_page_token(absl::StrCat(older - count));
  return grpc::Status::OK;
}

grpc::Status TrainerService::CancelJob(grpc::ServerContext*, const v1::CancelJobRequest* request,
                                       v1::Job* response) {
  const auto id = JobId(request->name());
  if (!id.ok()) return ToGrpc(id.status());
  return Answer(ToProtoJob(jobs_.Cancel(*id)), response);
}

grpc::Status TrainerService::PauseJob(grpc::ServerContext*, const v1::PauseJobRequest* request,
                                      v1::Job* response) {
  const auto id = JobId(request->name());
  if (!id.ok()) return ToGrpc(id.status());
  return Answer(ToProtoJob(jobs_.Pause(*id)), response);
}

grpc::Status TrainerService::ResumeJob(grpc::ServerContext*, const v1::ResumeJobRequest* request,
                                       v1::Job* response) {
  const auto id = JobId(request->name());
  if (!id.ok()) return ToGrpc(id.status());
  return Answer(ToProtoJob(jobs_.Resume(*id)), response);
}

grpc::Status TrainerService::WatchJob(grpc::ServerContext* context, const v1::WatchJobRequest* request,
                                      grpc::ServerWriter<v1::JobEvent>* writer) {
  const auto id = JobId(request->name());
  if (!id.ok()) return ToGrpc(id.status());
  v1::JobEvent heartbeat;
  heartbeat.set_sequence(request->after_sequence());
  absl::Time silent_since = absl::Now();
  while (!context->IsCancelled()) {
    // Asked before the events are, so that the last one is among them.
    const auto record = jobs_.Get(*id);
    const auto events = jobs_.Events(*id, heartbeat.sequence(), kLook);
    if (!events.ok()) return ToGrpc(events.status());
    for (const JobEvent& event : *events) {
      if (!writer->Write(ToProtoEvent(event))) return grpc::Status::CANCELLED;
      heartbeat.set_sequence(event.sequence);
      silent_since = absl::Now();
    }
    if (!events->empty() && HasEnded(events->back().state)) return grpc::Status::OK;
    if (events->empty()) {
      // A watcher that has seen everything of an ended job.
      if (record.ok() && HasEnded(record->state)) return grpc::Status::OK;
      if (absl::Now() - silent_since > kHeartbeat) {
        if (!writer->Write(heartbeat)) return grpc::Status::CANCELLED;
        silent_since = absl::Now();
      }
    }
  }
  return grpc::Status::CANCELLED;
}

}  // namespace almost::trainer
