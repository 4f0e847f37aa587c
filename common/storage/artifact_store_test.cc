#include "common/storage/artifact_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "common/base/scratch_folder.h"
#include "common/base/sha256.h"
#include "common/storage/fault_env.h"

namespace almost {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class ArtifactStoreTest : public ::testing::Test {
 protected:
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

  const ScratchFolder folder_;
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
  EXPECT_THAT(Tree(store->Path(digest)->path),
              ::testing::ElementsAre("config.json", "manifest.json", "nested/x.bin", "provenance.json"));
  EXPECT_THAT(Tree(folder_ / "store" / "tmp"), ::testing::IsEmpty());
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
  Damage(folder_ / "store" / "objects" / object);
  EXPECT_EQ(store->ReadFile(artifact.digest, "prompts.jsonl").status().code(), absl::StatusCode::kDataLoss);
  absl::Status status = store->Path(artifact.digest).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr(object));

  // Publishing again heals it.
  ASSERT_TRUE(store->Publish(Draft()).ok());
  EXPECT_EQ(Env::Posix()->Read(store->Path(artifact.digest)->path / "prompts.jsonl").value(), "{\"id\":0}\n");

  Damage(folder_ / "store" / "objects" / artifact.digest);
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
  const fs::path shown = folder_ / "store" / "runs/r1/prompts/mined";
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
  EXPECT_EQ(Env::Posix()->Read(folder_ / "store" / "runs/r1/summary.json").value(), "{1}");
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
      for (const auto& entry : fs::directory_iterator(folder_ / "store" / "objects")) {
        EXPECT_EQ(Sha256File(entry.path()).value(), entry.path().filename());
      }
      const absl::StatusOr<Artifact> again = reopened->Publish(Draft());
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_TRUE(reopened->Path(again->digest).ok());
    }
  }
}

TEST_F(ArtifactStoreTest, SweepsWhatNeitherIsKeptNorYoungNorHeldNorAnInput) {
  auto store = Open();
  const auto publish = [&](const std::string& content,
                           const std::map<std::string, std::string>& inputs = {}) {
    ArtifactDraft draft;
    draft.kind = "dataset";
    draft.files = {{"data", content}, {"shared", "the same in all"}};
    draft.inputs = inputs;
    return store->Publish(draft)->digest;
  };
  const auto age = [&](const std::string& digest) {
    const Artifact artifact = store->Get(digest).value();
    std::vector<std::string> objects = {digest};
    for (const ArtifactFile& file : artifact.files) objects.push_back(file.sha256);
    for (const std::string& object : objects) {
      fs::last_write_time(folder_ / "store/objects" / object,
                          fs::file_time_type::clock::now() - std::chrono::hours(48));
    }
  };
  const std::string source = publish("source");
  const std::string kept = publish("kept", {{"data", source}, {"model/L", std::string(64, 'a')}});
  const std::string held = publish("held");
  const std::string old = publish("old", {{"data", source}});
  const std::string reused = publish("reused");
  for (const std::string& digest : {source, kept, held, old, reused}) age(digest);
  const std::string young = publish("young");
  LocalFolder hold = Open()->Path(held).value();  // as another process would
  publish("reused");                              // the same again makes it young
  std::ofstream(folder_ / "store/objects" / Sha256("left over")) << "left over";
  fs::last_write_time(folder_ / "store/objects" / Sha256("left over"),
                      fs::file_time_type::clock::now() - std::chrono::hours(48));

  for (const bool dry_run : {true, false}) {
    const std::vector<Garbage> garbage = store->Sweep({kept}, absl::Hours(24), dry_run).value();
    ASSERT_THAT(garbage, ::testing::SizeIs(2));
    EXPECT_EQ(garbage[0].digest, old);
    EXPECT_EQ(garbage[0].kind, "dataset");
    EXPECT_EQ(garbage[1].digest, "");
    EXPECT_EQ(garbage[1].size_bytes, 9);
    EXPECT_EQ(store->List()->size(), dry_run ? 6 : 5);
  }
  EXPECT_EQ(store->Get(old).status().code(), absl::StatusCode::kNotFound);
  for (const std::string& digest : {source, kept, held, reused, young}) {
    EXPECT_TRUE(Open()->Path(digest).ok()) << digest;
  }
  hold = {};
  ASSERT_THAT(store->Sweep({kept}, absl::Hours(24), false).value(), ::testing::SizeIs(1));
  EXPECT_EQ(Open()->Path(held).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Tree(folder_ / "store/tmp"), ::testing::IsEmpty());
}

// Equal seeds give equal bytes: a run publishes again what a sweep has found to be garbage.
TEST_F(ArtifactStoreTest, ASweepLeavesWhatIsPublishedAgainMeanwhile) {
  class PublishingEnv : public FaultEnv {
   public:
    std::function<void()> publish;
    absl::Status Remove(const fs::path& path) override {
      if (publish) std::exchange(publish, nullptr)();
      return FaultEnv::Remove(path);
    }
  };
  PublishingEnv env;
  auto store = Open(&env);
  std::vector<ArtifactDraft> drafts(2, Draft());
  drafts[1].files = {{"prompts.jsonl", "{\"id\":1}\n"}, {"shared", "in both"}};
  drafts[0].files["shared"] = "in both";
  std::vector<std::string> digests;
  for (const ArtifactDraft& draft : drafts) digests.push_back(store->Publish(draft)->digest);
  for (const auto& entry : fs::directory_iterator(folder_ / "store/objects")) {
    fs::last_write_time(entry, fs::file_time_type::clock::now() - std::chrono::hours(48));
  }
  // The sweep takes them in the order of their digests: the second comes back as it removes the first.
  const size_t last = digests[0] < digests[1] ? 1 : 0;
  env.publish = [&] { EXPECT_EQ(Open()->Publish(drafts[last])->digest, digests[last]); };
  ASSERT_TRUE(store->Sweep({}, absl::Hours(24), false).ok());
  EXPECT_EQ(store->Get(digests[1 - last]).status().code(), absl::StatusCode::kNotFound);
  auto reopened = Open();
  const auto path = reopened->Path(digests[last]);
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(reopened->ReadFile(digests[last], "shared").value(), "in both");
}

TEST_F(ArtifactStoreTest, ASweepThatWasCutShortIsFinishedByTheNext) {
  FaultEnv env;
  auto store = Open(&env);
  const std::string kept = store->Publish(Draft())->digest;
  bool failed = true;
  for (int operation = 0; failed; ++operation) {
    ArtifactDraft draft = Draft();
    draft.recipe["seed"] = 8;
    env.Heal();
    const std::string old = store->Publish(draft)->digest;
    env.FailAt(operation, FaultEnv::Fault::kCrashed);
    failed = !store->Sweep({kept}, -absl::Minutes(1), false).ok();
    env.Heal();
    auto reopened = Open();
    // What is still there is whole.
    if (reopened->Get(old).ok()) {
      EXPECT_TRUE(reopened->Path(old).ok());
    }
    EXPECT_TRUE(reopened->Sweep({kept}, -absl::Minutes(1), false).ok());
    EXPECT_THAT(reopened->List().value(), ::testing::ElementsAre(kept));
    EXPECT_TRUE(reopened->Path(kept).ok());
    EXPECT_EQ(Tree(folder_ / "store/objects").size(), 3);
    ASSERT_LT(operation, 100);
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
  EXPECT_EQ(ResolveModelSource(store.get(), root, "L")->path, l);
  EXPECT_EQ(ResolveModelSource(store.get(), root, "alias")->path, l);
  EXPECT_EQ(ResolveModelSource(store.get(), root, l.string())->path, l);
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
  EXPECT_EQ(ResolveModelSource(store.get(), root, "artifacts/" + digest)->path, store->Path(digest)->path);
  EXPECT_EQ(ResolveModelSource(store.get(), root, "artifacts/../L").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ResolveModelSource(nullptr, root, "artifacts/" + digest).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace almost
