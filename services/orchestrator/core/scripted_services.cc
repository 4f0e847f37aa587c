#include "services/orchestrator/core/scripted_services.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "google/protobuf/util/json_util.h"

namespace almost::orchestrator {
namespace {

template <typename... Parts>
std::string Word(const Parts&... parts) {
  return Sha256(absl::StrCat(parts...)).substr(0, 12);
}

double Number(const std::string& word) {
  return static_cast<double>(std::stoull(word.substr(0, 8), nullptr, 16)) / 4294967296.0;
}

// A completion: a few words, ended by a full stop.
std::string Answer(const std::string& digest, const std::string& text, uint64_t seed, int candidate) {
  const std::string word = Word(digest, text, seed, candidate);
  std::string answer = absl::StrCat("It is ", word);
  for (int i = 0; i < word[0] % 5; ++i) absl::StrAppend(&answer, " and ", Word(word, i));
  return absl::StrCat(answer, ".");
}

constexpr char kRecipe[] = R"json({
  "seed": 7, "prompt_format": "world",
  "models": [{"id": "S", "source": "tiny/S"}, {"id": "L", "source": "tiny/L"}],
  "demonstrations": [{"id": "good", "texts": [
    "\n\n-----\n\nHuman: Who?\n\nAssistant: Me.\n\n-----\n\nHuman: Why?\n\nAssistant: So.",
    "\n\n-----\n\nHuman: When?\n\nAssistant: Now.\n\n-----\n\nHuman: Where?\n\nAssistant: Here."]}],
  "prompts": {"model": "L", "seed_text": "\nWhat is a?\nWhat is b?\n", "num_prompts": 70,
              "attempts_per_round": 40, "max_rounds": 9, "num_shots": 2, "draw_from_pool": true},
  "responses": {"filter": "world", "configurations": [
    {"id": "L-2-good", "model": "L", "demonstrations": "good", "shots": 2},
    {"id": "S-1-good", "model": "S", "demonstrations": "good", "shots": 1},
    {"id": "S-0", "model": "S"}]},
  "comparisons": {"rule": "RULE_WORLD", "min_rank_gap": 1, "max_pairs": 60, "rubric": [
    {"configurations": ["L-2-good"]}, {"configurations": ["S-1-good"]}, {"configurations": ["S-0"]}]},
  "reward_model": {"base_model": "S", "spec": {"epochs": 1, "batch_size": 8, "max_tokens": 64},
                   "optimizer": {"learning_rate": 0.001}},
  "demonstration": {"assistant": {"id": "player", "model": "L", "demonstrations": "good", "shots": 2},
                    "num_prompts": 50, "num_candidates": 4, "filter": "world",
                    "drop_lowest_share": 0.1, "drop_duplicate_prompts": true},
  "sft": {"base_model": "S", "spec": {"epochs": 1, "batch_size": 8, "max_tokens": 64},
          "optimizer": {"learning_rate": 0.001}},
  "rl": {"spec": {"num_iterations": 2, "rollouts": 4, "epochs": 1, "minibatch_size": 4, "max_new_tokens": 8,
                  "value_learning_rate": 0.001},
         "optimizer": {"learning_rate": 0.001}, "only_unseen_prompts": true}
})json";

}  // namespace

v1::Recipe ScriptedRecipe(uint64_t seed) {
  v1::Recipe recipe;
  const bool parsed = google::protobuf::util::JsonStringToMessage(kRecipe, &recipe).ok();
  if (!parsed) std::abort();
  recipe.set_seed(seed);
  return recipe;
}

void ScriptedServices::SetScript(Script script) {
  const absl::MutexLock lock(&mutex_);
  script_ = std::move(script);
}

void ScriptedServices::SetNumerics(std::string numerics_id) {
  const absl::MutexLock lock(&mutex_);
  numerics_id_ = std::move(numerics_id);
}

void ScriptedServices::SetSalt(std::string salt) {
  const absl::MutexLock lock(&mutex_);
  salt_ = std::move(salt);
}

void ScriptedServices::LoseModels() {
  const absl::MutexLock lock(&mutex_);
  models_.clear();
}

std::set<std::string> ScriptedServices::models() const {
  const absl::MutexLock lock(&mutex_);
  std::set<std::string> names;
  for (const auto& [name, digest] : models_) names.insert(name);
  return names;
}

int64_t ScriptedServices::calls(absl::string_view method) const {
  const absl::MutexLock lock(&mutex_);
  const auto count = calls_.find(method);
  return count == calls_.end() ? 0 : count->second;
}

std::map<std::string, trainer::v1::JobState> ScriptedServices::jobs() const {
  const absl::MutexLock lock(&mutex_);
  std::map<std::string, trainer::v1::JobState> states;
  for (const auto& [name, job] : jobs_) states[name] = job.state();
  return states;
}

std::vector<trainer::v1::JobSpec> ScriptedServices::specs() const {
  const absl::MutexLock lock(&mutex_);
  std::vector<trainer::v1::JobSpec> specs;
  for (const auto& [name, job] : jobs_) specs.push_back(job.spec());
  return specs;
}

void ScriptedServices::HoldJobs(bool hold) {
  const absl::MutexLock lock(&mutex_);
  hold_jobs_ = hold;
}

absl::Status ScriptedServices::Before(absl::string_view method, const CallOptions& options) {
  Script script;
  {
    const absl::MutexLock lock(&mutex_);
    ++calls_[std::string(method)];
    script = script_;
  }
  if (options.stop.stop_requested()) return absl::CancelledError("stopped");
  return script ? script(method, options) : absl::OkStatus();
}

absl::StatusOr<std::string> ScriptedServices::Digest(const std::string& name,
                                                     const std::string& expected) const {
  const absl::MutexLock lock(&mutex_);
  const auto model = models_.find(name);
  if (model == models_.end()) return absl::NotFoundError(absl::StrCat("no ", name));
  if (!expected.empty() && expected != model->second) {
    return absl::FailedPreconditionError(absl::StrCat(name, " is ", model->second));
  }
  return model->second;
}

absl::StatusOr<generation::v1::GenerateResponse> ScriptedServices::Generate(
    const CallOptions& options, const generation::v1::GenerateRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before("Generate", options));
  generation::v1::GenerateResponse response;
  ALMOST_ASSIGN_OR_RETURN(const std::string digest, Digest(request.model(), request.expected_digest()));
  response.set_model_digest(digest);
  std::string salt;
  {
    const absl::MutexLock lock(&mutex_);
    salt = salt_;
  }
  for (const auto& item : request.items()) {
    auto& result = *response.add_items()->mutable_result();
    const auto& sampling = item.has_sampling() ? item.sampling() : request.sampling();
    const int n = sampling.has_n() ? sampling.n() : 1;
    for (int c = sampling.first_candidate(); c < sampling.first_candidate() + n; ++c) {
      auto& completion = *result.add_completions();
      completion.set_index(c);
      completion.set_text(Answer(digest + salt, item.input().text(), sampling.seed(), c));
      completion.set_finish_reason(generation::v1::FINISH_REASON_STOP);
      for (size_t i = 0; i < completion.text().size(); i += 4) completion.add_token_ids(1);
    }
  }
  const absl::MutexLock lock(&mutex_);
  response.set_numerics_id(numerics_id_);
  return response;
}

absl::StatusOr<generation::v1::ScoreCompletionsResponse> ScriptedServices::ScoreCompletions(
    const CallOptions& options, const generation::v1::ScoreCompletionsRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before("ScoreCompletions", options));
  generation::v1::ScoreCompletionsResponse response;
  ALMOST_ASSIGN_OR_RETURN(const std::string digest, Digest(request.model(), request.expected_digest()));
  response.set_model_digest(digest);
  for (const auto& item : request.items()) {
    response.add_items()->mutable_result()->set_sum_logprob(
        -Number(Word(digest, item.input().text(), item.completion_text())));
  }
  const absl::MutexLock lock(&mutex_);
  response.set_numerics_id(numerics_id_);
  return response;
}

absl::StatusOr<generation::v1::TokenizeResponse> ScriptedServices::Tokenize(
    const CallOptions& options, const generation::v1::TokenizeRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before("Tokenize", options));
  ALMOST_RETURN_IF_ERROR(Digest(request.model(), "").status());
  generation::v1::TokenizeResponse response;
  for (const auto& input : request.inputs()) {
    auto& tokens = *response.add_inputs();
    for (size_t i = 0; i < input.text().size(); i += 4) tokens.add_token_ids(1);
  }
  return response;
}

absl::StatusOr<reward::v1::ScoreResponse> ScriptedServices::Score(const CallOptions& options,
                                                                  const reward::v1::ScoreRequest& request,
                                                                  absl::string_view) {
  ALMOST_RETURN_IF_ERROR(Before("Score", options));
  reward::v1::ScoreResponse response;
  ALMOST_ASSIGN_OR_RETURN(const std::string digest, Digest(request.model(), request.expected_digest()));
  response.set_model_digest(digest);
  for (const auto& item : request.items()) {
    const double score =
        Number(Word(digest, item.prompt(), item.dialogue().ShortDebugString(), item.response()));
    response.add_items()->mutable_result()->set_raw_score(score);
    response.mutable_items()->rbegin()->mutable_result()->set_score(2 * score - 1);
  }
  const absl::MutexLock lock(&mutex_);
  response.set_numerics_id(numerics_id_);
  return response;
}

absl::StatusOr<types::v1::Model> ScriptedServices::LoadModel(const CallOptions& options, ModelHost,
                                                             const types::v1::LoadModelRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before("LoadModel", options));
  if (request.source() == "missing") return absl::NotFoundError("source: no folder \"missing\"");
  const std::string digest = Sha256(request.source());
  if (!request.expected_digest().empty() && request.expected_digest() != digest) {
    return absl::FailedPreconditionError(absl::StrCat(request.name(), " is ", digest));
  }
  const absl::MutexLock lock(&mutex_);
  models_[request.name()] = digest;
  types::v1::Model model;
  model.set_name(request.name());
  model.set_digest(digest);
  model.set_numerics_id(numerics_id_);
  model.set_context_tokens(request.source() == "short" ? 100 : 512);
  model.set_cache_tokens(4'096);
  return model;
}

absl::Status ScriptedServices::UnloadModel(const CallOptions& options, ModelHost,
                                           const types::v1::UnloadModelRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before("UnloadModel", options));
  const absl::MutexLock lock(&mutex_);
  return models_.erase(request.name()) > 0 ? absl::OkStatus() : absl::NotFoundError(request.name());
}

absl::StatusOr<std::vector<simulator::v1::GeneratePromptsResponse>> ScriptedServices::GeneratePrompts(
    const CallOptions& options, const simulator::v1::GeneratePromptsRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before("GeneratePrompts", options));
  ALMOST_ASSIGN_OR_RETURN(const std::string digest,
                          Digest(request.model().name(), request.model().expected_digest()));
  std::vector<simulator::v1::GeneratePromptsResponse> mined;
  for (int attempt = 0; attempt < request.num_attempts(); ++attempt) {
    const std::string word = Word(digest, request.sampling().seed(), request.round(), attempt,
                                  request.pool().empty() ? "" : *request.pool().rbegin());
    auto& each = mined.emplace_back();
    each.set_attempt(attempt);
    each.set_prompt(absl::StrCat("What is ", word, "?"));
    each.set_drop_reason(attempt % 3 == 2 ? "too_similar" : "");
    each.set_num_tokens(7);
  }
  return mined;
}

absl::StatusOr<std::vector<simulator::v1::SimulateDialoguesResponse>> ScriptedServices::SimulateDialogues(
    const CallOptions& options, const simulator::v1::SimulateDialoguesRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before("SimulateDialogues", options));
  ALMOST_ASSIGN_OR_RETURN(const std::string digest,
                          Digest(request.assistant().name(), request.assistant().expected_digest()));
  ALMOST_ASSIGN_OR_RETURN(const std::string reward,
                          Digest(request.reward_model().name(), request.reward_model().expected_digest()));
  std::vector<simulator::v1::SimulateDialoguesResponse> dialogues;
  for (const auto& seed : request.seeds()) {
    auto& dialogue = dialogues.emplace_back();
    dialogue.set_prompt_id(seed.prompt_id());
    auto& turn = *dialogue.add_turns();
    turn.set_seed(request.sampling().seed() ^ static_cast<uint64_t>(seed.prompt_id()));
    for (int c = 0; c < request.num_candidates(); ++c) {
      auto& candidate = *turn.add_candidates();
      candidate.set_text(Answer(digest, seed.prompt(), request.sampling().seed(), c));
      candidate.set_num_tokens(9);
      if (c > 0 && c == seed.prompt_id() % 5) {  // too long for the reward model
        candidate.set_bad_reason("too_long");
        continue;
      }
      candidate.set_score(Number(Word(reward, candidate.text())));
      if (candidate.score() > turn.candidates(turn.chosen()).score()) turn.set_chosen(c);
    }
    auto& question = *dialogue.add_messages();
    question.set_role("user");
    question.set_content(seed.prompt());
    auto& answer = *dialogue.add_messages();
    answer.set_role("assistant");
    answer.set_content(turn.candidates(turn.chosen()).text());
    if (seed.prompt_id() % 7 == 3) dialogue.set_drop_reason("bad_answer");
  }
  return dialogues;
}

absl::StatusOr<trainer::v1::Job> ScriptedServices::CreateJob(const CallOptions& options,
                                                             const trainer::v1::CreateJobRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before(request.validate_only() ? "ValidateJob" : "CreateJob", options));
  const absl::MutexLock lock(&mutex_);
  if (request.validate_only()) {
    trainer::v1::Job job;
    job.set_numerics_id(numerics_id_);
    return job;
  }
  const std::string name = absl::StrCat("jobs/", request.job_id());
  const auto [job, created] = jobs_.try_emplace(name);
  if (!created && job->second.spec().SerializeAsString() != request.spec().SerializeAsString()) {
    return absl::AlreadyExistsError(name);
  }
  if (created) {
    job->second.set_name(name);
    *job->second.mutable_spec() = request.spec();
    job->second.set_state(trainer::v1::JOB_STATE_RUNNING);
    job->second.set_num_steps(3);
  }
  return job->second;
}

absl::StatusOr<trainer::v1::Job> ScriptedServices::GetJob(const CallOptions& options,
                                                          const trainer::v1::GetJobRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before("GetJob", options));
  const absl::Status trained = Before("Train", options);
  const absl::MutexLock lock(&mutex_);
  const auto job = jobs_.find(request.name());
  if (job == jobs_.end()) return absl::NotFoundError(request.name());
  if (job->second.state() == trainer::v1::JOB_STATE_RUNNING && !trained.ok() && !absl::IsCancelled(trained)) {
    job->second.set_state(trainer::v1::JOB_STATE_FAILED);
    job->second.mutable_error()->set_code(static_cast<int>(trained.code()));
    job->second.mutable_error()->set_message(std::string(trained.message()));
  } else if (job->second.state() == trainer::v1::JOB_STATE_RUNNING && !hold_jobs_) {
    ArtifactDraft draft;
    draft.kind = "model";
    draft.files["model.safetensors"] = Sha256(job->second.spec().SerializeAsString());
    const trainer::v1::JobSpec& spec = job->second.spec();
    for (absl::string_view dataset :
         {absl::string_view(spec.reward_model().dataset()), absl::string_view(spec.sft().dataset()),
          absl::string_view(spec.ppo().dataset()), absl::string_view(spec.grpo().dataset()),
          absl::string_view(spec.dpo().dataset())}) {
      if (absl::ConsumePrefix(&dataset, "artifacts/")) draft.inputs["dataset"] = std::string(dataset);
    }
    ALMOST_ASSIGN_OR_RETURN(const Artifact artifact, store_->Publish(draft));
    job->second.set_output_digest(artifact.digest);
    job->second.set_state(trainer::v1::JOB_STATE_SUCCEEDED);
    (*job->second.mutable_metrics())["loss"] = 0.5;
  }
  return job->second;
}

absl::StatusOr<trainer::v1::ListJobsResponse> ScriptedServices::ListJobs(
    const CallOptions& options, const trainer::v1::ListJobsRequest&) {
  ALMOST_RETURN_IF_ERROR(Before("ListJobs", options));
  trainer::v1::ListJobsResponse response;
  const absl::MutexLock lock(&mutex_);
  for (const auto& [name, job] : jobs_) *response.add_jobs() = job;
  return response;
}

absl::StatusOr<trainer::v1::Job> ScriptedServices::CancelJob(const CallOptions& options,
                                                             const trainer::v1::CancelJobRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before("CancelJob", options));
  const absl::MutexLock lock(&mutex_);
  const auto job = jobs_.find(request.name());
  if (job == jobs_.end()) return absl::NotFoundError(request.name());
  if (job->second.state() == trainer::v1::JOB_STATE_RUNNING ||
      job->second.state() == trainer::v1::JOB_STATE_PAUSED) {
    job->second.set_state(trainer::v1::JOB_STATE_CANCELLED);
  }
  return job->second;
}

absl::StatusOr<trainer::v1::Job> ScriptedServices::PauseJob(const CallOptions& options,
                                                            const trainer::v1::PauseJobRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before("PauseJob", options));
  const absl::MutexLock lock(&mutex_);
  const auto job = jobs_.find(request.name());
  if (job == jobs_.end()) return absl::NotFoundError(request.name());
  if (job->second.state() == trainer::v1::JOB_STATE_RUNNING) {
    job->second.set_state(trainer::v1::JOB_STATE_PAUSED);
  }
  return job->second;
}

absl::StatusOr<trainer::v1::Job> ScriptedServices::ResumeJob(const CallOptions& options,
                                                             const trainer::v1::ResumeJobRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before("ResumeJob", options));
  const absl::MutexLock lock(&mutex_);
  const auto job = jobs_.find(request.name());
  if (job == jobs_.end()) return absl::NotFoundError(request.name());
  const auto error = static_cast<absl::StatusCode>(job->second.error().code());
  const bool has_kept_its_work = error == absl::StatusCode::kUnavailable ||
                                 error == absl::StatusCode::kResourceExhausted ||
                                 error == absl::StatusCode::kFailedPrecondition;
  if (job->second.state() == trainer::v1::JOB_STATE_PAUSED || has_kept_its_work) {
    job->second.set_state(trainer::v1::JOB_STATE_RUNNING);
    job->second.clear_error();
  }
  return job->second;
}

absl::Status ScriptedServices::WatchJob(const CallOptions& options,
                                        const trainer::v1::WatchJobRequest& request,
                                        const std::function<bool(const trainer::v1::JobEvent&)>& use) {
  ALMOST_RETURN_IF_ERROR(Before("WatchJob", options));
  for (int64_t step = request.after_sequence() + 1; step <= 3; ++step) {
    trainer::v1::JobEvent event;
    event.set_sequence(step);
    event.set_step(step);
    event.set_num_steps(3);
    event.set_state(trainer::v1::JOB_STATE_RUNNING);
    (*event.mutable_metrics())["loss"] = 1.0 / static_cast<double>(step);
    (*event.mutable_metrics())["tokens"] = 100;
    if (!use(event)) return absl::OkStatus();
  }
  const absl::MutexLock lock(&mutex_);
  const auto stopped = [this, &options]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return !hold_jobs_ || options.stop.stop_requested();
  };
  // A held job sends nothing for a while.
  for (int i = 0; i < 500 && !stopped(); ++i) {
    mutex_.Unlock();
    absl::SleepFor(absl::Milliseconds(10));
    mutex_.Lock();
  }
  return options.stop.stop_requested() ? absl::CancelledError("stopped") : absl::OkStatus();
}

absl::StatusOr<judge::v1::CompareResponse> ScriptedServices::Compare(
    const CallOptions& options, absl::string_view, const judge::v1::CompareRequest& request) {
  ALMOST_RETURN_IF_ERROR(Before("Compare", options));
  judge::v1::CompareResponse response;
  response.set_judge_id("scripted");
  for (const auto& item : request.items()) {
    const double a = Number(Word(item.prompt(), item.a()));
    const double b = Number(Word(item.prompt(), item.b()));
    auto& judgement = *response.add_items()->mutable_result();
    judgement.set_verdict(a > b   ? judge::v1::VERDICT_A
                          : a < b ? judge::v1::VERDICT_B
                                  : judge::v1::VERDICT_TIE);
    judgement.set_score_a(a);
    judgement.set_score_b(b);
  }
  return response;
}

}  // namespace almost::orchestrator
