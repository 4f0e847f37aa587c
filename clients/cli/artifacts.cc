// almost artifacts, lineage, report: what runs have made, and from what.

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "almost/orchestrator/v1/orchestrator.grpc.pb.h"
#include "clients/cli/artifact_files.h"
#include "clients/cli/table.h"
#include "clients/cli/verbs.h"
#include "common/base/status_macros.h"

namespace almost::cli {
namespace {

namespace fs = std::filesystem;
namespace pb = almost::orchestrator::v1;

absl::Status List(const Cli& cli, const std::string& run) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  ALMOST_ASSIGN_OR_RETURN(const std::vector<pb::Artifact> artifacts,
                          ListArtifacts(endpoint, ResourceName("runs", run)));
  if (cli.json) {
    pb::ListArtifactsResponse all;
    for (const pb::Artifact& artifact : artifacts) *all.add_artifacts() = artifact;
    PrintJson(stdout, all);
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {{"STAGE", "KIND", "FILE", "BYTES", "ARTIFACT"}};
  for (const pb::Artifact& artifact : artifacts) {
    for (const pb::ArtifactFile& file : artifact.files()) {
      rows.push_back(
          {artifact.stage(), artifact.kind(), file.path(), absl::StrCat(file.size_bytes()), artifact.name()});
    }
  }
  PrintTable(stdout, rows);
  return absl::OkStatus();
}

// One of `run`'s artifacts by its stage and kind, S/K, or by one word where that is enough: the stage, the
// kind, or a beginning of the digest. Of a stage that made several, its name alone means the one of its own
// kind.
absl::StatusOr<pb::Artifact> Find(const Endpoint& endpoint, const std::string& run,
                                  const std::string& which) {
  ALMOST_ASSIGN_OR_RETURN(const std::vector<pb::Artifact> artifacts,
                          ListArtifacts(endpoint, ResourceName("runs", run)));
  std::vector<std::string> names;
  const pb::Artifact* found = nullptr;
  int matches = 0;
  for (const pb::Artifact& artifact : artifacts) {
    names.push_back(absl::StrCat(artifact.stage(), "/", artifact.kind()));
    if (which == names.back() || (which == artifact.kind() && which == artifact.stage())) return artifact;
    if (which == artifact.kind() || which == artifact.stage() ||
        absl::StartsWith(artifact.name(), ResourceName("artifacts", which))) {
      found = &artifact;
      ++matches;
    }
  }
  if (matches == 1) return *found;
  return absl::NotFoundError(absl::StrCat(matches == 0 ? "no artifact " : "more than one artifact ", which,
                                          " in run ", run, "; it has ", absl::StrJoin(names, ", ")));
}

absl::Status Get(const Cli& cli, const std::string& run, const std::string& which, const std::string& to) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  ALMOST_ASSIGN_OR_RETURN(const pb::Artifact artifact, Find(endpoint, run, which));
  const fs::path folder =
      to.empty() ? absl::StrCat(absl::StripPrefix(run, "runs/"), "-", artifact.kind()) : to;
  for (const pb::ArtifactFile& file : artifact.files()) {
    ALMOST_RETURN_IF_ERROR(FetchFile(endpoint, artifact.name(), file.path(), folder / file.path()));
    absl::PrintF("%s\n", (folder / file.path()).string());
  }
  return absl::OkStatus();
}

absl::Status Lineage(const Cli& cli, const std::string& name, bool descendants) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  pb::GetLineageRequest request;
  request.set_name(ResourceName("artifacts", name));
  request.set_descendants(descendants);
  request.set_page_size(1000);
  pb::GetLineageResponse lineage;
  do {
    ALMOST_ASSIGN_OR_RETURN(
        const pb::GetLineageResponse page,
        Call<pb::OrchestratorService>(endpoint, &pb::OrchestratorService::Stub::GetLineage, request));
    lineage.mutable_nodes()->MergeFrom(page.nodes());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  if (cli.json) {
    PrintJson(stdout, lineage);
    return absl::OkStatus();
  }
  for (const pb::LineageNode& node : lineage.nodes()) {
    absl::PrintF("%s  %s  %s\n", node.name(), node.kind(), node.stage());
    for (int i = 0; i < node.inputs_size(); ++i) {
      absl::PrintF("  %s: %s\n", i < node.input_roles_size() ? node.input_roles(i) : "from", node.inputs(i));
    }
    if (node.num_lines() > 0) {
      absl::PrintF("  %d lines: %s/0 … %s/%d\n", node.num_lines(), node.name(), node.name(),
                   node.num_lines() - 1);
    }
    if (!node.json().empty()) absl::PrintF("  %s\n", node.json());
    if (!node.sampling_json().empty()) absl::PrintF("  sampled as %s\n", node.sampling_json());
  }
  return absl::OkStatus();
}

absl::Status CollectGarbage(const Cli& cli, bool remove, double min_age_hours, double candidates_days,
                            const std::vector<std::string>& keep) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  pb::CollectGarbageRequest request;
  request.set_remove(remove);
  request.mutable_min_age()->set_seconds(static_cast<int64_t>(min_age_hours * 3600));
  if (candidates_days >= 0) {
    request.mutable_candidates_age()->set_seconds(static_cast<int64_t>(candidates_days * 86400));
  }
  for (const std::string& each : keep) request.add_keep(ResourceName("artifacts", each));
  ALMOST_ASSIGN_OR_RETURN(
      const pb::CollectGarbageResponse response,
      Call<pb::OrchestratorService>(endpoint, &pb::OrchestratorService::Stub::CollectGarbage, request,
                                    absl::Hours(1)));
  if (cli.json) {
    PrintJson(stdout, response);
    return absl::OkStatus();
  }
  int64_t size_bytes = 0;
  std::vector<std::vector<std::string>> rows = {{"KIND", "BYTES", "ARTIFACT"}};
  for (const pb::Garbage& each : response.garbage()) {
    size_bytes += each.size_bytes();
    rows.push_back(
        {each.name().empty() ? "(left over)" : each.kind(), absl::StrCat(each.size_bytes()), each.name()});
  }
  if (rows.size() > 1) PrintTable(stdout, rows);
  absl::PrintF("%d bytes %s.%s\n", size_bytes, remove ? "removed" : "would be removed",
               remove || size_bytes == 0 ? "" : " --remove does it.");
  return absl::OkStatus();
}

absl::Status Report(const Cli& cli, const std::string& run, std::string to) {
  ALMOST_ASSIGN_OR_RETURN(const Endpoint endpoint, FindEndpoint(cli, "orchestrator"));
  if (to.empty()) to = absl::StrCat(absl::StripPrefix(run, "runs/"), "-report.html");
  ALMOST_RETURN_IF_ERROR(FetchFile(endpoint, ResourceName("runs", run), "report.html", to));
  absl::PrintF("%s\n", fs::absolute(to).string());
  return absl::OkStatus();
}

}  // namespace

void AddArtifacts(CLI::App& app, Cli& cli) {
  struct Flags {
    std::string run, which, to;
    bool descendants = false;
    bool remove = false;
    double min_age_hours = 24;
    double candidates_days = -1;  // below 0: for ever
    std::vector<std::string> keep;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* artifacts = app.add_subcommand("artifacts", "What runs have made: ls, get, gc");
  artifacts->require_subcommand(1);

  CLI::App* list = artifacts->add_subcommand("ls", "A run's artifacts with their files");
  list->add_option("RUN", flags->run, "The run's id")->required();
  list->callback([&cli, flags] { cli.action = [&cli, flags] { return List(cli, flags->run); }; });

  CLI::App* get = artifacts->add_subcommand("get", "Copies an artifact's files into a folder");
  get->add_option("RUN", flags->run, "The run's id")->required();
  get->add_option("ARTIFACT", flags->which,
                  "STAGE/KIND, or one of them or a beginning of the digest where that is enough")
      ->required();
  get->add_option("--to", flags->to, "The folder; by default RUN-KIND here");
  get->callback([&cli, flags] {
    cli.action = [&cli, flags] { return Get(cli, flags->run, flags->which, flags->to); };
  });

  CLI::App* gc = artifacts->add_subcommand("gc", "Names what no run, job or model refers to any more");
  gc->add_flag("--remove", flags->remove, "Removes it");
  gc->add_option("--min_age_hours", flags->min_age_hours, "Younger artifacts stay")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  gc->add_option("--candidates_days", flags->candidates_days,
                 "Candidates that were not chosen go when their run ended longer ago; by default never")
      ->check(CLI::NonNegativeNumber);
  gc->add_option("--keep", flags->keep, "Digests that stay all the same, such as of models served elsewhere");
  gc->callback([&cli, flags] {
    cli.action = [&cli, flags] {
      return CollectGarbage(cli, flags->remove, flags->min_age_hours, flags->candidates_days, flags->keep);
    };
  });

  CLI::App* lineage = app.add_subcommand("lineage", "What an artifact or a line of one came from");
  lineage->add_option("ID", flags->which, "artifacts/DIGEST, or artifacts/DIGEST/LINE")->required();
  lineage->add_flag("--descendants", flags->descendants, "What came of it instead");
  lineage->callback([&cli, flags] {
    cli.action = [&cli, flags] { return Lineage(cli, flags->which, flags->descendants); };
  });

  CLI::App* report = app.add_subcommand("report", "Fetches a run's report, one HTML file");
  report->add_option("RUN", flags->run, "The run's id")->required();
  report->add_option("--to", flags->to, "The file; by default RUN-report.html here");
  report->callback(
      [&cli, flags] { cli.action = [&cli, flags] { return Report(cli, flags->run, flags->to); }; });
}

}  // namespace almost::cli
