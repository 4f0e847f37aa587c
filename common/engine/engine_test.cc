#include "common/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <future>
#include <thread>

#include "common/base/random.h"
#include "common/base/scratch_folder.h"
#include "common/engine/cpu_model.h"
#include "common/engine/step_runner.h"
#include "common/kernels/thread_team.h"

namespace almost::engine {
namespace {

std::shared_ptr<const ModelFolder> SmallModel() {
  static const auto* model = new std::shared_ptr<const ModelFolder>(
      *ModelFolder::Open(std::string(getenv("ALMOST_SOURCE_DIR")) + "/common/world/models/S"));
  return *model;
}

std::unique_ptr<Engine> MakeEngine(EngineOptions options = {}) {
  auto engine = Engine::Create(SmallModel(), options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return std::move(*engine);
}

std::vector<int32_t> Tokens(uint64_t seed, int count) {
  RandomStream stream(seed);
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(stream.Between(1, 895)));
  return tokens;
}

TEST(CacheBlocks, HoldAContextUnlessToldOtherwise) {
  ModelConfig config = SmallModel()->config();
  constexpr int64_t kMiB = int64_t{1} << 20;
  config.max_positions = 2'048;
  EXPECT_EQ(*NumCacheBlocks(0, kMiB / 2, config), 1'024);        // 512 MiB
  EXPECT_EQ(*NumCacheBlocks(0, 26 * kMiB, config), 2'048 / 16);  // as LLaMA 30B's
  config.max_positions = 131'072;
  EXPECT_EQ(*NumCacheBlocks(0, 2 * kMiB, config), 8'192 / 16);
  EXPECT_EQ(*NumCacheBlocks(100 * kMiB, 2 * kMiB, config), 50);
  EXPECT_EQ(NumCacheBlocks(kMiB, 2 * kMiB, config).status().code(), absl::StatusCode::kInvalidArgument);
}

// Mixed requests: lengths 1 to 120, greedy and sampled, truncated in every way, some behind a common prefix.
std::vector<GenerationRequest> MixedRequests() {
  const std::vector<int32_t> prefix = Tokens(99, 50);
  std::vector<GenerationRequest> requests(64);
  for (int i = 0; i < 64; ++i) {
    GenerationRequest& r = requests[i];
    if (i % 3 == 0) r.prompt_ids = prefix;
    const std::vector<int32_t> own = Tokens(i, 1 + (i * 37) % 70);
    r.prompt_ids.insert(r.prompt_ids.end(), own.begin(), own.end());
    r.sampling.temperature = i % 5 == 0 ? 0.0 : 0.5 + 0.1 * (i % 7);
    r.sampling.top_p = i % 4 == 1 ? 0.9 : 1.0;
    r.sampling.top_k = i % 4 == 2 ? 20 : 0;
    r.sampling.min_p = i % 4 == 3 ? 0.05 : 0.0;
    r.sampling.max_new_tokens = 1 + i % 40;
    r.sampling.seed = 1000 + i;
    r.sampling.logprobs = true;
    r.num_candidates = 1 + i % 3;
  }
  return requests;
}

using Results = std::vector<absl::StatusOr<std::vector<Candidate>>>;

void ExpectSameBits(const Results& a, const Results& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(a[i].ok() && b[i].ok()) << i << " " << a[i].status() << " " << b[i].status();
    ASSERT_EQ(a[i]->size(), b[i]->size());
    for (size_t c = 0; c < a[i]->size(); ++c) {
      const Candidate &x = (*a[i])[c], &y = (*b[i])[c];
      EXPECT_EQ(x.index, y.index);
      EXPECT_EQ(x.token_ids, y.token_ids) << "request " << i << " candidate " << c;
      ASSERT_EQ(x.logprobs.size(), y.logprobs.size());
      for (size_t t = 0; t < x.logprobs.size(); ++t) {
        EXPECT_EQ(std::bit_cast<uint32_t>(x.logprobs[t].model), std::bit_cast<uint32_t>(y.logprobs[t].model));
        EXPECT_EQ(std::bit_cast<uint32_t>(x.logprobs[t].sampled),
                  std::bit_cast<uint32_t>(y.logprobs[t].sampled));
      }
    }
  }
}

Results OneByOne() {
  Results results;
  for (GenerationRequest& request : MixedRequests()) {
    const auto engine = MakeEngine({.max_batch_tokens = 4096});  // a fresh one: nothing cached
    std::vector<GenerationRequest> alone;
    alone.push_back(std::move(request));
    results.push_back(std::move(engine->Generate(std::move(alone))[0]));
  }
  return results;
}

class BitIdentity : public testing::Test {
 protected:
  static void SetUpTestSuite() { alone_ = new Results(OneByOne()); }
  static const Results* alone_;
};
const Results* BitIdentity::alone_ = nullptr;

TEST_F(BitIdentity, InABatchOf64) { ExpectSameBits(*alone_, MakeEngine()->Generate(MixedRequests())); }

TEST_F(BitIdentity, WithAPrefixCacheThatHits) {
  const auto engine = MakeEngine();
  engine->Generate(MixedRequests());
  const int64_t hits = engine->Stats().prefix_hit_tokens;
  ExpectSameBits(*alone_, engine->Generate(MixedRequests()));
  EXPECT_GT(engine->Stats().prefix_hit_tokens, hits + 1000);
}

TEST_F(BitIdentity, WithChunkedPrefill) {
  ExpectSameBits(*alone_, MakeEngine({.max_batch_tokens = 7})->Generate(MixedRequests()));
}

TEST_F(BitIdentity, AfterPreemption) {
  const int64_t block_bytes =
      2 * 2 * 2 * 16 * 32 * 4;  // layers · heads · (keys, values) · tokens · width · float
  const auto engine = MakeEngine({.kv_cache_bytes = 12 * block_bytes});
  ExpectSameBits(*alone_, engine->Generate(MixedRequests()));
  EXPECT_GT(engine->Stats().preemptions, 0);
}

TEST_F(BitIdentity, WithTwoThreads) {
  ExpectSameBits(*alone_, MakeEngine({.num_threads = 2})->Generate(MixedRequests()));
}

TEST_F(BitIdentity, OfCandidatesAskedForLater) {
  std::vector<GenerationRequest> requests(2);
  requests[0].prompt_ids = requests[1].prompt_ids = Tokens(5, 20);
  requests[0].num_candidates = 4;
  requests[1].num_candidates = 2;
  requests[1].first_candidate = 2;
  const Results results = MakeEngine()->Generate(std::move(requests));
  EXPECT_EQ((*results[0])[2].token_ids, (*results[1])[0].token_ids);
  EXPECT_EQ((*results[0])[3].token_ids, (*results[1])[1].token_ids);
  EXPECT_NE((*results[0])[0].token_ids, (*results[0])[1].token_ids);
}

// What an engine told. Read when the engine is gone.
struct Told : EngineObserver {
  void StepScheduled(int num_tokens) override { tokens += num_tokens; }
  void SequenceStarted(absl::Duration wait) override {
    ++started;
    waited += wait;
  }
  void CandidateFinished(absl::Duration prefill_time, absl::Duration decode_time) override {
    ++finished;
    prefill += prefill_time;
    decode += decode_time;
  }
  int tokens = 0, started = 0, finished = 0;
  absl::Duration waited, prefill, decode;
};

TEST(EngineObserverTest, HearsOfEachSequenceOnceHoweverOftenItIsPreempted) {
  const int64_t block_bytes = 2 * 2 * 2 * 16 * 32 * 4;
  const auto told = std::make_shared<Told>();
  auto engine = *Engine::Create(SmallModel(), {.kv_cache_bytes = 12 * block_bytes}, told);
  int candidates = 0, prompt_tokens = 0;
  for (const GenerationRequest& request : MixedRequests()) {
    candidates += request.num_candidates;
    prompt_tokens += request.num_candidates * static_cast<int>(request.prompt_ids.size());
  }
  engine->Generate(MixedRequests());
  const EngineStats stats = engine->Stats();
  engine.reset();
  EXPECT_GT(stats.preemptions, 0);
  EXPECT_EQ(told->started, candidates);
  EXPECT_EQ(told->finished, candidates);
  EXPECT_EQ(stats.prefix_query_tokens, prompt_tokens);
  EXPECT_LT(stats.prefix_hit_tokens, stats.prefix_query_tokens);
}

TEST(EngineObserverTest, HearsTimesThatMakeUpTheStayOfARequestAndItsTokens) {
  const auto told = std::make_shared<Told>();
  auto engine = *Engine::Create(SmallModel(), {.max_batch_tokens = 32}, told);
  std::vector<GenerationRequest> requests(1);
  requests[0].prompt_ids = Tokens(3, 100);
  requests[0].sampling.max_new_tokens = 20;
  const auto start = std::chrono::steady_clock::now();
  engine->Generate(std::move(requests));
  const absl::Duration all = absl::FromChrono(std::chrono::steady_clock::now() - start);
  engine.reset();
  EXPECT_EQ(told->tokens, 100 + 19);  // nothing is computed from the last token
  EXPECT_GE(told->waited, absl::ZeroDuration());
  EXPECT_GT(told->prefill, absl::ZeroDuration());
  EXPECT_GT(told->decode, absl::ZeroDuration());
  EXPECT_LE(told->waited + told->prefill + told->decode, all);
}

TEST(EngineObserverTest, HearsOfScoredSequencesAsTheyStart) {
  const auto told = std::make_shared<Told>();
  auto engine = *Engine::Create(SmallModel(), {.max_batch_sequences = 1}, told);
  const std::vector<CompletionScoreRequest> requests = {{Tokens(1, 30), Tokens(2, 5)},
                                                        {Tokens(3, 30), Tokens(4, 5)}};
  ASSERT_TRUE(engine->ScoreCompletions(requests).ok());
  engine.reset();
  EXPECT_EQ(told->started, 2);
  EXPECT_EQ(told->finished, 0);
  EXPECT_EQ(told->tokens, 2 * 34);
  EXPECT_GT(told->waited, absl::ZeroDuration());  // the second's for the first
}

TEST(EngineTest, SaysWhetherAnythingWasComputedOfWhatItEnds) {
  const auto engine = MakeEngine({.max_batch_sequences = 1});
  std::promise<void> started;
  std::promise<absl::Status> done, waiting_done;
  GenerationRequest request;
  request.prompt_ids = {1};
  request.sampling.max_new_tokens = 500;
  GenerationRequest waiting = request;
  request.on_token = [&, first = true](int, int32_t, const TokenLogprobs&) mutable {
    if (std::exchange(first, false)) started.set_value();
    return Continue::kYes;
  };
  request.on_done = [&](absl::StatusOr<std::vector<Candidate>> result) { done.set_value(result.status()); };
  waiting.deadline = absl::Now() - absl::Seconds(1);
  waiting.on_done = [&](absl::StatusOr<std::vector<Candidate>> result) {
    waiting_done.set_value(result.status());
  };
  const uint64_t id = *engine->Submit(std::move(request));
  started.get_future().wait();
  ASSERT_TRUE(engine->Submit(std::move(waiting)).ok());
  const absl::Status expired = waiting_done.get_future().get();
  EXPECT_EQ(expired.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(expired.GetPayload(std::string(kNothingComputed)).has_value());
  engine->Cancel(id);
  const absl::Status status = done.get_future().get();
  EXPECT_FALSE(status.GetPayload(std::string(kNothingComputed)).has_value()) << status;
}

TEST(EngineTest, CancelsWhatIsLeftOfARequestSomeOfWhichHasEnded) {
  const auto engine = MakeEngine();
  std::promise<void> started;
  std::promise<absl::Status> done;
  GenerationRequest request;
  request.prompt_ids = {1};
  request.num_candidates = 2;
  request.sampling.max_new_tokens = 500;
  request.on_token = [&, tokens = 0](int candidate, int32_t, const TokenLogprobs&) mutable {
    if (candidate == 0) return Continue::kStop;
    if (++tokens == 3) started.set_value();
    return Continue::kYes;
  };
  request.on_done = [&](absl::StatusOr<std::vector<Candidate>> result) { done.set_value(result.status()); };
  const uint64_t id = *engine->Submit(std::move(request));
  started.get_future().wait();
  engine->Cancel(id);
  EXPECT_EQ(done.get_future().get().code(), absl::StatusCode::kCancelled);
}

TEST(EngineTest, ScoresItsOwnSamplesWithTheLogprobsItReported) {
  const auto engine = MakeEngine();
  std::vector<GenerationRequest> requests(1);
  requests[0].prompt_ids = Tokens(3, 40);
  requests[0].sampling.logprobs = true;
  requests[0].sampling.max_new_tokens = 30;
  const std::vector<Candidate> candidates = *engine->Generate(std::move(requests))[0];
  const CompletionScoreRequest score{Tokens(3, 40), candidates[0].token_ids};
  const std::vector<float> scored = (*engine->ScoreCompletions({&score, 1}))[0];
  ASSERT_EQ(scored.size(), candidates[0].token_ids.size());
  for (size_t t = 0; t < scored.size(); ++t) EXPECT_EQ(scored[t], candidates[0].logprobs[t].model);
}

// Pairs as a reward model sees them: several answers of mixed lengths to each prompt.
std::vector<std::vector<int32_t>> Answers() {
  std::vector<std::vector<int32_t>> sequences;
  for (int i = 0; i < 64; ++i) {
    std::vector<int32_t> sequence = Tokens(1000 + i / 4, 20 + 5 * (i / 4));
    const std::vector<int32_t> answer = Tokens(i, 1 + i * 13 % 60);
    sequence.insert(sequence.end(), answer.begin(), answer.end());
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

std::shared_ptr<const ModelFolder> RewardModel() {
  static const auto* model = new std::shared_ptr<const ModelFolder>(*ModelFolder::Open(
      std::string(getenv("ALMOST_SOURCE_DIR")) + "/tests/parity/goldens/models/llama_reward"));
  return *model;
}

std::vector<std::vector<int32_t>> RewardAnswers() {
  std::vector<std::vector<int32_t>> sequences = Answers();
  for (auto& sequence : sequences) {
    for (int32_t& token : sequence) token %= RewardModel()->config().vocab_size;
    sequence.resize(std::min<size_t>(sequence.size(), RewardModel()->config().max_positions));
  }
  return sequences;
}

TEST(ScoreSequences, AreTheSameBitsForEveryBatchOrderCacheAndChunk) {
  const std::vector<std::vector<int32_t>> sequences = RewardAnswers();
  std::vector<float> alone;
  for (const auto& sequence : sequences) {
    const auto engine = Engine::Create(RewardModel(), {.max_batch_tokens = 4096});
    alone.push_back((*(*engine)->ScoreSequences({&sequence, 1}))[0]);
  }
  const int64_t block_bytes = 2 * 2 * 2 * 16 * 8 * 4;
  for (const EngineOptions& options :
       {EngineOptions{}, EngineOptions{.max_batch_tokens = 7}, EngineOptions{.num_threads = 2},
        EngineOptions{.kv_cache_bytes = 12 * block_bytes}, EngineOptions{.max_batch_sequences = 3}}) {
    const auto engine = Engine::Create(RewardModel(), options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    EXPECT_EQ(*(*engine)->ScoreSequences(sequences), alone);
    std::vector<std::vector<int32_t>> backwards(sequences.rbegin(), sequences.rend());
    std::vector<float> scores = *(*engine)->ScoreSequences(backwards);
    std::reverse(scores.begin(), scores.end());
    EXPECT_EQ(scores, alone);
  }
}

// What the cache takes is its keys and values, and what it takes is resident: 256 MB written, within 2 %
// (huge pages at both ends are up to 1.6 %).
TEST(KvCacheTest, ATokenTakesTheMemoryOfItsKeysAndValues) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "ThreadSanitizer's own memory grows with ours";
#endif
  const ModelConfig& c = SmallModel()->config();
  const int64_t token_bytes = int64_t{2} * c.num_layers * c.num_kv_heads * c.head_dim * sizeof(float);
  EXPECT_EQ(KvCache::BlockBytes(c), kBlockTokens * token_bytes);
  const auto resident_bytes = [] {
    std::ifstream file("/proc/self/statm");
    int64_t total = 0, resident = 0;
    file >> total >> resident;
    return resident * 4096;
  };
  const int num_blocks = static_cast<int>((256 << 20) / KvCache::BlockBytes(c));
  KvCache cache(c, num_blocks + 1);
  const int64_t before = resident_bytes();
  for (int block = 1; block <= num_blocks; ++block) cache.Copy(0, block);
  const auto grown = static_cast<double>(resident_bytes() - before);
  EXPECT_NEAR(grown, static_cast<double>(num_blocks * kBlockTokens * token_bytes), 0.02 * grown);
}

TEST(ScoreSequences, AreRefusedWhereTheQueueIsFull) {
  const auto engine = Engine::Create(RewardModel(), {.max_queued_requests = 3});
  const std::vector<std::vector<int32_t>> four(4, {1, 2}), three(3, {1, 2});
  EXPECT_EQ((*engine)->ScoreSequences(four).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE((*engine)->ScoreSequences(three).ok());
}

// A call that is of no use any more ends before its work does: of so much work only a part is computed.
TEST(ScoreSequences, EndWhenNobodyWantsThem) {
  std::vector<std::vector<int32_t>> sequences;
  for (int i = 0; i < 512; ++i) {
    sequences.push_back(Tokens(i, 120));
    for (int32_t& token : sequences.back()) token %= 96;
  }
  const auto engine = Engine::Create(RewardModel(), {.max_batch_tokens = 1});  // 61,440 steps
  std::atomic<int> asked = 0;
  EXPECT_EQ((*engine)->ScoreSequences(sequences, {.is_wanted = [&] { return ++asked < 2; }}).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(asked, 2);
  EXPECT_EQ((*engine)->Stats().free_blocks, (*engine)->Stats().total_blocks);
  const absl::Status late =
      (*engine)->ScoreSequences(sequences, {.deadline = absl::Now() + absl::Milliseconds(5)}).status();
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ((*engine)->Stats().free_blocks, (*engine)->Stats().total_blocks);
  EXPECT_EQ((*engine)->Stats().waiting_sequences, 0);
}

TEST(ScoreSequences, ComputeACommonPromptOnce) {
  std::vector<std::vector<int32_t>> sequences(8, Tokens(1, 64));
  for (auto& sequence : sequences) {
    for (int32_t& token : sequence) token %= 96;
  }
  for (int i = 0; i < 8; ++i) sequences[i].push_back(i);
  const auto engine = Engine::Create(RewardModel(), {});
  ASSERT_TRUE((*engine)->ScoreSequences(sequences).ok());
  EXPECT_EQ((*engine)->Stats().prefix_hit_tokens, 7 * 64);
}

TEST(ScoreCompletions, AreTheSameBitsBesideRunningGenerations) {
  std::vector<CompletionScoreRequest> requests;
  for (int i = 0; i < 20; ++i) requests.push_back({Tokens(i / 3, 30), Tokens(50 + i, i * 7 % 40)});
  const auto quiet = *MakeEngine()->ScoreCompletions(requests);
  const auto engine = MakeEngine({.max_batch_tokens = 48});
  std::vector<GenerationRequest> mixed = MixedRequests();
  std::jthread generating([&] { engine->Generate(std::move(mixed)); });
  for (int round = 0; round < 3; ++round) EXPECT_EQ(*engine->ScoreCompletions(requests), quiet);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(quiet[i].size(), requests[i].completion_ids.size());
}

TEST(ScoreCompletions, RefuseWhatCannotBeByField) {
  const auto engine = MakeEngine();
  const auto status = [&](std::vector<int32_t> prompt, std::vector<int32_t> completion) {
    const CompletionScoreRequest request{std::move(prompt), std::move(completion)};
    return engine->ScoreCompletions({&request, 1}).status();
  };
  EXPECT_THAT(std::string(status({}, {1}).message()), testing::HasSubstr("prompt_ids"));
  EXPECT_THAT(std::string(status({1}, {1344}).message()), testing::HasSubstr("completion_ids"));
  EXPECT_EQ(status(Tokens(1, 300), Tokens(2, 300)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(status({1}, {}).ok());
  EXPECT_EQ((*Engine::Create(RewardModel(), {}))->ScoreCompletions({}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(EngineTest, CandidatesShareTheirPromptAndComputeOneTokenEach) {
  const auto engine = MakeEngine();
  std::vector<GenerationRequest> requests(1);
  requests[0].prompt_ids = Tokens(4, 105);
  requests[0].num_candidates = 5;
  requests[0].sampling.max_new_tokens = 1;
  ASSERT_TRUE(engine->Generate(requests)[0].ok());
  // The first candidate is gone when the others come: whole blocks of 96 tokens are found again.
  EXPECT_EQ(engine->Stats().prefix_hit_tokens, 4 * 96);

  requests[0].prompt_ids = Tokens(6, 105);
  requests[0].num_candidates = 5;
  requests[0].sampling.max_new_tokens = 8;
  ASSERT_TRUE(engine->Generate(requests)[0].ok());
  EXPECT_EQ(engine->Stats().prefix_hit_tokens, 4 * 96 + 4 * 104);
}

TEST(EngineTest, ReportsDamagedWeightsInsteadOfTokens) {
  std::vector<TensorToWrite> tensors;
  const std::vector<uint16_t> poison(32, 0x7fc0);  // NaN in bfloat16
  for (const auto& [name, view] : RewardModel()->tensors()) {
    const bool poisoned = name == "model.norm.weight";
    tensors.push_back(
        {name, view.dtype, view.shape, poisoned ? std::as_bytes(std::span(poison)) : view.bytes});
  }
  const ScratchFolder folder;
  ASSERT_TRUE(WriteModelFolder(folder, RewardModel()->config(), tensors).ok());
  const auto engine = Engine::Create(*ModelFolder::Open(folder), {});
  const std::vector<int32_t> sequence = {1, 2, 3};
  EXPECT_EQ((*engine)->ScoreSequences({&sequence, 1}).status().code(), absl::StatusCode::kDataLoss);
}

TEST(EngineTest, EndsWhatIsUnderWayWhenDestroyed) {
  auto engine = MakeEngine();
  std::promise<void> started;
  std::promise<absl::Status> done;
  GenerationRequest request;
  request.prompt_ids = {1};
  request.sampling.max_new_tokens = 500;
  request.on_token = [&, first = true](int, int32_t, const TokenLogprobs&) mutable {
    if (std::exchange(first, false)) started.set_value();
    return Continue::kYes;
  };
  request.on_done = [&, raw = engine.get()](absl::StatusOr<std::vector<Candidate>> result) {
    raw->Stats();  // the engine's lock is free
    done.set_value(result.status());
  };
  ASSERT_TRUE(engine->Submit(std::move(request)).ok());
  started.get_future().wait();
  engine.reset();
  const absl::Status status = done.get_future().get();
  EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
}

TEST(EngineTest, StopsAtAStopTokenAndWhenItsListenerSaysSo) {
  const auto engine = MakeEngine();
  std::vector<GenerationRequest> requests(3);
  for (GenerationRequest& r : requests) {
    r.prompt_ids = Tokens(8, 12);
    r.sampling.max_new_tokens = 10;
  }
  const std::vector<int32_t> all = (*engine->Generate({requests[0]})[0])[0].token_ids;
  requests[1].stop_token_ids = {all[4]};
  requests[2].on_token = [seen = 0](int, int32_t, const TokenLogprobs&) mutable {
    return ++seen == 3 ? Continue::kStop : Continue::kYes;
  };
  const Results results = engine->Generate(requests);
  EXPECT_EQ((*results[0])[0].finish_reason, FinishReason::kLength);
  EXPECT_EQ((*results[1])[0].finish_reason, FinishReason::kStop);
  EXPECT_LE((*results[1])[0].token_ids.size(), 4u);
  EXPECT_EQ((*results[2])[0].finish_reason, FinishReason::kStop);
  EXPECT_EQ((*results[2])[0].token_ids.size(), 3u);
}

TEST(EngineTest, FreesEveryBlockAfterCancelsAndMissedDeadlines) {
  const auto engine = MakeEngine();
  for (int i = 0; i < 50; ++i) {
    GenerationRequest request;
    request.prompt_ids = Tokens(i, 30);
    request.sampling.max_new_tokens = 400;
    if (i % 2 == 0) request.deadline = absl::Now() + absl::Milliseconds(i);
    std::promise<absl::Status> done;
    request.on_done = [&](absl::StatusOr<std::vector<Candidate>> result) { done.set_value(result.status()); };
    std::promise<void> started;
    request.on_token = [&, first = true](int, int32_t, const TokenLogprobs&) mutable {
      if (std::exchange(first, false)) started.set_value();
      return Continue::kYes;
    };
    const uint64_t id = *engine->Submit(std::move(request));
    if (i % 2 == 1) {
      started.get_future().wait();
      engine->Cancel(id);
    }
    const absl::Status status = done.get_future().get();
    EXPECT_TRUE(status.ok() || absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) << status;
  }
  EXPECT_EQ(engine->Stats().free_blocks, engine->Stats().total_blocks);
}

// What is cancelled in a step computes nothing after it; the blocks are back when on_done comes.
TEST(EngineTest, ACancelledRequestIsOutOfTheNextStep) {
  const auto engine = MakeEngine();
  std::promise<uint64_t> id;
  std::promise<EngineStats> at_the_end;
  std::shared_future<uint64_t> known = id.get_future().share();
  int tokens_after = 0;
  GenerationRequest request;
  request.prompt_ids = Tokens(1, 40);
  request.sampling.max_new_tokens = 400;
  request.on_token = [&, cancelled = false](int, int32_t, const TokenLogprobs&) mutable {
    tokens_after += cancelled;
    if (!std::exchange(cancelled, true)) engine->Cancel(known.get());
    return Continue::kYes;
  };
  request.on_done = [&, raw = engine.get()](absl::StatusOr<std::vector<Candidate>> result) {
    EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
    at_the_end.set_value(raw->Stats());
  };
  id.set_value(*engine->Submit(std::move(request)));
  const EngineStats stats = at_the_end.get_future().get();
  EXPECT_EQ(tokens_after, 0);
  EXPECT_EQ(stats.free_blocks, stats.total_blocks);
}

// A deadline may pass during a step; the next one does without the request.
TEST(EngineTest, AnExpiredRequestIsOutOfTheNextStep) {
  const auto engine = MakeEngine();
  for (int i = 0; i < 5; ++i) {
    std::promise<EngineStats> at_the_end;
    int tokens_after = 0;
    GenerationRequest request;
    request.prompt_ids = Tokens(i, 40);
    request.num_candidates = 3;
    request.sampling.max_new_tokens = 400;
    request.deadline = absl::Now() + absl::Milliseconds(3);
    request.on_token = [&, deadline = request.deadline](int candidate, int32_t, const TokenLogprobs&) {
      tokens_after += candidate == 0 && absl::Now() > deadline;
      return Continue::kYes;
    };
    request.on_done = [&, raw = engine.get()](const absl::StatusOr<std::vector<Candidate>>&) {
      at_the_end.set_value(raw->Stats());
    };
    ASSERT_TRUE(engine->Submit(std::move(request)).ok());
    const EngineStats stats = at_the_end.get_future().get();
    EXPECT_LE(tokens_after, 1);
    EXPECT_EQ(stats.free_blocks, stats.total_blocks);
  }
}

TEST(EngineTest, AQueueThatWasFullHasRoomWhenItsRequestsHaveEnded) {
  const auto engine = MakeEngine({.max_queued_requests = 2});
  for (int round = 0; round < 3; ++round) {
    std::promise<void> all_asked;
    std::shared_future<void> go_on = all_asked.get_future().share();
    std::array<std::promise<absl::Status>, 2> done;
    const auto request = [&](int i) {
      GenerationRequest r;
      r.prompt_ids = {1};
      r.on_token = [go_on](int, int32_t, const TokenLogprobs&) {
        go_on.wait();
        return Continue::kYes;
      };
      r.on_done = [&done, i](const absl::StatusOr<std::vector<Candidate>>& result) {
        done[i].set_value(result.status());
      };
      return r;
    };
    EXPECT_TRUE(engine->Submit(request(0)).ok());
    EXPECT_TRUE(engine->Submit(request(1)).ok());
    EXPECT_EQ(engine->Submit(request(0)).status().code(), absl::StatusCode::kResourceExhausted);
    all_asked.set_value();
    for (auto& status : done) EXPECT_TRUE(status.get_future().get().ok());
  }
}

// Tokens bound the queue too, however few the requests; one that is larger than the bound runs alone.
TEST(EngineTest, RefusesRequestsWhileItsQueueHoldsTooManyTokens) {
  const auto engine = MakeEngine({.max_queued_tokens = 100});
  for (int round = 0; round < 3; ++round) {
    std::promise<void> all_asked;
    std::shared_future<void> go_on = all_asked.get_future().share();
    std::vector<std::promise<absl::Status>> done(2);
    const auto request = [&](int i, int num_prompt) {
      GenerationRequest r;
      r.prompt_ids = Tokens(i, num_prompt);
      r.num_candidates = 2;
      r.sampling.max_new_tokens = 10;
      r.on_token = [go_on](int, int32_t, const TokenLogprobs&) {
        go_on.wait();
        return Continue::kYes;
      };
      r.on_done = [&done, i](const absl::StatusOr<std::vector<Candidate>>& result) {
        done[i].set_value(result.status());
      };
      return r;
    };
    EXPECT_TRUE(engine->Submit(request(0, 79)).ok());   // 99 tokens
    EXPECT_TRUE(engine->Submit(request(1, 200)).ok());  // the first that passes the bound
    const absl::Status refused = engine->Submit(request(0, 1)).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("100 tokens"));
    EXPECT_EQ(engine->ScoreCompletions(std::vector<CompletionScoreRequest>{{{1}, {2}}}).status().code(),
              absl::StatusCode::kResourceExhausted);
    all_asked.set_value();
    for (auto& status : done) EXPECT_TRUE(status.get_future().get().ok());
    EXPECT_EQ(engine->Stats().queued_tokens, 0);
  }
}

// Two models under load on one team: while both wait for the turn that the test holds, giving it up and
// asking again lets each make one step, neither more nor less, however long the other's steps are.
TEST(EngineTest, ModelsThatShareATeamMakeAStepEachInTurn) {
  struct Steps : EngineObserver {
    void StepScheduled(int) override { ++number; }
    std::atomic<int> number = 0;
  };
  const auto team = std::make_shared<SharedTeam>(2);
  const std::array steps = {std::make_shared<Steps>(), std::make_shared<Steps>()};
  // Steps of 512 tokens, and of one.
  const auto large = *Engine::Create(SmallModel(), {.max_batch_tokens = 512, .team = team}, steps[0]);
  const auto small = *Engine::Create(SmallModel(), {.max_batch_tokens = 1, .team = team}, steps[1]);
  auto turn = std::make_unique<SharedTeam::Turn>(*team);
  std::promise<void> small_done;
  const auto submit = [&](Engine& engine, int count, int num_prompt, std::function<void()> done) {
    for (int i = 0; i < count; ++i) {
      GenerationRequest r;
      r.prompt_ids = Tokens(i, num_prompt);
      r.sampling.max_new_tokens = 64;
      r.on_done = [done](const absl::StatusOr<std::vector<Candidate>>&) {
        if (done) done();
      };
      ASSERT_TRUE(engine.Submit(std::move(r)).ok());
    }
  };
  submit(*large, 256, 400, nullptr);  // some 200 steps of prompts
  submit(*small, 1, 8, [&] { small_done.set_value(); });
  for (int round = 0; round < 50; ++round) {
    while (team->num_waiting() < 2) std::this_thread::yield();
    const std::array before = {steps[0]->number.load(), steps[1]->number.load()};
    // Asks while it still has the turn, so behind both and before either's next.
    std::jthread next([&] {
      while (team->num_waiting() < 3) std::this_thread::yield();
      turn.reset();
    });
    auto again = std::make_unique<SharedTeam::Turn>(*team);
    next.join();
    turn = std::move(again);
    EXPECT_EQ(steps[0]->number, before[0] + 1);
    EXPECT_EQ(steps[1]->number, before[1] + 1);
  }
  turn.reset();
  small_done.get_future().get();
}

TEST(EngineTest, RefusesWhatCannotBeByField) {
  const auto engine = MakeEngine({.max_queued_requests = 0});
  const auto refused = [&](auto change) {
    GenerationRequest request;
    request.prompt_ids = {1, 2};
    change(request);
    return engine->Submit(std::move(request)).status();
  };
  const auto names = [](const absl::Status& status, const char* field,
                        absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(field));
  };
  names(refused([](auto& r) { r.prompt_ids.clear(); }), "prompt");
  names(refused([](auto& r) { r.prompt_ids = {1344}; }), "token 1344");
  names(refused([](auto& r) { r.prompt_ids = {-1}; }), "token -1");
  names(refused([](auto& r) { r.sampling.temperature = -1; }), "temperature");
  names(refused([](auto& r) { r.sampling.temperature = NAN; }), "temperature");
  names(refused([](auto& r) { r.sampling.top_p = 0; }), "top_p");
  names(refused([](auto& r) { r.sampling.min_p = 1; }), "min_p");
  names(refused([](auto& r) { r.sampling.max_new_tokens = 0; }), "max_new_tokens");
  names(refused([](auto& r) { r.sampling.max_new_tokens = 511; }), "context", absl::StatusCode::kOutOfRange);
  names(refused([](auto& r) { r.num_candidates = 0; }), "n:");
  EXPECT_EQ(refused([](auto&) {}).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(engine->ScoreSequences({}).status().code(), absl::StatusCode::kFailedPrecondition);
}

// Computes nothing, and says that its device has failed while it is told to.
class FailingRunner final : public StepRunner {
 public:
  explicit FailingRunner(std::shared_ptr<std::atomic<bool>> fails) : fails_(std::move(fails)) {}
  void Copy(int, int) override {}
  absl::Status Run(std::span<Sequence* const> sequences,
                   std::span<std::optional<Sampler::Draw>> draws) override {
    if (*fails_) return absl::InternalError("the device is gone");
    for (size_t i = 0; i < sequences.size(); ++i) {
      std::fill(sequences[i]->scores.begin(), sequences[i]->scores.end(), 0.0f);
      draws[i] = Sampler::Draw{7, {}};
    }
    return absl::OkStatus();
  }
  int num_blocks() const override { return 64; }
  const ModelConfig& config() const override { return SmallModel()->config(); }
  const std::string& numerics_id() const override { return numerics_id_; }

 private:
  const std::shared_ptr<std::atomic<bool>> fails_;
  const std::string numerics_id_ = "none";
};

TEST(EngineTest, AFailedStepEndsWhatItWasForAndNothingElse) {
  const auto fails = std::make_shared<std::atomic<bool>>(true);
  const auto engine = EngineOf(std::make_unique<FailingRunner>(fails), std::make_shared<SharedTeam>(1),
                               EngineOptions(), nullptr);
  GenerationRequest request;
  request.prompt_ids = Tokens(1, 40);
  request.num_candidates = 3;
  request.sampling.max_new_tokens = 2;
  for (const bool failing : {true, false, true}) {
    *fails = failing;
    const auto generated = engine->Generate({request, request});
    const auto scored =
        engine->ScoreCompletions(std::vector<CompletionScoreRequest>{{Tokens(1, 40), {5, 6}}});
    for (const absl::Status& status : {generated[0].status(), generated[1].status(), scored.status()}) {
      EXPECT_EQ(status.code(), failing ? absl::StatusCode::kInternal : absl::StatusCode::kOk) << status;
    }
    const EngineStats stats = engine->Stats();
    EXPECT_EQ(stats.free_blocks, stats.total_blocks);
    EXPECT_EQ(stats.queued_tokens, 0);
  }
}

}  // namespace
}  // namespace almost::engine
