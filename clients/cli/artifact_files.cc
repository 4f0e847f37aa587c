#include "clients/cli/artifact_files.h"

#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <system_error>
#include <thread>

#include "absl/strings/str_cat.h"
#include "almost/orchestrator/v1/orchestrator.grpc.pb.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"

namespace almost::cli {
namespace {

namespace pb = almost::orchestrator::v1;
constexpr int kTries = 5;

}  // namespace

absl::StatusOr<std::vector<pb::Artifact>> ListArtifacts(const Endpoint& orchestrator,
                                                        const std::string& run) {
  std::vector<pb::Artifact> artifacts;
  pb::ListArtifactsRequest request;
  request.set_run(run);
  do {
    ALMOST_ASSIGN_OR_RETURN(
        pb::ListArtifactsResponse page,
        Call<pb::OrchestratorService>(orchestrator, &pb::OrchestratorService::Stub::ListArtifacts, request));
    artifacts.insert(artifacts.end(), page.artifacts().begin(), page.artifacts().end());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return artifacts;
}

absl::Status FetchFile(const Endpoint& orchestrator, const std::string& artifact, const std::string& path,
                       const std::filesystem::path& to) {
  const std::filesystem::path partial = to.string() + ".partial";
  std::error_code error;
  if (to.has_parent_path()) std::filesystem::create_directories(to.parent_path(), error);
  ALMOST_RETURN_IF_ERROR(CheckOutput(to));
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  const auto stub = pb::OrchestratorService::NewStub(orchestrator.channel);
  pb::ReadArtifactRequest request;
  request.set_name(artifact);
  request.set_path(path);
  std::string sha256;
  grpc::Status status;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    if (attempt > 0) std::this_thread::sleep_for(std::chrono::milliseconds(200 << attempt));
    grpc::ClientContext context;
    const auto stream = stub->ReadArtifact(&context, request);
    pb::ReadArtifactResponse piece;
    while (file && stream->Read(&piece)) {
      file.write(piece.data().data(), static_cast<std::streamsize>(piece.data().size()));
      request.set_offset(piece.offset() + static_cast<int64_t>(piece.data().size()));
      sha256 = piece.sha256();
    }
    if (!file) context.TryCancel();  // a full disk, say: the rest is of no use
    status = stream->Finish();
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE) break;
  }
  file.close();
  absl::Status result = ServiceError(orchestrator, status);
  if (!file) result = absl::ResourceExhaustedError(absl::StrCat("cannot write ", partial.string()));
  if (result.ok()) {
    ALMOST_ASSIGN_OR_RETURN(const std::string digest, Sha256File(partial));
    if (digest != sha256) {
      result = absl::DataLossError(
          absl::StrCat(artifact, " ", path, ": received SHA-256 ", digest, ", expected ", sha256));
    }
  }
  if (result.ok()) {
    std::filesystem::rename(partial, to, error);
    if (error)
      result = absl::UnavailableError(absl::StrCat("cannot write ", to.string(), ": ", error.message()));
  }
  if (!result.ok()) std::filesystem::remove(partial, error);
  return result;
}

absl::Status CheckOutput(const std::filesystem::path& file) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(file, error);
  if (std::filesystem::is_directory(status)) {
    return absl::FailedPreconditionError(absl::StrCat(file.string(), ": is a folder"));
  }
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    return absl::FailedPreconditionError(absl::StrCat(file.string(), ": is not a file"));
  }
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
  if (access(folder.c_str(), W_OK) == 0) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat(file.string(), ": cannot write to ", folder.string()));
}

}  // namespace almost::cli
