#include "common/storage/artifact_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "common/base/sha256.h"
#include "common/storage/fault_env.h"

namespace almost {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class ArtifactStoreTest : public ::testing::Test {
 protected:
  ArtifactStoreTest() : folder_(ScratchFolder()) {}
  ~ArtifactStoreTest() override { fs::remove_all(folder_); }

  std::shared_ptr<ArtifactStore> Open(Env* env = Env::Posix()) {
    return ArtifactStore::Open(folder_ / "store", env).value();
  }
  static ArtifactDraft Draft() {
    ArtifactDraft draft;
    draft.kind = "prompts";
    draft.files = {{"prompts.jsonl", "{\"id\":0}\n"}, {"dropped.jsonl", ""}};
    draft.inputs = {{"model/L", std::string(64, 'a')}};
    draft.recipe = {{"seed", 7}};
    draft.numerics_id = "n1";
    return draft;
  }
  static void Damage(const fs::path& file) {
    fs::permissions(file, fs::perms::owner_all);
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(0);
    const int first = stream.get();
    stream.seekp(0);
    stream.put(static_cast<char>(first ^ 1));
  }
  static std::vector<std::string> Tree(const fs::path& root) {
    std::vector<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(root)) {
      if (entry.is_regular_file()) names.push_back(entry.path().lexically_relative(root).generic_string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  const fs::path folder_;
};

TEST_F(ArtifactStoreTest, EqualContentHasOneDigest) {
  auto store = Open();
  ArtifactDraft draft = Draft();
  const Artifact first = store->Publish(draft).value();
  draft.provenance = {{"time", "later"}};
  EXPECT_EQ(store->Publish(draft)->digest, first.digest);
  EXPECT_EQ(first.digest, Sha256(first.manifest_json));
  EXPECT_THAT(store->List().value(), ::testing::ElementsAre(first.digest));
  draft.recipe["seed"] = 8;
  EXPECT_NE(store->Publish(draft)->digest, first.digest);
}

TEST_F(ArtifactStoreTest, AFolderIsPublishedLikeTheSameContents) {
  auto store = Open();
  fs::create_directories(folder_ / "staged/nested");
  std::ofstream(folder_ / "staged/config.json") << "{}";
  std::ofstream(folder_ / "staged/nested/x.bin") << "x";
  ArtifactDraft from_folder;
  from_folder.kind = "policy";
  from_folder.folder = folder_ / "staged";
  ArtifactDraft from_contents;
  from_contents.kind = "policy";
  from_contents.files = {{"config.json", "{}"}, {"nested/x.bin", "x"}};
  const std::string digest = store->Publish(from_folder)->digest;
  EXPECT_EQ(store->Publish(from_contents)->digest, digest);
  EXPECT_EQ(store->Publish(from_folder)->digest, digest);
  fs::remove_all(folder_ / "staged");
  EXPECT_EQ(store->ReadFile(digest, "nested/x.bin").value(), "x");
  EXPECT_THAT(Tree(store->Path(digest).value()),
              ::testing::ElementsAre("config.json", "manifest.json", "nested/x.bin", "provenance.json"));
  EXPECT_THAT(Tree(store->root() / "tmp"), ::testing::IsEmpty());
}

TEST_F(ArtifactStoreTest, ReadsBackWhatWasPublishedInAnotherProcess) {
  const std::string digest = Open()->Publish(Draft())->digest;
  auto store = Open();
  const Artifact artifact = store->Get(digest).value();
  EXPECT_EQ(artifact.kind, "prompts");
  EXPECT_EQ(artifact.inputs.at("model/L"), std::string(64, 'a'));
  EXPECT_EQ(artifact.recipe.at("seed"), 7);
  EXPECT_EQ(artifact.numerics_id, "n1");
  EXPECT_EQ(artifact.Find("prompts.jsonl")->size_bytes, 9);
  EXPECT_EQ(artifact.Find("nothing"), nullptr);
  EXPECT_EQ(store->ReadFile(digest, "prompts.jsonl").value(), "{\"id\":0}\n");
  EXPECT_EQ(store->ReadFile(digest, "nothing").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->Get(std::string(64, '0')).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->Get("../objects").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ArtifactStoreTest, RefusesDamagedAndTruncatedObjectsByName) {
  auto store = Open();
  const Artifact artifact = store->Publish(Draft()).value();
  const std::string& object = artifact.Find("prompts.jsonl")->sha256;
  Damage(store->root() / "objects" / object);
  EXPECT_EQ(store->ReadFile(artifact.digest, "prompts.jsonl").status().code(), absl::StatusCode::kDataLoss);
  absl::Status status = store->Path(artifact.digest).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr(object));

  // Publishing again heals it.
  ASSERT_TRUE(store->Publish(Draft()).ok());
  EXPECT_EQ(Env::Posix()->Read(store->Path(artifact.digest).value() / "prompts.jsonl").value(),
            "{\"id\":0}\n");

  Damage(store->root() / "objects" / artifact.digest);
  status = store->Get(artifact.digest).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr(artifact.digest));
}

TEST_F(ArtifactStoreTest, RefusesPathsThatAreNotPlain) {
  auto store = Open();
  for (const std::string path : {"", "/etc/x", "../x", "a//b", "a/./b", "a/../b", "manifest.json"}) {
    ArtifactDraft draft = Draft();
    draft.files[path] = "x";
    EXPECT_EQ(store->Publish(draft).status().code(), absl::StatusCode::kInvalidArgument) << path;
  }
  ArtifactDraft empty;
  empty.kind = "empty";
  EXPECT_EQ(store->Publish(empty).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ArtifactStoreTest, LinksAnArtifactIntoItsRun) {
  auto store = Open();
  ArtifactDraft draft = Draft();
  draft.provenance = {{"git_sha", "abc"}};
  const std::string first = store->Publish(draft)->digest;
  ASSERT_TRUE(store->Link("r1", "prompts", "mined", first).ok());
  ASSERT_TRUE(store->Link("r1", "prompts", "mined", first).ok());
  const fs::path shown = store->root() / "runs/r1/prompts/mined";
  EXPECT_THAT(Tree(shown),
              ::testing::ElementsAre("dropped.jsonl", "manifest.json", "prompts.jsonl", "provenance.json"));
  EXPECT_EQ(Sha256File(shown / "manifest.json").value(), first);
  draft.recipe["seed"] = 8;
  const std::string second = store->Publish(draft)->digest;
  ASSERT_TRUE(store->Link("r1", "prompts", "mined", second).ok());
  EXPECT_EQ(Sha256File(shown / "manifest.json").value(), second);
  EXPECT_EQ(store->Link("../r1", "prompts", "mined", first).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(store->WriteRunFile("r1", "summary.json", "{}").ok());
  ASSERT_TRUE(store->WriteRunFile("r1", "summary.json", "{1}").ok());
  EXPECT_EQ(Env::Posix()->Read(store->root() / "runs/r1/summary.json").value(), "{1}");
}

// Every operation of a publication fails once in every way: nothing half-written is ever visible, and the
// next try succeeds.
TEST_F(ArtifactStoreTest, SurvivesAFaultAtEveryOperation) {
  for (const auto fault : {FaultEnv::Fault::kFull, FaultEnv::Fault::kBroken, FaultEnv::Fault::kTorn,
                           FaultEnv::Fault::kCrashed}) {
    bool failed = true;
    for (int operation = 0; failed; ++operation) {
      ASSERT_LT(operation, 100);
      fs::remove_all(folder_ / "store");
      FaultEnv env;
      auto store = Open(&env);
      env.FailAt(operation, fault);
      const absl::StatusOr<Artifact> torn = store->Publish(Draft());
      failed = !torn.ok();
      if (failed) {
        EXPECT_EQ(torn.status().code(), fault == FaultEnv::Fault::kFull ? absl::StatusCode::kResourceExhausted
                                                                        : absl::StatusCode::kUnknown);
      }
      auto reopened = Open();
      const std::vector<std::string> digests = reopened->List().value();
      for (const std::string& digest : digests) {
        EXPECT_TRUE(reopened->Path(digest).ok()) << digest;
      }
      for (const auto& entry : fs::directory_iterator(reopened->root() / "objects")) {
        EXPECT_EQ(Sha256File(entry.path()).value(), entry.path().filename());
      }
      const absl::StatusOr<Artifact> again = reopened->Publish(Draft());
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_TRUE(reopened->Path(again->digest).ok());
    }
  }
}

TEST_F(ArtifactStoreTest, ResolvesModelSourcesBeneathTheRootOnly) {
  auto store = Open();
  const fs::path root = folder_ / "models";
  fs::create_directories(root / "L");
  fs::create_directories(folder_ / "secret");
  fs::create_directory_symlink(folder_ / "secret", root / "out");
  fs::create_directory_symlink(root / "L", root / "alias");
  const fs::path l = fs::canonical(root / "L");
  EXPECT_EQ(ResolveModelSource(store.get(), root, "L").value(), l);
  EXPECT_EQ(ResolveModelSource(store.get(), root, "alias").value(), l);
  EXPECT_EQ(ResolveModelSource(store.get(), root, l.string()).value(), l);
  for (const std::string& source :
       {std::string(), std::string("../secret"), std::string("L/../../secret"), std::string("out"),
        (folder_ / "secret").string(), std::string("L\0", 2)}) {
    EXPECT_EQ(ResolveModelSource(store.get(), root, source).status().code(),
              absl::StatusCode::kInvalidArgument)
        << source;
  }
  EXPECT_EQ(ResolveModelSource(store.get(), root, "%2e%2e/secret").status().code(),
            absl::StatusCode::kNotFound);
  const std::string digest = store->Publish(Draft())->digest;
  EXPECT_EQ(ResolveModelSource(store.get(), root, "artifacts/" + digest).value(),
            store->Path(digest).value());
  EXPECT_EQ(ResolveModelSource(store.get(), root, "artifacts/../L").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ResolveModelSource(nullptr, root, "artifacts/" + digest).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace almost
