#include "common/engine/engine.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <latch>
#include <map>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/engine/cpu_model.h"
#include "common/engine/sampler.h"
#include "common/engine/scheduler.h"

namespace almost::engine {

// A request under way; its candidates are sequences of the scheduler.
struct RunningRequest {
  uint64_t id = 0;
  GenerationRequest request;
  std::vector<Candidate> done;  // grows to num_candidates
  absl::Status error;           // what on_done gets instead of them
};

namespace {

// Bumped when a change of ours changes bits.
constexpr absl::string_view kEngineVersion = "almost-cpu-1/float32/fma-chain";

absl::Status OutOfRange(absl::string_view field, absl::string_view rule, double value) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": must be ", rule, ", got ", value));
}

absl::Status ValidateSampling(const SamplingParams& p) {
  if (!(p.temperature >= 0 && std::isfinite(p.temperature))) {
    return OutOfRange("temperature", "at least 0", p.temperature);
  }
  if (!(p.top_p > 0 && p.top_p <= 1)) return OutOfRange("top_p", "in (0, 1]", p.top_p);
  if (p.top_k < 0) return OutOfRange("top_k", "at least 0", p.top_k);
  if (!(p.min_p >= 0 && p.min_p < 1)) return OutOfRange("min_p", "in [0, 1)", p.min_p);
  if (p.max_new_tokens < 1) return OutOfRange("max_new_tokens", "at least 1", p.max_new_tokens);
  return absl::OkStatus();
}

// Sequences whose last or all hidden states are wanted, without sampling.
struct ScoringTask {
  std::span<const std::vector<int32_t>> sequences;
  std::vector<int> num_outputs;  // of each, counted from its end
  std::vector<std::vector<float>> hidden;
  size_t next = 0;
  absl::Notification done;
};

class CpuEngine final : public Engine {
 public:
  CpuEngine(std::unique_ptr<const CpuModel> model, const EngineOptions& options, int num_blocks)
      : model_(std::move(model)),
        options_(options),
        numerics_id_(kEngineVersion),
        cache_(model_->config(), num_blocks),
        scheduler_(options, num_blocks),
        samplers_(options.num_threads),
        owner_([this](const std::stop_token& stop) { Run(stop); }) {}

  ~CpuEngine() override {
    owner_.request_stop();
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    owner_.join();
  }

  absl::StatusOr<uint64_t> Submit(GenerationRequest request) override {
    ALMOST_RETURN_IF_ERROR(Validate(request));
    absl::MutexLock lock(&mutex_);
    if (static_cast<int>(inbox_.size()) + num_unfinished_ >= options_.max_queued_requests) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the engine's queue holds ", options_.max_queued_requests, " requests; try again later"));
    }
    auto running = std::make_unique<RunningRequest>();
    running->id = next_id_++;
    running->request = std::move(request);
    const uint64_t id = running->id;
    inbox_.push_back(std::move(running));
    return id;
  }

  void Cancel(uint64_t request_id) override {
    absl::MutexLock lock(&mutex_);
    cancelled_.push_back(request_id);
  }

  absl::StatusOr<std::vector<std::vector<float>>> ScoreCompletions(
      std::span<const CompletionScoreRequest> requests) override {
    if (config().reward_head) return absl::FailedPreconditionError("the model has no language-model head");
    std::vector<std::vector<int32_t>> sequences;
    std::vector<int> num_outputs;
    for (const CompletionScoreRequest& request : requests) {
      if (request.prompt_ids.empty()) return absl::InvalidArgumentError("prompt_ids: must not be empty");
      // The last token's own output is not needed; the one before each completion token is.
      std::vector<int32_t> sequence = request.prompt_ids;
      sequence.insert(sequence.end(), request.completion_ids.begin(), request.completion_ids.end());
      num_outputs.push_back(static_cast<int>(request.completion_ids.size()) + 1);
      sequences.push_back(std::move(sequence));
    }
    ALMOST_ASSIGN_OR_RETURN(const std::vector<std::vector<float>> hidden,
                            Hidden(sequences, std::move(num_outputs)));
    std::vector<std::vector<float>> out(requests.size());
    std::vector<float> logits;
    const int vocab = config().vocab_size;
    for (size_t i = 0; i < requests.size(); ++i) {
      model_->Logits(hidden[i], logits);
      for (size_t t = 0; t < requests[i].completion_ids.size(); ++t) {
        const std::span<const float> row(logits.data() + t * vocab, vocab);
        out[i].push_back(static_cast<float>(row[requests[i].completion_ids[t]] - LogSumExp(row)));
      }
    }
    return out;
  }

  absl::StatusOr<std::vector<float>> ScoreSequences(
      std::span<const std::vector<int32_t>> sequences) override {
    if (!config().reward_head) return absl::FailedPreconditionError("the model has no reward head");
    ALMOST_ASSIGN_OR_RETURN(const std::vector<std::vector<float>> hidden,
                            Hidden(sequences, std::vector<int>(sequences.size(), 1)));
    std::vector<float> scores;
    for (const std::vector<float>& state : hidden) scores.push_back(model_->Reward(state));
    return scores;
  }

  EngineStats Stats() const override {
    absl::MutexLock lock(&mutex_);
    return stats_;
  }
  const ModelConfig& config() const override { return model_->config(); }
  const std::string& numerics_id() const override { return numerics_id_; }

 private:
  absl::Status ValidateTokens(absl::string_view field, std::span<const int32_t> tokens) const {
    if (tokens.empty()) return absl::InvalidArgumentError(absl::StrCat(field, ": must not be empty"));
    for (const int32_t token : tokens) {
      if (token < 0 || token >= config().vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat(field, ": token ", token, " is not in [0, ", config().vocab_size, ")"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ValidateLength(absl::string_view what, int64_t num_tokens) const {
    if (num_tokens > config().max_positions) {
      return absl::OutOfRangeError(absl::StrCat(what, " make ", num_tokens,
                                                " tokens, the model's context has ", config().max_positions));
    }
    if (!scheduler_.Fits(static_cast<int>(num_tokens))) {
      return absl::OutOfRangeError(absl::StrCat(what, " make ", num_tokens,
                                                " tokens, more than the KV cache of ",
                                                options_.kv_cache_bytes, " bytes holds"));
    }
    return absl::OkStatus();
  }

  absl::Status Validate(const GenerationRequest& request) const {
    if (config().reward_head) return absl::FailedPreconditionError("the model has no language-model head");
    ALMOST_RETURN_IF_ERROR(ValidateTokens("prompt", request.prompt_ids));
    ALMOST_RETURN_IF_ERROR(ValidateSampling(request.sampling));
    if (request.num_candidates < 1) return OutOfRange("n", "at least 1", request.num_candidates);
    if (request.first_candidate < 0)
      return OutOfRange("first_candidate", "at least 0", request.first_candidate);
    return ValidateLength("prompt and max_new_tokens",
                          int64_t(request.prompt_ids.size()) + request.sampling.max_new_tokens);
  }

  absl::StatusOr<std::vector<std::vector<float>>> Hidden(std::span<const std::vector<int32_t>> sequences,
                                                         std::vector<int> num_outputs) {
    for (const std::vector<int32_t>& sequence : sequences) {
      ALMOST_RETURN_IF_ERROR(ValidateTokens("sequence", sequence));
      ALMOST_RETURN_IF_ERROR(ValidateLength("the sequence's", static_cast<int64_t>(sequence.size())));
    }
    ScoringTask task{
        sequences, std::move(num_outputs), std::vector<std::vector<float>>(sequences.size()), 0, {}};
    if (sequences.empty()) return std::move(task.hidden);
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return absl::CancelledError("the engine is stopping");
      scoring_inbox_.push_back(&task);
    }
    task.done.WaitForNotification();
    if (task.next < sequences.size()) return absl::CancelledError("the engine is stopping");
    return std::move(task.hidden);
  }

  // ---- the owner thread

  void Run(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      TakeInbox();
      ScoringStep();
      Step();
    }
    absl::MutexLock lock(&mutex_);
    for (auto& [id, request] : requests_)
      request->request.on_done(absl::CancelledError("the engine is stopping"));
    for (auto& request : inbox_) request->request.on_done(absl::CancelledError("the engine is stopping"));
    for (ScoringTask* task : scoring_inbox_) task->done.Notify();
    for (ScoringTask* task : scoring_) task->done.Notify();
  }

  void TakeInbox() {
    std::vector<std::unique_ptr<RunningRequest>> fresh;
    std::vector<uint64_t> cancelled;
    {
      absl::MutexLock lock(&mutex_);
      const auto work = [this] {
        mutex_.AssertHeld();
        return stopping_ || !requests_.empty() || !scoring_.empty() || !inbox_.empty() ||
               !scoring_inbox_.empty() || !cancelled_.empty();
      };
      PublishStats();
      mutex_.Await(absl::Condition(&work));
      fresh.swap(inbox_);
      cancelled.swap(cancelled_);
      scoring_.insert(scoring_.end(), scoring_inbox_.begin(), scoring_inbox_.end());
      scoring_inbox_.clear();
      num_unfinished_ = static_cast<int>(requests_.size() + fresh.size());
    }
    for (auto& request : fresh) {
      for (int c = 0; c < request->request.num_candidates; ++c) {
        auto sequence = std::make_unique<Sequence>();
        sequence->request = request.get();
        sequence->index = request->request.first_candidate + c;
        sequence->tokens = request->request.prompt_ids;
        sequence->num_prompt = static_cast<int>(sequence->tokens.size());
        sequence->result.index = sequence->index;
        prompt_tokens_ += sequence->num_prompt;
        sequences_.emplace(request->id, sequence.get());
        scheduler_.Add(std::move(sequence));
      }
      const uint64_t id = request->id;
      requests_.emplace(id, std::move(request));
    }
    for (const uint64_t id : cancelled) End(id, FinishReason::kCancelled);
    const absl::Time now = absl::Now();
    for (const auto& [id, request] : requests_) {
      if (request->request.deadline < now) End(id, FinishReason::kDeadline);
    }
    Collect();
  }

  // Ends what is left of a request.
  void End(uint64_t id, FinishReason reason) {
    const auto [begin, end] = sequences_.equal_range(id);
    for (auto it = begin; it != end; ++it) {
      if (it->second->finished) continue;
      it->second->finished = true;
      it->second->result.finish_reason = reason;
    }
  }

  // Chunks of different sequences side by side, one share a thread; then the heads that sample.
  void ForwardSharded(
      std::span<const SequenceChunk> chunks,
      const std::function<void(int thread, size_t first_chunk, std::span<const SequenceChunk> share,
                               const std::vector<float>& hidden)>& consume) {
    size_t total = 0;
    for (const SequenceChunk& chunk : chunks) total += chunk.tokens.size();
    const int threads = std::min<int>(options_.num_threads, static_cast<int>(chunks.size()));
    std::vector<std::pair<size_t, size_t>> shares;
    size_t begin = 0, reached = 0;
    for (size_t i = 0; i < chunks.size(); ++i) {
      reached += chunks[i].tokens.size();
      if (reached * threads >= total * (shares.size() + 1) || i + 1 == chunks.size()) {
        shares.emplace_back(begin, i + 1);
        begin = i + 1;
      }
    }
    const auto run = [&](int thread) {
      const auto [first, last] = shares[thread];
      std::vector<float> hidden;
      model_->Forward(chunks.subspan(first, last - first), cache_, hidden);
      consume(thread, first, chunks.subspan(first, last - first), hidden);
    };
    std::vector<std::jthread> helpers;
    for (size_t t = 1; t < shares.size(); ++t) helpers.emplace_back(run, static_cast<int>(t));
    run(0);
  }

  // Schedule, run, sample, collect.
  void Step() {
    const std::vector<Sequence*> scheduled = scheduler_.Schedule();
    if (scheduled.empty()) return;
    std::vector<SequenceChunk> chunks;
    for (const Sequence* s : scheduled) {
      const std::span<const int32_t> tokens(s->tokens);
      const bool samples = s->num_computed + s->num_scheduled == static_cast<int>(tokens.size());
      chunks.push_back(
          {tokens.subspan(s->num_computed, s->num_scheduled), s->num_computed, s->blocks, samples ? 1 : 0});
    }
    std::vector<std::optional<Sampler::Draw>> draws(scheduled.size());
    ForwardSharded(chunks, [&](int thread, size_t first, std::span<const SequenceChunk> share,
                               const std::vector<float>& hidden) {
      std::vector<float> logits;
      model_->Logits(hidden, logits);
      const size_t vocab = config().vocab_size;
      size_t row = 0;
      for (size_t i = 0; i < share.size(); ++i) {
        if (share[i].num_outputs == 0) continue;
        const Sequence& s = *scheduled[first + i];
        draws[first + i] = samplers_[thread](std::span(logits).subspan(row++ * vocab, vocab),
                                             s.request->request.sampling, s.index, s.num_new());
      }
    });
    scheduler_.Commit(scheduled);
    for (size_t i = 0; i < scheduled.size(); ++i) {
      if (chunks[i].num_outputs == 1) Accept(*scheduled[i], draws[i]);
    }
    Collect();
  }

  void Accept(Sequence& s, const std::optional<Sampler::Draw>& drawn) {
    const GenerationRequest& request = s.request->request;
    if (!drawn) {
      s.request->error = absl::DataLossError("the model's logits are not finite: its weights are damaged");
      s.finished = true;
      return;
    }
    const Sampler::Draw& draw = *drawn;
    ++output_tokens_;
    if (request.sampling.logprobs) s.result.logprobs.push_back(draw.logprobs);
    if (std::find(request.stop_token_ids.begin(), request.stop_token_ids.end(), draw.token) !=
        request.stop_token_ids.end()) {
      s.result.finish_reason = FinishReason::kStop;
      s.finished = true;
      return;
    }
    s.tokens.push_back(draw.token);
    s.result.token_ids.push_back(draw.token);
    if (request.on_token && request.on_token(s.index, draw.token, draw.logprobs) == Continue::kStop) {
      s.result.finish_reason = FinishReason::kStop;
      s.finished = true;
    } else if (s.num_new() >= request.sampling.max_new_tokens) {
      s.result.finish_reason = FinishReason::kLength;
      s.finished = true;
    }
  }

  void Collect() {
    for (std::unique_ptr<Sequence>& sequence : scheduler_.TakeFinished()) {
      RunningRequest& request = *sequence->request;
      request.done.push_back(std::move(sequence->result));
      if (static_cast<int>(request.done.size()) < request.request.num_candidates) continue;
      std::sort(request.done.begin(), request.done.end(),
                [](const Candidate& a, const Candidate& b) { return a.index < b.index; });
      sequences_.erase(request.id);
      const auto node = requests_.extract(request.id);
      const auto ended_by = [&](FinishReason reason) {
        return std::any_of(request.done.begin(), request.done.end(),
                           [&](const Candidate& c) { return c.finish_reason == reason; });
      };
      if (!request.error.ok()) {
        request.request.on_done(request.error);
      } else if (ended_by(FinishReason::kCancelled)) {
        request.request.on_done(absl::CancelledError("the request was cancelled"));
      } else if (ended_by(FinishReason::kDeadline)) {
        request.request.on_done(absl::DeadlineExceededError("the request's deadline passed"));
      } else {
        request.request.on_done(std::move(request.done));
      }
    }
  }

  // One batch of whole sequences of the oldest scoring task, on blocks that are free now.
  void ScoringStep() {
    if (scoring_.empty()) return;
    ScoringTask& task = *scoring_.front();
    BlockPool& pool = scheduler_.pool();
    std::vector<std::vector<int>> blocks;
    std::vector<SequenceChunk> chunks;
    const size_t first = task.next;
    size_t tokens = 0;
    while (task.next < task.sequences.size()) {
      const std::vector<int32_t>& sequence = task.sequences[task.next];
      const int wanted = (static_cast<int>(sequence.size()) + kBlockTokens - 1) / kBlockTokens;
      if (wanted > pool.num_free() ||
          (!chunks.empty() && tokens + sequence.size() > size_t(options_.max_batch_tokens))) {
        break;
      }
      std::vector<int>& taken = blocks.emplace_back();
      for (int i = 0; i < wanted; ++i) taken.push_back(*pool.Take());
      tokens += sequence.size();
      chunks.push_back({sequence, 0, {}, task.num_outputs[task.next++]});
    }
    for (size_t i = 0; i < chunks.size(); ++i) chunks[i].blocks = blocks[i];
    if (!chunks.empty()) {
      ForwardSharded(chunks, [&](int, size_t begin, std::span<const SequenceChunk> share,
                                 const std::vector<float>& hidden) {
        auto at = hidden.begin();
        for (size_t i = 0; i < share.size(); ++i) {
          const auto count = static_cast<std::ptrdiff_t>(share[i].num_outputs) * config().hidden_size;
          task.hidden[first + begin + i].assign(at, at + count);
          at += count;
        }
      });
      for (const std::vector<int>& taken : blocks) {
        for (const int block : taken) pool.RemoveUser(block);
      }
    }
    if (task.next == task.sequences.size()) {
      scoring_.pop_front();
      task.done.Notify();
    }
  }

  void PublishStats() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    BlockPool& pool = scheduler_.pool();
    stats_.running_sequences = scheduler_.num_running();
    stats_.waiting_sequences = scheduler_.num_waiting();
    stats_.free_blocks = pool.num_free();
    stats_.total_blocks = pool.num_blocks();
    stats_.kv_cache_usage = 1.0 - static_cast<double>(pool.num_free()) / pool.num_blocks();
    stats_.prompt_tokens = prompt_tokens_;
    stats_.prefix_hit_tokens = scheduler_.prefix_hit_tokens();
    stats_.output_tokens = output_tokens_;
    stats_.preemptions = scheduler_.num_preemptions();
  }

  const std::unique_ptr<const CpuModel> model_;
  const EngineOptions options_;
  const std::string numerics_id_;

  mutable absl::Mutex mutex_;
  std::vector<std::unique_ptr<RunningRequest>> inbox_ ABSL_GUARDED_BY(mutex_);
  std::vector<ScoringTask*> scoring_inbox_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> cancelled_ ABSL_GUARDED_BY(mutex_);
  int num_unfinished_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  EngineStats stats_ ABSL_GUARDED_BY(mutex_);

  // The owner thread's alone.
  KvCache cache_;
  Scheduler scheduler_;
  std::map<uint64_t, std::unique_ptr<RunningRequest>> requests_;
  std::multimap<uint64_t, Sequence*> sequences_;
  std::deque<ScoringTask*> scoring_;
  std::vector<Sampler> samplers_;
  int64_t prompt_tokens_ = 0;
  int64_t output_tokens_ = 0;

  std::jthread owner_;  // last: starts when all else is there
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(std::shared_ptr<const ModelFolder> model,
                                                       const EngineOptions& options) {
  if (options.num_threads < 1) return OutOfRange("num_threads", "at least 1", options.num_threads);
  if (options.max_batch_tokens < 1)
    return OutOfRange("max_batch_tokens", "at least 1", options.max_batch_tokens);
  if (options.max_batch_sequences < 1) {
    return OutOfRange("max_batch_sequences", "at least 1", options.max_batch_sequences);
  }
  const int64_t num_blocks = options.kv_cache_bytes / KvCache::BlockBytes(model->config());
  if (num_blocks < 1) {
    return absl::InvalidArgumentError(absl::StrCat("kv_cache_bytes: must hold one block of ",
                                                   KvCache::BlockBytes(model->config()), " bytes, got ",
                                                   options.kv_cache_bytes));
  }
  ALMOST_ASSIGN_OR_RETURN(std::unique_ptr<const CpuModel> loaded, CpuModel::Load(*model));
  return std::make_unique<CpuEngine>(std::move(loaded), options,
                                     static_cast<int>(std::min<int64_t>(num_blocks, 1 << 24)));
}

std::vector<absl::StatusOr<std::vector<Candidate>>> Engine::Generate(
    std::vector<GenerationRequest> requests) {
  std::vector<absl::StatusOr<std::vector<Candidate>>> results(requests.size(), absl::UnknownError("not run"));
  std::latch left(static_cast<std::ptrdiff_t>(requests.size()));
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].on_done = [&results, &left, i](absl::StatusOr<std::vector<Candidate>> result) {
      results[i] = std::move(result);
      left.count_down();
    };
    if (const absl::StatusOr<uint64_t> id = Submit(std::move(requests[i])); !id.ok()) {
      results[i] = id.status();
      left.count_down();
    }
  }
  left.wait();
  return results;
}

}  // namespace almost::engine
