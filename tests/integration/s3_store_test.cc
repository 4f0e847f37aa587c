// S3Store against a real server, which s3_test.py starts: endpoint and credentials are in the usual AWS_*
// variables, and there is a bucket "bucket". Every test has a prefix of its own.

#include "common/storage/s3_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "common/base/random.h"
#include "common/base/scratch_folder.h"
#include "common/base/sha256.h"
#include "common/storage/fault_env.h"

namespace almost {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class S3StoreTest : public ::testing::Test {
 protected:
  S3StoreTest() {
    const auto variable = [](const char* name) {
      const char* const value = std::getenv(name);
      return std::string(value == nullptr ? "" : value);
    };
    options_.s3.bucket = "bucket";
    options_.s3.endpoint = variable("AWS_ENDPOINT_URL");
    options_.s3.access_key_id = variable("AWS_ACCESS_KEY_ID");
    options_.s3.secret_access_key = variable("AWS_SECRET_ACCESS_KEY");
    options_.s3.part_bytes = 5 << 20;
    options_.prefix = "a prefix/" + UniqueName() + "/";
  }

  // As a process on another machine: with a cache of its own, so named.
  std::shared_ptr<S3Store> Open(const std::string& cache, int64_t cache_bytes = int64_t{1} << 30) {
    S3StoreOptions options = options_;
    options.cache = folder_ / cache;
    options.cache_bytes = cache_bytes;
    absl::StatusOr<std::shared_ptr<S3Store>> store = S3Store::Open(options);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.value();
  }
  static ArtifactDraft Draft(const std::string& kind, std::map<std::string, std::string> files) {
    ArtifactDraft draft;
    draft.kind = kind;
    draft.files = std::move(files);
    draft.recipe = {{"seed", 7}};
    return draft;
  }
  static std::string RandomBytes(size_t size, uint64_t seed) {
    std::string bytes(size, '\0');
    RandomStream random(seed);
    for (char& byte : bytes) byte = static_cast<char>(random.Below(256));
    return bytes;
  }
  static std::string Contents(const fs::path& file) { return Env::Posix()->Read(file).value(); }

  const ScratchFolder folder_;
  S3StoreOptions options_;
};

TEST_F(S3StoreTest, KeepsWhatAFolderKeepsUnderTheSameDigest) {
  ArtifactDraft draft =
      Draft("prompts", {{"prompts.jsonl", "{\"id\":0}\n"}, {"nested/b c.txt", "x"}, {"empty", ""}});
  draft.inputs = {{"model/L", std::string(64, 'a')}};
  const std::string digest = ArtifactStore::Open(folder_ / "folder").value()->Publish(draft)->digest;
  EXPECT_EQ(Open("a")->Publish(draft)->digest, digest);
  EXPECT_EQ(Open("b")->Publish(draft)->digest, digest);

  auto store = Open("c");
  EXPECT_THAT(store->List().value(), ElementsAre(digest));
  EXPECT_EQ(store->Get(digest)->inputs.at("model/L"), std::string(64, 'a'));
  EXPECT_EQ(store->ReadFile(digest, "prompts.jsonl").value(), "{\"id\":0}\n");
  EXPECT_EQ(store->ReadFile(digest, "nothing").status().code(), absl::StatusCode::kNotFound);
  const LocalFolder folder = store->Path(digest).value();
  EXPECT_EQ(Contents(folder.path / "nested/b c.txt"), "x");
  EXPECT_EQ(Contents(folder.path / "empty"), "");
  EXPECT_EQ(store->Get(std::string(64, '0')).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->Get("../objects").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(S3StoreTest, LargeFilesTravelInParts) {
  const std::string weights = RandomBytes((12 << 20) + 3, 1);
  fs::create_directories(folder_ / "model");
  std::ofstream(folder_ / "model/model.safetensors", std::ios::binary) << weights;
  ArtifactDraft draft;
  draft.kind = "model";
  draft.folder = folder_ / "model";
  const std::string digest = Open("a")->Publish(draft)->digest;
  auto store = Open("b");
  const LocalFolder folder = store->Path(digest).value();
  EXPECT_EQ(Sha256File(folder.path / "model.safetensors").value(), Sha256(weights));
  EXPECT_TRUE(fs::is_empty(folder_ / "b/tmp"));
}

// Of a size that S3 takes in parts only. It needs 16 GB of disk and a minute, so it has to be asked for:
// --gtest_also_run_disabled_tests --gtest_filter=*FiveGigabytes
TEST_F(S3StoreTest, DISABLED_AModelOfMoreThanFiveGigabytes) {
  options_.s3.part_bytes = S3Options().part_bytes;
  const fs::path model = folder_ / "model";
  fs::create_directories(model);
  std::ofstream(model / "model.safetensors", std::ios::binary) << RandomBytes(1 << 20, 3) << std::flush;
  const int64_t size = (int64_t{5} << 30) + (100 << 20) + 7;
  fs::resize_file(model / "model.safetensors", size);
  ArtifactDraft draft;
  draft.kind = "model";
  draft.folder = model;
  const std::string digest = Open("writer", size * 2)->Publish(draft)->digest;
  fs::remove_all(folder_ / "writer");
  const auto copy = Open("reader", size * 2)->Path(digest);
  ASSERT_TRUE(copy.ok()) << copy.status();
  // Its hash has been checked on the way.
  EXPECT_EQ(static_cast<int64_t>(fs::file_size(copy->path / "model.safetensors")), size);
}

TEST_F(S3StoreTest, RefusesWhatIsDamagedInS3ByName) {
  const Artifact artifact = Open("a")->Publish(Draft("prompts", {{"prompts.jsonl", "content"}})).value();
  const std::string object = artifact.Find("prompts.jsonl")->sha256;
  const auto s3 = S3Client::Create(options_.s3).value();
  ASSERT_TRUE(s3->Put(options_.prefix + "objects/" + object, "Content").ok());
  for (const absl::Status& status : {Open("b")->Path(artifact.digest).status(),
                                     Open("b")->ReadFile(artifact.digest, "prompts.jsonl").status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr(object));
  }
  ASSERT_TRUE(s3->Put(options_.prefix + "objects/" + artifact.digest, "{}").ok());
  EXPECT_EQ(Open("c")->Get(artifact.digest).status().code(), absl::StatusCode::kDataLoss);
  // Who has a copy still has it, and a damaged copy is fetched again.
  EXPECT_EQ(Open("a")->ReadFile(artifact.digest, "prompts.jsonl").value(), "content");
}

TEST_F(S3StoreTest, ADamagedCopyIsFetchedAgain) {
  const Artifact artifact = Open("a")->Publish(Draft("prompts", {{"prompts.jsonl", "content"}})).value();
  const fs::path object = folder_ / "a/objects" / artifact.Find("prompts.jsonl")->sha256;
  fs::permissions(object, fs::perms::owner_all);
  std::ofstream(object) << "Content";
  auto store = Open("a");
  EXPECT_EQ(Contents(store->Path(artifact.digest)->path / "prompts.jsonl"), "content");
  EXPECT_EQ(store->ReadFile(artifact.digest, "prompts.jsonl").value(), "content");
}

TEST_F(S3StoreTest, TheCacheStaysBoundedAndKeepsWhatIsHeld) {
  constexpr int64_t kSize = 1 << 20;
  std::vector<std::string> digests;
  for (uint64_t i = 0; i < 4; ++i) {
    digests.push_back(
        Open("publisher")->Publish(Draft("model", {{"weights", RandomBytes(kSize, i)}}))->digest);
  }
  auto store = Open("cache", 2 * kSize + kSize / 2);
  const auto has = [&](size_t i) { return fs::exists(folder_ / "cache/artifacts" / digests[i]); };
  const auto size = [&] {
    int64_t bytes = 0;
    for (const auto& entry : fs::directory_iterator(folder_ / "cache/objects")) {
      bytes += static_cast<int64_t>(entry.file_size());
    }
    return bytes;
  };
  LocalFolder held = store->Path(digests[0]).value();
  ASSERT_TRUE(store->Path(digests[1]).ok());
  ASSERT_TRUE(store->Path(digests[2]).ok());
  EXPECT_TRUE(has(0) && !has(1) && has(2)) << "the first is held, the second was used before the third";
  EXPECT_LE(size(), 2 * kSize + kSize / 2);
  EXPECT_EQ(Sha256File(held.path / "weights").value(), store->Get(digests[0])->files[0].sha256);

  held = {};
  ASSERT_TRUE(store->Path(digests[3]).ok());
  EXPECT_TRUE(!has(0) && has(2) && has(3));
  EXPECT_EQ(Contents(store->Path(digests[1])->path / "weights"), RandomBytes(kSize, 1)) << "fetched again";
  EXPECT_EQ(store->ReadFile(digests[0], "weights").value(), RandomBytes(kSize, 0)) << "without a folder";
  EXPECT_LE(size(), 2 * kSize + kSize / 2);
}

TEST_F(S3StoreTest, SweepsWhatNothingRefersTo) {
  auto store = Open("a");
  const std::string source =
      store->Publish(Draft("prompts", {{"p", "source"}, {"shared", "shared"}}))->digest;
  ArtifactDraft draft = Draft("responses", {{"r", "kept"}});
  draft.inputs = {{"prompts", source}};
  const std::string kept = store->Publish(draft)->digest;
  const std::string old = store->Publish(Draft("responses", {{"r", "old"}, {"shared", "shared"}}))->digest;
  ASSERT_TRUE(store->Link("r", "responses", "responses", kept).ok());
  ASSERT_TRUE(store->WriteRunFile("r", "report.html", "<html>").ok());

  EXPECT_THAT(store->Sweep({kept}, absl::Hours(1), /*dry_run=*/false).value(), ::testing::IsEmpty());
  const std::vector<Garbage> garbage = store->Sweep({kept}, -absl::Minutes(1), /*dry_run=*/true).value();
  ASSERT_THAT(garbage, ::testing::SizeIs(1));
  EXPECT_EQ(garbage[0].digest, old);
  EXPECT_THAT(store->List().value(), ::testing::UnorderedElementsAre(source, kept, old));
  EXPECT_THAT(store->Sweep({kept}, -absl::Minutes(1), /*dry_run=*/false).value(), ::testing::SizeIs(1));
  auto other = Open("b");
  EXPECT_THAT(other->List().value(), ::testing::UnorderedElementsAre(source, kept));
  EXPECT_EQ(other->Get(old).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(other->Path(source).ok());
  EXPECT_TRUE(other->Path(kept).ok());
  EXPECT_EQ(other->ReadRunFile("r", "report.html").value(), "<html>");
  EXPECT_EQ(other->ReadRunFile("r", "responses/responses/manifest.json").value(),
            other->Get(kept)->manifest_json);
  ASSERT_TRUE(other->RemoveRun("r").ok());
  EXPECT_EQ(other->ReadRunFile("r", "report.html").status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(other->Get(kept).ok());
  // Published again, it is whole again, though a copy of it was there all the time.
  ASSERT_EQ(store->Publish(Draft("responses", {{"r", "old"}, {"shared", "shared"}}))->digest, old);
  EXPECT_TRUE(Open("c")->Path(old).ok());
}

TEST_F(S3StoreTest, WhatIsWrongShowsAtTheStart) {
  S3StoreOptions options = options_;
  options.cache = folder_ / "a";
  options.s3.secret_access_key = "another";
  EXPECT_EQ(S3Store::Open(options).status().code(), absl::StatusCode::kPermissionDenied);
  options.s3 = options_.s3;
  options.s3.bucket = "no-such-bucket";
  EXPECT_EQ(S3Store::Open(options).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(S3StoreTest, ListsMoreThanOnePage) {
  const auto s3 = S3Client::Create(options_.s3).value();
  std::vector<std::string> keys;
  for (int i = 0; i < 1003; ++i) {
    keys.push_back(options_.prefix + "many/" + std::to_string(10'000 + i));
    ASSERT_TRUE(s3->Put(keys.back(), "x").ok());
  }
  const std::vector<S3Object> objects = s3->List(options_.prefix + "many/").value();
  ASSERT_EQ(objects.size(), keys.size());
  for (size_t i = 0; i < keys.size(); ++i) EXPECT_EQ(objects[i].key, keys[i]);
}

}  // namespace
}  // namespace almost
