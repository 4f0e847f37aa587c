#include "services/orchestrator/rpc/orchestrator_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/scratch_folder.h"
#include "common/base/sha256.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "common/storage/fault_env.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "services/orchestrator/core/recipe_check.h"
#include "services/orchestrator/core/scripted_services.h"
#include "services/orchestrator/core/stages.h"

namespace almost::orchestrator {
namespace {

using ::testing::HasSubstr;

class OrchestratorServiceTest : public ::testing::Test {
 protected:
  OrchestratorServiceTest()
      : store_(ArtifactStore::Open(folder_ / "store").value()),
        journal_(Journal::Open(folder_ / "journal.db").value()),
        services_(store_.get()),
        placement_(&services_),
        orchestrator_(Environment(), CheckRecipe),
        service_(&orchestrator_, store_.get()) {
    ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.drain_seconds = 1;
    server_ = Server::Start(options, {{v1::OrchestratorService::service_full_name(), &service_}}, registry_)
                  .value();
    server_->SetReady();
    stub_ = v1::OrchestratorService::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()), grpc::InsecureChannelCredentials()));
  }
  ~OrchestratorServiceTest() override { server_.reset(); }

  RunEnvironment Environment() {
    RunEnvironment environment;
    environment.journal = journal_.get();
    environment.store = store_.get();
    environment.services = &services_;
    environment.placement = &placement_;
    environment.observer = &observer_;
    environment.make_stages = [](const v1::Recipe& recipe) { return MakeStages(recipe, {"reward:1"}); };
    return environment;
  }

  grpc::Status Create(const std::string& id, const v1::Recipe& recipe, v1::Run* run) {
    grpc::ClientContext context;
    v1::CreateRunRequest request;
    request.set_run_id(id);
    *request.mutable_recipe() = recipe;
    return stub_->CreateRun(&context, request, run);
  }
  std::vector<v1::RunEvent> Watch(const std::string& name, int64_t after, grpc::Status* status) {
    grpc::ClientContext context;
    v1::WatchRunRequest request;
    request.set_name(name);
    request.set_after_sequence(after);
    auto reader = stub_->WatchRun(&context, request);
    std::vector<v1::RunEvent> events;
    for (v1::RunEvent event; reader->Read(&event);) events.push_back(event);
    *status = reader->Finish();
    return events;
  }

  const ScratchFolder folder_;
  const std::shared_ptr<ArtifactStore> store_;
  const std::unique_ptr<Journal> journal_;
  ScriptedServices services_;
  ModelPlacement placement_;
  RunObserver observer_;
  prometheus::Registry registry_;
  Orchestrator orchestrator_;
  OrchestratorService service_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::OrchestratorService::Stub> stub_;
};

TEST_F(OrchestratorServiceTest, RunsAndShowsARecipe) {
  v1::Run run;
  ASSERT_TRUE(Create("r", ScriptedRecipe(7), &run).ok());
  EXPECT_EQ(run.name(), "runs/r");
  EXPECT_EQ(run.recipe().demonstration().max_turns(), 2);  // defaults filled in
  ASSERT_TRUE(Create("r", ScriptedRecipe(7), &run).ok());
  EXPECT_EQ(Create("r", ScriptedRecipe(8), &run).error_code(), grpc::StatusCode::ALREADY_EXISTS);

  grpc::Status status;
  const auto events = Watch("runs/r", 0, &status);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_FALSE(events.empty());
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i].sequence(), static_cast<int64_t>(i) + 1);
  EXPECT_EQ(events.back().state(), v1::RUN_STATE_SUCCEEDED);
  const auto later = Watch("runs/r", events[2].sequence(), &status);
  EXPECT_EQ(later.size(), events.size() - 3);

  // Artifacts, two at a time.
  std::vector<v1::Artifact> artifacts;
  v1::ListArtifactsRequest list;
  list.set_run("runs/r");
  list.set_page_size(2);
  do {
    grpc::ClientContext context;
    v1::ListArtifactsResponse page;
    ASSERT_TRUE(stub_->ListArtifacts(&context, list, &page).ok());
    EXPECT_LE(page.artifacts_size(), 2);
    artifacts.insert(artifacts.end(), page.artifacts().begin(), page.artifacts().end());
    list.set_page_token(page.next_page_token());
  } while (!list.page_token().empty());
  ASSERT_EQ(artifacts.size(), 11u);
  EXPECT_EQ(artifacts[0].kind(), "prompts");
  EXPECT_EQ(artifacts[0].name(), "artifacts/" + Sha256(artifacts[0].manifest_json()));

  // A file, whole and from an offset.
  const v1::ArtifactFile& file = artifacts[0].files(0);
  for (const int64_t offset : {int64_t{0}, int64_t{5}, file.size_bytes()}) {
    grpc::ClientContext context;
    v1::ReadArtifactRequest read;
    read.set_name(artifacts[0].name());
    read.set_path(file.path());
    read.set_offset(offset);
    auto reader = stub_->ReadArtifact(&context, read);
    std::string contents;
    for (v1::ReadArtifactResponse piece; reader->Read(&piece);) {
      EXPECT_EQ(piece.offset(), offset + static_cast<int64_t>(contents.size()));
      EXPECT_EQ(piece.sha256(), file.sha256());
      contents += piece.data();
    }
    EXPECT_TRUE(reader->Finish().ok());
    EXPECT_EQ(static_cast<int64_t>(contents.size()), file.size_bytes() - offset);
    if (offset == 0) {
      EXPECT_EQ(Sha256(contents), file.sha256());
    }
  }

  grpc::ClientContext context;
  v1::GetLineageRequest lineage;
  lineage.set_name(artifacts.back().name());
  v1::GetLineageResponse graph;
  ASSERT_TRUE(stub_->GetLineage(&context, lineage, &graph).ok());
  EXPECT_EQ(graph.nodes(0).name(), artifacts.back().name());
}

TEST_F(OrchestratorServiceTest, ABadRecipeNamesItsField) {
  v1::Recipe recipe = ScriptedRecipe(7);
  recipe.mutable_responses()->mutable_configurations(1)->set_model("XXL");
  v1::Run run;
  const grpc::Status status = Create("r", recipe, &run);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("responses.configurations[1].model"));
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  google::rpc::BadRequest bad_request;
  bool found = false;
  for (const auto& detail : details.details()) found = found || detail.UnpackTo(&bad_request);
  ASSERT_TRUE(found);
  EXPECT_EQ(bad_request.field_violations(0).field(), "responses.configurations[1].model");
}

TEST_F(OrchestratorServiceTest, UnknownAndMalformedNamesAreTold) {
  const auto get = [&](const std::string& name) {
    grpc::ClientContext context;
    v1::GetRunRequest request;
    request.set_name(name);
    v1::Run run;
    return stub_->GetRun(&context, request, &run).error_code();
  };
  EXPECT_EQ(get("runs/none"), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(get("none"), grpc::StatusCode::INVALID_ARGUMENT);
  grpc::Status status;
  EXPECT_TRUE(Watch("runs/none", 0, &status).empty());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  grpc::ClientContext context;
  v1::ListRunsRequest list;
  list.set_page_size(1001);
  v1::ListRunsResponse runs;
  EXPECT_EQ(stub_->ListRuns(&context, list, &runs).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace almost::orchestrator
