#include "common/engine/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/engine/scheduler.h"
#include "common/engine/step_runner.h"
#ifdef ALMOST_CUDA
#include "common/engine/cuda/cuda_runner.h"
#endif

namespace almost::engine {

using SteadyClock = std::chrono::steady_clock;

// A request under way; its candidates are sequences of the scheduler.
struct RunningRequest {
  uint64_t id = 0;
  GenerationRequest request;
  SteadyClock::time_point arrival;
  std::vector<Sequence*> sequences;  // of the candidates that are not in `done`; the scheduler owns them
  std::vector<Candidate> done;       // grows to num_candidates
  absl::Status error;                // what on_done gets instead of them
  bool started = false;              // one of them has been in a step
};

// Events that one thread counts and another waits for. (With std's mutex, as all of this file: Debian's
// Abseil is not built for ThreadSanitizer, which then sees races where there are none.)
class Countdown {
 public:
  explicit Countdown(size_t count) : left_(count) {}
  // Under the lock to its end, so that the waiter may destroy it at once.
  void Done() {
    const std::lock_guard lock(mutex_);
    if (--left_ == 0) none_left_.notify_all();
  }
  void Wait() {
    std::unique_lock lock(mutex_);
    none_left_.wait(lock, [this] { return left_ == 0; });
  }
  // False: not within `time`.
  bool WaitFor(absl::Duration time) {
    std::unique_lock lock(mutex_);
    return none_left_.wait_for(lock, absl::ToChronoNanoseconds(time), [this] { return left_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable none_left_;
  size_t left_;
};

// One ScoreCompletions or ScoreSequences under way, on its caller's stack; its items are sequences of the
// scheduler. The engine's thread fills it until `done`.
struct ScoringCall {
  uint64_t id = 0;
  std::vector<std::vector<float>> results;  // one an item
  std::vector<Sequence*> items;             // without a result; the scheduler owns them
  bool started = false;                     // one of them has been in a step
  absl::Status status;
  Countdown done{1};
};

namespace {

absl::Status OutOfRange(absl::string_view field, absl::string_view rule, double value) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": must be ", rule, ", got ", value));
}

absl::Status NotFinite() {
  return absl::DataLossError("the model's output is not finite: its weights are damaged");
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

class SteppedEngine final : public Engine {
 public:
  SteppedEngine(std::unique_ptr<StepRunner> runner, std::shared_ptr<SharedTeam> team,
                const EngineOptions& options, std::shared_ptr<EngineObserver> observer)
      : runner_(std::move(runner)),
        team_(std::move(team)),
        options_(options),
        observer_(std::move(observer)),
        scheduler_(options, runner_->num_blocks()),
        owner_([this](const std::stop_token& stop) { Run(stop); }) {}

  ~SteppedEngine() override {
    owner_.request_stop();
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      wake_.notify_one();
    }
    owner_.join();
  }

  absl::StatusOr<uint64_t> Submit(GenerationRequest request) override {
    ALMOST_RETURN_IF_ERROR(Validate(request));
    const std::lock_guard lock(mutex_);
    ALMOST_RETURN_IF_ERROR(CheckRoom(1));
    queued_tokens_ += TokensOf(request);
    auto running = std::make_unique<RunningRequest>();
    running->id = next_id_++;
    running->request = std::move(request);
    running->arrival = SteadyClock::now();
    ++num_unfinished_;
    const uint64_t id = running->id;
    inbox_.push_back(std::move(running));
    wake_.notify_one();
    return id;
  }

  void Cancel(uint64_t request_id) override {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(request_id);
    wake_.notify_one();
  }

  absl::StatusOr<std::vector<std::vector<float>>> ScoreCompletions(
      std::span<const CompletionScoreRequest> requests, const ScoringLimits& limits) override {
    if (config().reward_head) return absl::FailedPreconditionError("the model has no language-model head");
    ScoringCall call;
    call.results.resize(requests.size());
    std::vector<std::unique_ptr<Sequence>> items;
    for (size_t i = 0; i < requests.size(); ++i) {
      ALMOST_RETURN_IF_ERROR(CheckCompletion(requests[i]));
      const auto& [prompt, completion] = requests[i];
      if (completion.empty()) continue;
      auto item = std::make_unique<Sequence>();
      item->index = static_cast<int>(i);
      item->tokens = prompt;
      // What follows the last token is not asked for.
      item->tokens.insert(item->tokens.end(), completion.begin(), completion.end() - 1);
      item->num_prompt = item->num_tokens();
      item->first_output = static_cast<int>(prompt.size()) - 1;
      item->targets = completion;
      items.push_back(std::move(item));
    }
    ALMOST_RETURN_IF_ERROR(Score(std::move(items), call, limits));
    return std::move(call.results);
  }

  absl::StatusOr<std::vector<float>> ScoreSequences(std::span<const std::vector<int32_t>> sequences,
                                                    const ScoringLimits& limits) override {
    if (!config().reward_head) return absl::FailedPreconditionError("the model has no reward head");
    ScoringCall call;
    call.results.resize(sequences.size());
    std::vector<std::unique_ptr<Sequence>> items;
    for (const std::vector<int32_t>& tokens : sequences) {
      ALMOST_RETURN_IF_ERROR(CheckSequence(tokens));
      auto item = std::make_unique<Sequence>();
      item->index = static_cast<int>(items.size());
      item->tokens = tokens;
      item->num_prompt = item->num_tokens();
      item->first_output = item->num_tokens() - 1;
      items.push_back(std::move(item));
    }
    ALMOST_RETURN_IF_ERROR(Score(std::move(items), call, limits));
    std::vector<float> scores;
    for (const std::vector<float>& result : call.results) scores.push_back(result.front());
    return scores;
  }

  absl::Status CheckCompletion(const CompletionScoreRequest& item) const override {
    ALMOST_RETURN_IF_ERROR(ValidateTokens("prompt_ids", item.prompt_ids));
    if (item.completion_ids.empty()) return absl::OkStatus();
    ALMOST_RETURN_IF_ERROR(ValidateTokens("completion_ids", item.completion_ids));
    return ValidateLength("prompt_ids and completion_ids",
                          int64_t(item.prompt_ids.size()) + int64_t(item.completion_ids.size()));
  }
  absl::Status CheckSequence(std::span<const int32_t> tokens) const override {
    ALMOST_RETURN_IF_ERROR(ValidateTokens("sequence", tokens));
    return ValidateLength("prompt and response", static_cast<int64_t>(tokens.size()));
  }

  EngineStats Stats() const override {
    const std::lock_guard lock(mutex_);
    return stats_;
  }
  int64_t cache_tokens() const override { return int64_t{kBlockTokens} * runner_->num_blocks(); }
  const ModelConfig& config() const override { return runner_->config(); }
  const std::string& numerics_id() const override { return runner_->numerics_id(); }

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
      return absl::OutOfRangeError(
          absl::StrCat(what, " make ", num_tokens, " tokens, more than the KV cache holds"));
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

  // What a request counts for in max_queued_tokens.
  static int64_t TokensOf(const GenerationRequest& request) {
    return static_cast<int64_t>(request.prompt_ids.size()) +
           int64_t{request.num_candidates} * request.sampling.max_new_tokens;
  }

  // With mutex_ held: whether so many more may queue.
  absl::Status CheckRoom(size_t count) const {
    const auto full = [](int64_t bound, absl::string_view of) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the engine's queue holds ", bound, " ", of, "; try again later"));
    };
    if (num_unfinished_ + count > static_cast<size_t>(options_.max_queued_requests))
      return full(options_.max_queued_requests, "requests");
    if (queued_tokens_ >= options_.max_queued_tokens) return full(options_.max_queued_tokens, "tokens");
    return absl::OkStatus();
  }

  // Runs the items and waits for them.
  absl::Status Score(std::vector<std::unique_ptr<Sequence>> items, ScoringCall& call,
                     const ScoringLimits& limits) {
    if (items.empty()) return absl::OkStatus();
    const SteadyClock::time_point arrival = SteadyClock::now();
    for (std::unique_ptr<Sequence>& item : items) {
      item->scoring = &call;
      item->arrival = arrival;
      item->scores.resize(item->num_tokens() - item->first_output);
      call.items.push_back(item.get());
    }
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return absl::CancelledError("the engine is stopping");
      ALMOST_RETURN_IF_ERROR(CheckRoom(items.size()));
      call.id = next_id_++;
      num_unfinished_ += items.size();
      for (const std::unique_ptr<Sequence>& item : items) queued_tokens_ += item->num_tokens();
      calls_inbox_.push_back(&call);
      for (std::unique_ptr<Sequence>& item : items) items_inbox_.push_back(std::move(item));
      wake_.notify_one();
    }
    while (!call.done.WaitFor(std::min(limits.between_looks, limits.deadline - absl::Now()))) {
      absl::Status useless;
      if (absl::Now() >= limits.deadline) {
        useless = absl::DeadlineExceededError("the call's deadline passed");
      } else if (limits.is_wanted && !limits.is_wanted()) {
        useless = absl::CancelledError("the call was cancelled");
      }
      if (useless.ok()) continue;
      {
        const std::lock_guard lock(mutex_);
        useless_calls_.emplace_back(call.id, std::move(useless));
        wake_.notify_one();
      }
      call.done.Wait();
    }
    return call.status;
  }

  // ---- the owner thread

  void Run(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      TakeInbox();
      Step();
    }
    {
      const std::lock_guard lock(mutex_);
      for (auto& request : inbox_) requests_.emplace(request->id, std::move(request));
      inbox_.clear();
      calls_.insert(calls_.end(), calls_inbox_.begin(), calls_inbox_.end());
    }
    const absl::Status stopping = absl::CancelledError("the engine is stopping");
    for (auto& [id, request] : requests_) request->request.on_done(stopping);
    for (ScoringCall* call : calls_) {
      call->status = stopping;
      call->done.Done();
    }
  }

  void TakeInbox() {
    std::vector<std::unique_ptr<RunningRequest>> fresh;
    std::vector<std::unique_ptr<Sequence>> items;
    std::vector<uint64_t> cancelled;
    std::vector<std::pair<uint64_t, absl::Status>> useless;
    {
      const bool busy = scheduler_.num_running() + scheduler_.num_waiting() > 0;
      std::unique_lock lock(mutex_);
      PublishStats();
      wake_.wait(lock, [&] {
        return busy || stopping_ || !inbox_.empty() || !items_inbox_.empty() || !cancelled_.empty() ||
               !useless_calls_.empty();
      });
      fresh.swap(inbox_);
      items.swap(items_inbox_);
      cancelled.swap(cancelled_);
      useless.swap(useless_calls_);
      calls_.insert(calls_.end(), calls_inbox_.begin(), calls_inbox_.end());
      calls_inbox_.clear();
    }
    for (std::unique_ptr<Sequence>& item : items) {
      prompt_tokens_ += item->num_tokens();
      scheduler_.Add(std::move(item));
    }
    for (auto& request : fresh) {
      for (int c = 0; c < request->request.num_candidates; ++c) {
        auto sequence = std::make_unique<Sequence>();
        sequence->request = request.get();
        sequence->sampling = &request->request.sampling;
        sequence->arrival = request->arrival;
        sequence->index = request->request.first_candidate + c;
        sequence->tokens = request->request.prompt_ids;
        sequence->num_prompt = sequence->num_tokens();
        sequence->first_output = sequence->num_prompt - 1;
        sequence->result.index = sequence->index;
        prompt_tokens_ += sequence->num_prompt;
        request->sequences.push_back(sequence.get());
        scheduler_.Add(std::move(sequence));
      }
      const uint64_t id = request->id;
      requests_.emplace(id, std::move(request));
    }
    for (const uint64_t id : cancelled) {
      if (const auto found = requests_.find(id); found != requests_.end()) {
        End(*found->second, FinishReason::kCancelled);
      }
    }
    for (auto& [id, status] : useless) {
      const auto found = std::find_if(calls_.begin(), calls_.end(),
                                      [id = id](const ScoringCall* call) { return call->id == id; });
      if (found == calls_.end()) continue;
      (*found)->status = Ended((*found)->started, std::move(status));
      for (Sequence* item : (*found)->items) item->finished = true;
    }
    const absl::Time now = absl::Now();
    for (const auto& [id, request] : requests_) {
      if (request->request.deadline < now) End(*request, FinishReason::kDeadline);
    }
    Collect();
  }

  // Ends what is left of a request.
  static void End(const RunningRequest& request, FinishReason reason) {
    for (Sequence* sequence : request.sequences) {
      if (sequence->finished) continue;
      sequence->finished = true;
      sequence->result.finish_reason = reason;
    }
  }

  // Schedule, run, sample, collect.
  void Step() {
    if (scheduler_.num_running() + scheduler_.num_waiting() == 0) return;
    std::optional<SharedTeam::Turn> turn(std::in_place, *team_);
    const Scheduler::Step step = scheduler_.Schedule();
    for (const auto [from, to] : step.copies) runner_->Copy(from, to);
    if (step.sequences.empty()) return;
    Start(step);
    std::vector<std::optional<Sampler::Draw>> draws(step.sequences.size());
    const absl::Status computed = runner_->Run(step.sequences, draws);
    turn.reset();
    if (!computed.ok()) return Fail(step.sequences, computed);
    scheduler_.Commit(step.sequences);
    const SteadyClock::time_point now = SteadyClock::now();
    for (size_t i = 0; i < step.sequences.size(); ++i) {
      Sequence& s = *step.sequences[i];
      if (s.num_computed < s.num_tokens()) continue;
      if (s.scoring != nullptr) {
        s.finished = true;
        continue;
      }
      if (s.num_new() == 0) s.first_token = now;
      Accept(s, draws[i]);
      if (s.finished && observer_ != nullptr && s.request->error.ok()) {
        observer_->CandidateFinished(absl::FromChrono(s.first_token - s.start),
                                     absl::FromChrono(now - s.first_token));
      }
    }
    Collect();
  }

  // Ends what a step that failed was for; none of it is shared with others.
  void Fail(std::span<Sequence* const> sequences, const absl::Status& error) {
    for (Sequence* s : sequences) {
      s->finished = true;
      if (s->scoring != nullptr) {
        s->scoring->status = error;
      } else {
        s->request->error = error;
        End(*s->request, FinishReason::kCancelled);
      }
    }
    Collect();
  }

  // Notes and tells what the step begins.
  void Start(const Scheduler::Step& step) {
    if (observer_ != nullptr) observer_->StepScheduled(step.num_tokens);
    if (step.admitted.empty()) return;
    const SteadyClock::time_point now = SteadyClock::now();
    for (Sequence* s : step.admitted) {
      s->start = now;
      (s->request != nullptr ? s->request->started : s->scoring->started) = true;
      if (observer_ != nullptr) observer_->SequenceStarted(absl::FromChrono(now - s->arrival));
    }
  }

  static absl::Status Ended(bool started, absl::Status status) {
    if (!started) status.SetPayload(std::string(kNothingComputed), absl::Cord());
    return status;
  }

  void Accept(Sequence& s, const std::optional<Sampler::Draw>& drawn) {
    const GenerationRequest& request = s.request->request;
    if (!drawn) {
      s.request->error = NotFinite();
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
    s.first_output = s.num_tokens() - 1;
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
    std::vector<std::unique_ptr<Sequence>> finished = scheduler_.TakeFinished();
    if (finished.empty()) return;
    {
      // Whoever has its results sees statistics that count them, and finds room for more.
      const std::lock_guard lock(mutex_);
      for (const std::unique_ptr<Sequence>& sequence : finished) {
        if (sequence->scoring == nullptr) {
          std::erase(sequence->request->sequences, sequence.get());
          if (!sequence->request->sequences.empty()) continue;
          queued_tokens_ -= TokensOf(sequence->request->request);
        } else {
          queued_tokens_ -= sequence->num_tokens();
        }
        --num_unfinished_;
      }
      PublishStats();
    }
    for (std::unique_ptr<Sequence>& sequence : finished) {
      if (sequence->scoring != nullptr) {
        CollectItem(*sequence);
        continue;
      }
      RunningRequest& request = *sequence->request;
      request.done.push_back(std::move(sequence->result));
      if (static_cast<int>(request.done.size()) < request.request.num_candidates) continue;
      std::sort(request.done.begin(), request.done.end(),
                [](const Candidate& a, const Candidate& b) { return a.index < b.index; });
      const auto node = requests_.extract(request.id);
      const auto ended_by = [&](FinishReason reason) {
        return std::any_of(request.done.begin(), request.done.end(),
                           [&](const Candidate& c) { return c.finish_reason == reason; });
      };
      if (!request.error.ok()) {
        request.request.on_done(request.error);
      } else if (ended_by(FinishReason::kCancelled)) {
        request.request.on_done(Ended(request.started, absl::CancelledError("the request was cancelled")));
      } else if (ended_by(FinishReason::kDeadline)) {
        request.request.on_done(
            Ended(request.started, absl::DeadlineExceededError("the request's deadline passed")));
      } else {
        request.request.on_done(std::move(request.done));
      }
    }
  }

  void CollectItem(Sequence& item) {
    ScoringCall& call = *item.scoring;
    if (call.status.ok() && !std::all_of(item.scores.begin(), item.scores.end(),
                                         [](float score) { return std::isfinite(score); })) {
      call.status = NotFinite();
    }
    call.results[item.index] = std::move(item.scores);
    std::erase(call.items, &item);
    if (!call.items.empty()) return;
    std::erase(calls_, &call);
    call.done.Done();
  }

  // With mutex_ held.
  void PublishStats() {
    BlockPool& pool = scheduler_.pool();
    stats_.running_sequences = scheduler_.num_running();
    stats_.waiting_sequences = scheduler_.num_waiting();
    stats_.free_blocks = pool.num_free();
    stats_.total_blocks = pool.num_blocks();
    stats_.kv_cache_usage = 1.0 - static_cast<double>(pool.num_free()) / pool.num_blocks();
    stats_.prompt_tokens = prompt_tokens_;
    stats_.prefix_query_tokens = scheduler_.prefix_query_tokens();
    stats_.prefix_hit_tokens = scheduler_.prefix_hit_tokens();
    stats_.output_tokens = output_tokens_;
    stats_.preemptions = scheduler_.num_preemptions();
    stats_.queued_tokens = queued_tokens_;
    stats_.max_queued_tokens = options_.max_queued_tokens;
  }

  const std::unique_ptr<StepRunner> runner_;  // the owner thread's, but for what never changes
  const std::shared_ptr<SharedTeam> team_;
  const EngineOptions options_;
  const std::shared_ptr<EngineObserver> observer_;  // or null

  // mutex_ guards what follows up to stats_; wake_ says that there is something new among it.
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::unique_ptr<RunningRequest>> inbox_;
  std::vector<std::unique_ptr<Sequence>> items_inbox_;
  std::vector<ScoringCall*> calls_inbox_;
  std::vector<uint64_t> cancelled_;
  std::vector<std::pair<uint64_t, absl::Status>> useless_calls_;  // by their ids
  size_t num_unfinished_ = 0;                                     // requests and items, in the inbox or not
  int64_t queued_tokens_ = 0;                                     // of them
  uint64_t next_id_ = 1;
  bool stopping_ = false;
  EngineStats stats_;

  // The owner thread's alone.
  Scheduler scheduler_;
  std::map<uint64_t, std::unique_ptr<RunningRequest>> requests_;
  std::vector<ScoringCall*> calls_;
  int64_t prompt_tokens_ = 0;
  int64_t output_tokens_ = 0;

  std::jthread owner_;  // last: starts when all else is there
};

}  // namespace

absl::StatusOr<std::optional<int>> GpuOf(absl::string_view device) {
  if (device == "cpu") return std::nullopt;
  absl::string_view digits = device;
  int number = 0;
  if (!absl::ConsumePrefix(&digits, "cuda:") || !absl::SimpleAtoi(digits, &number) || number < 0) {
    return absl::InvalidArgumentError(absl::StrCat("device: must be cpu or cuda:N, got ", device));
  }
  return number;
}

absl::StatusOr<int> NumCacheBlocks(int64_t kv_cache_bytes, int64_t block_bytes, const ModelConfig& config) {
  if (kv_cache_bytes == 0) {
    const int64_t context_blocks = (std::min(config.max_positions, 8192) + kBlockTokens - 1) / kBlockTokens;
    kv_cache_bytes = std::max(int64_t{512} << 20, context_blocks * block_bytes);
  }
  const int64_t num_blocks = kv_cache_bytes / block_bytes;
  if (num_blocks < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_cache_bytes: must hold one block of ", block_bytes, " bytes, got ", kv_cache_bytes));
  }
  return static_cast<int>(std::min<int64_t>(num_blocks, 1 << 24));
}

namespace {

absl::StatusOr<std::unique_ptr<StepRunner>> MakeRunner(const ModelFolder& model, const EngineOptions& options,
                                                       const std::shared_ptr<SharedTeam>& team) {
  ALMOST_ASSIGN_OR_RETURN(const std::optional<int> gpu, GpuOf(options.device));
  if (!gpu) return MakeCpuRunner(model, options.kv_cache_bytes, team);
#ifdef ALMOST_CUDA
  return cuda::MakeRunner(model, {.device = *gpu,
                                  .kv_cache_bytes = options.kv_cache_bytes,
                                  .max_tokens = options.max_batch_tokens,
                                  .max_sequences = options.max_batch_sequences,
                                  .deterministic = !options.cublas});
#else
  return absl::UnimplementedError(
      absl::StrCat("device: this build has no CUDA (-DALMOST_CUDA=ON), got ", options.device));
#endif
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(std::shared_ptr<const ModelFolder> model,
                                                       const EngineOptions& options,
                                                       std::shared_ptr<EngineObserver> observer) {
  if (options.num_threads < 1) return OutOfRange("num_threads", "at least 1", options.num_threads);
  if (options.max_batch_tokens < 1)
    return OutOfRange("max_batch_tokens", "at least 1", options.max_batch_tokens);
  if (options.max_batch_sequences < 1) {
    return OutOfRange("max_batch_sequences", "at least 1", options.max_batch_sequences);
  }
  std::shared_ptr<SharedTeam> team =
      options.team != nullptr ? options.team : std::make_shared<SharedTeam>(options.num_threads);
  ALMOST_ASSIGN_OR_RETURN(std::unique_ptr<StepRunner> runner, MakeRunner(*model, options, team));
  return EngineOf(std::move(runner), std::move(team), options, std::move(observer));
}

std::unique_ptr<Engine> EngineOf(std::unique_ptr<StepRunner> runner, std::shared_ptr<SharedTeam> team,
                                 const EngineOptions& options, std::shared_ptr<EngineObserver> observer) {
  return std::make_unique<SteppedEngine>(std::move(runner), std::move(team), options, std::move(observer));
}

std::vector<absl::StatusOr<std::vector<Candidate>>> Engine::Generate(
    std::vector<GenerationRequest> requests) {
  std::vector<absl::StatusOr<std::vector<Candidate>>> results(requests.size(), absl::UnknownError("not run"));
  Countdown left(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].on_done = [&results, &left, i](absl::StatusOr<std::vector<Candidate>> result) {
      results[i] = std::move(result);
      left.Done();
    };
    if (const absl::StatusOr<uint64_t> id = Submit(std::move(requests[i])); !id.ok()) {
      results[i] = id.status();
      left.Done();
    }
  }
  left.Wait();
  return results;
}

}  // namespace almost::engine
