#include "services/orchestrator/rpc/orchestrator_service.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "services/orchestrator/core/lineage.h"
#include "services/orchestrator/core/recipe_check.h"

namespace almost::orchestrator {
namespace {

constexpr absl::Duration kHeartbeat = absl::Seconds(5);
// A waiting stream looks at least this often whether its client is still there.
constexpr absl::Duration kLook = absl::Milliseconds(200);
constexpr int64_t kChunkBytes = 1 << 20;

absl::StatusOr<std::string> IdOf(absl::string_view field, absl::string_view collection,
                                 const std::string& name) {
  absl::string_view id = name;
  if (!absl::ConsumePrefix(&id, collection) || id.empty()) {
    return InvalidField(field, absl::StrCat("must be ", collection, "{id}"), name);
  }
  return std::string(id);
}

absl::StatusOr<int64_t> PageSize(int32_t page_size) {
  if (page_size < 0 || page_size > 1000) {
    return InvalidField("page_size", "must be in [0, 1000]", absl::StrCat(page_size));
  }
  return page_size == 0 ? 100 : page_size;
}

// A page token is a number: where the next page begins.
absl::StatusOr<int64_t> PageStart(const std::string& token) {
  int64_t start = 0;
  if (!token.empty() && (!absl::SimpleAtoi(token, &start) || start < 0)) {
    return InvalidField("page_token", "must be a next_page_token", token);
  }
  return start;
}

absl::StatusOr<v1::ListRunsResponse> List(const Orchestrator& orchestrator,
                                          const v1::ListRunsRequest& request) {
  ALMOST_ASSIGN_OR_RETURN(const int64_t size, PageSize(request.page_size()));
  ALMOST_ASSIGN_OR_RETURN(const int64_t before, PageStart(request.page_token()));
  int64_t next = 0;
  ALMOST_ASSIGN_OR_RETURN(std::vector<v1::Run> runs, orchestrator.List(before, size, &next));
  v1::ListRunsResponse response;
  for (v1::Run& run : runs) *response.add_runs() = std::move(run);
  if (next != 0) response.set_next_page_token(absl::StrCat(next));
  return response;
}

absl::StatusOr<v1::ListArtifactsResponse> Artifacts(const Orchestrator& orchestrator, ArtifactStore& store,
                                                    const v1::ListArtifactsRequest& request) {
  ALMOST_ASSIGN_OR_RETURN(const std::string run, IdOf("run", "runs/", request.run()));
  ALMOST_ASSIGN_OR_RETURN(const int64_t size, PageSize(request.page_size()));
  ALMOST_ASSIGN_OR_RETURN(const int64_t start, PageStart(request.page_token()));
  ALMOST_ASSIGN_OR_RETURN(const auto all, orchestrator.Artifacts(run));
  const int64_t end = std::min(start + size, static_cast<int64_t>(all.size()));
  v1::ListArtifactsResponse response;
  for (int64_t i = start; i < end; ++i) {
    const Orchestrator::RunArtifact& each = all[static_cast<size_t>(i)];
    ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, store.Get(each.digest));
    v1::Artifact& shown = *response.add_artifacts();
    shown.set_name(absl::StrCat("artifacts/", artifact.digest));
    shown.set_kind(artifact.kind);
    shown.set_stage(each.stage);
    shown.set_manifest_json(artifact.manifest_json);
    for (const ArtifactFile& file : artifact.files) {
      v1::ArtifactFile& shown_file = *shown.add_files();
      shown_file.set_path(file.path);
      shown_file.set_sha256(file.sha256);
      shown_file.set_size_bytes(file.size_bytes);
    }
  }
  if (end < static_cast<int64_t>(all.size())) response.set_next_page_token(absl::StrCat(end));
  return response;
}

// What may be sent: a file on disk, or contents.
struct Readable {
  std::filesystem::path path;  // empty: contents
  LocalFolder folder;          // in which it is
  std::string contents;
  int64_t size_bytes = 0;
  std::string sha256;
};

absl::StatusOr<Readable> Locate(const Orchestrator& orchestrator, ArtifactStore& store,
                                const v1::ReadArtifactRequest& request) {
  if (absl::StartsWith(request.name(), "runs/")) {
    ALMOST_ASSIGN_OR_RETURN(const std::string run, IdOf("name", "runs/", request.name()));
    ALMOST_RETURN_IF_ERROR(orchestrator.Get(run).status());
    const bool for_people = request.path() == "report.html" || request.path() == "summary.json";
    absl::StatusOr<std::string> contents = absl::NotFoundError("");
    if (for_people) contents = store.ReadRunFile(run, request.path());
    if (absl::IsNotFound(contents.status())) {
      return absl::NotFoundError(absl::StrCat(request.name(), " has no file \"", request.path(), "\""));
    }
    ALMOST_RETURN_IF_ERROR(contents.status());
    Readable readable;
    readable.size_bytes = static_cast<int64_t>(contents->size());
    readable.sha256 = Sha256(*contents);
    readable.contents = *std::move(contents);
    return readable;
  }
  ALMOST_ASSIGN_OR_RETURN(const std::string digest, IdOf("name", "artifacts/", request.name()));
  ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, store.Get(digest));
  const ArtifactFile* const file = artifact.Find(request.path());
  if (file == nullptr) {
    return absl::NotFoundError(absl::StrCat(request.name(), " has no file \"", request.path(), "\""));
  }
  ALMOST_ASSIGN_OR_RETURN(LocalFolder folder, store.Path(digest));
  return Readable{folder.path / file->path, std::move(folder), "", file->size_bytes, file->sha256};
}

absl::Status Read(const Orchestrator& orchestrator, ArtifactStore& store,
                  const v1::ReadArtifactRequest& request, const grpc::ServerContext& context,
                  grpc::ServerWriter<v1::ReadArtifactResponse>& writer) {
  ALMOST_ASSIGN_OR_RETURN(const Readable file, Locate(orchestrator, store, request));
  if (request.offset() < 0 || request.offset() > file.size_bytes) {
    return InvalidField("offset", absl::StrCat("must be in [0, ", file.size_bytes, "]"),
                        absl::StrCat(request.offset()));
  }
  std::ifstream stream(file.path, std::ios::binary);
  stream.seekg(request.offset());
  v1::ReadArtifactResponse response;
  response.set_size_bytes(file.size_bytes);
  response.set_sha256(file.sha256);
  int64_t offset = request.offset();
  do {
    std::string& data = *response.mutable_data();
    data.resize(static_cast<size_t>(std::min(kChunkBytes, file.size_bytes - offset)));
    if (file.path.empty()) {
      data = file.contents.substr(static_cast<size_t>(offset), data.size());
    } else if (!stream.read(data.data(), static_cast<std::streamsize>(data.size()))) {
      return absl::DataLossError(absl::StrCat(request.name(), "/", request.path(), " could not be read"));
    }
    response.set_offset(offset);
    if (context.IsCancelled() || !writer.Write(response)) return absl::CancelledError("the client has gone");
    offset += static_cast<int64_t>(data.size());
  } while (offset < file.size_bytes);
  return absl::OkStatus();
}

absl::Status Watch(const Orchestrator& orchestrator, const v1::WatchRunRequest& request,
                   const grpc::ServerContext& context, grpc::ServerWriter<v1::RunEvent>& writer) {
  ALMOST_ASSIGN_OR_RETURN(const std::string id, IdOf("name", "runs/", request.name()));
  int64_t sequence = request.after_sequence();
  absl::Time last_sent = absl::Now();
  for (bool ended = false; !ended;) {
    ALMOST_ASSIGN_OR_RETURN(const std::vector<v1::RunEvent> events,
                            orchestrator.Events(id, sequence, kLook, &ended));
    for (const v1::RunEvent& event : events) {
      sequence = event.sequence();
      if (!writer.Write(event)) return absl::CancelledError("the client has gone");
    }
    if (!events.empty()) last_sent = absl::Now();
    if (context.IsCancelled()) return absl::CancelledError("the client has gone");
    if (!ended && absl::Now() - last_sent >= kHeartbeat) {
      v1::RunEvent heartbeat;
      heartbeat.set_sequence(sequence);
      if (!writer.Write(heartbeat)) return absl::CancelledError("the client has gone");
      last_sent = absl::Now();
    }
  }
  return absl::OkStatus();
}

}  // namespace

grpc::Status OrchestratorService::CreateRun(grpc::ServerContext* context, const v1::CreateRunRequest* request,
                                            v1::Run* response) {
  v1::CreateRunRequest whole = *request;
  *whole.mutable_recipe() = WithDefaults(request->recipe());
  return Answer(orchestrator_->Create(whole, [context] { return context->IsCancelled(); }), response);
}

grpc::Status OrchestratorService::GetRun(grpc::ServerContext*, const v1::GetRunRequest* request,
                                         v1::Run* response) {
  const auto id = IdOf("name", "runs/", request->name());
  return id.ok() ? Answer(orchestrator_->Get(*id), response) : ToGrpc(id.status());
}

grpc::Status OrchestratorService::ListRuns(grpc::ServerContext*, const v1::ListRunsRequest* request,
                                           v1::ListRunsResponse* response) {
  return Answer(List(*orchestrator_, *request), response);
}

grpc::Status OrchestratorService::CancelRun(grpc::ServerContext*, const v1::CancelRunRequest* request,
                                            v1::Run* response) {
  const auto id = IdOf("name", "runs/", request->name());
  return id.ok() ? Answer(orchestrator_->Cancel(*id), response) : ToGrpc(id.status());
}

grpc::Status OrchestratorService::PauseRun(grpc::ServerContext*, const v1::PauseRunRequest* request,
                                           v1::Run* response) {
  const auto id = IdOf("name", "runs/", request->name());
  return id.ok() ? Answer(orchestrator_->Pause(*id), response) : ToGrpc(id.status());
}

grpc::Status OrchestratorService::ResumeRun(grpc::ServerContext*, const v1::ResumeRunRequest* request,
                                            v1::Run* response) {
  const auto id = IdOf("name", "runs/", request->name());
  return id.ok() ? Answer(orchestrator_->Resume(*id), response) : ToGrpc(id.status());
}

grpc::Status OrchestratorService::DeleteRun(grpc::ServerContext*, const v1::DeleteRunRequest* request,
                                            v1::DeleteRunResponse*) {
  const auto id = IdOf("name", "runs/", request->name());
  return ToGrpc(id.ok() ? orchestrator_->Delete(*id) : id.status());
}

grpc::Status OrchestratorService::WatchRun(grpc::ServerContext* context, const v1::WatchRunRequest* request,
                                           grpc::ServerWriter<v1::RunEvent>* writer) {
  return ToGrpc(Watch(*orchestrator_, *request, *context, *writer));
}

grpc::Status OrchestratorService::ListArtifacts(grpc::ServerContext*, const v1::ListArtifactsRequest* request,
                                                v1::ListArtifactsResponse* response) {
  return Answer(Artifacts(*orchestrator_, *store_, *request), response);
}

grpc::Status OrchestratorService::ReadArtifact(grpc::ServerContext* context,
                                               const v1::ReadArtifactRequest* request,
                                               grpc::ServerWriter<v1::ReadArtifactResponse>* writer) {
  return ToGrpc(Read(*orchestrator_, *store_, *request, *context, *writer));
}

grpc::Status OrchestratorService::GetLineage(grpc::ServerContext*, const v1::GetLineageRequest* request,
                                             v1::GetLineageResponse* response) {
  const auto size = PageSize(request->page_size());
  const auto start = PageStart(request->page_token());
  for (const absl::Status& status : {size.status(), start.status()}) {
    if (!status.ok()) return ToGrpc(status);
  }
  return Answer(Lineage(*store_, request->name(), request->descendants(), *start, *size), response);
}

grpc::Status OrchestratorService::CollectGarbage(grpc::ServerContext*,
                                                 const v1::CollectGarbageRequest* request,
                                                 v1::CollectGarbageResponse* response) {
  return Answer(orchestrator_->CollectGarbage(*request), response);
}

}  // namespace almost::orchestrator
