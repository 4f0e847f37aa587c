// almost eval: benchmarks of models in the generation and reward services.

#include <filesystem>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "clients/cli/asked_model.h"
#include "clients/cli/evaluation_folder.h"
#include "clients/cli/pages/pages.h"
#include "clients/cli/pairwise_judge.h"
#include "clients/cli/run_follower.h"
#include "clients/cli/verbs.h"
#include "common/base/random.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/base/unicode.h"
#include "common/evaluation/benchmark_files.h"
#include "common/evaluation/benchmarks.h"
#include "common/page/page.h"
#include "common/storage/env.h"

namespace almost::cli {
namespace {

namespace fs = std::filesystem;
namespace pb = almost::judge::v1;
using nlohmann::ordered_json;

struct EvalFlags {
  std::string file, to, model, reward_model, format, form = "p_true", template_file;
  std::string a, b, judge;
  int64_t limit = 0;
  BootstrapSettings bootstrap{.resamples = 2000, .seed = 1};
  types::v1::SamplingParams sampling;
};

// One evaluation: what is asked, the items, and what they come to.
struct Evaluation {
  std::string benchmark;
  ordered_json about;
  int64_t num_items = 0;
  int batch = 32;
  EvaluateBatch evaluate;
  // Of the items that are no error.
  std::function<ordered_json(const std::vector<ordered_json>&)> figures;
  // What the page lists of an item that the item itself does not hold: texts of the file.
  std::function<ordered_json(const ordered_json&)> describe;
};

ordered_json AboutFile(const std::string& file, absl::string_view bytes) {
  return {{"name", fs::path(file).filename().string()}, {"sha256", Sha256(bytes)}};
}

absl::StatusOr<ordered_json> AboutFile(const std::string& file) {
  ALMOST_ASSIGN_OR_RETURN(const std::string bytes, Env::Posix()->Read(file));
  return AboutFile(file, bytes);
}

int64_t NumItems(const EvalFlags& flags, size_t in_file) {
  const auto all = static_cast<int64_t>(in_file);
  return flags.limit > 0 ? std::min(flags.limit, all) : all;
}

int64_t Length(absl::string_view text) { return static_cast<int64_t>(NumCodePoints(text)); }

std::string Joined(const std::vector<Message>& dialogue) {
  std::string text;
  for (size_t i = 0; i + 1 < dialogue.size(); ++i) {
    absl::StrAppend(&text, i == 0 ? "" : "\n\n", dialogue[i].role, ": ", dialogue[i].content);
  }
  return text;
}

// {id, error} in place of an item that is too long for a model; any other error ends the evaluation.
ordered_json TooLong(int64_t id, const absl::Status& status) {
  return {{"id", id}, {"error", std::string(status.message())}};
}

absl::Status Run(const Cli& cli, const EvalFlags& flags, const Evaluation& evaluation) {
  const fs::path to =
      flags.to.empty() ? fs::path(absl::StrCat("eval-", evaluation.benchmark)) : fs::path(flags.to);
  ALMOST_ASSIGN_OR_RETURN(const auto folder, EvaluationFolder::Open(to, evaluation.about));
  ALMOST_RETURN_IF_ERROR(EvaluateMissing(*folder, evaluation.num_items, evaluation.batch,
                                         evaluation.benchmark, cli.json, evaluation.evaluate));
  std::vector<ordered_json> items = folder->Items(evaluation.num_items), whole;
  for (const ordered_json& item : items) {
    if (!item.contains("error")) whole.push_back(item);
  }
  if (whole.empty()) {
    return absl::OutOfRangeError(
        absl::StrCat("no item could be evaluated; the first: ",
                     items.empty() ? "none" : items.front()["error"].get<std::string>()));
  }
  ordered_json result = {{"benchmark", evaluation.benchmark},
                         {"about", evaluation.about},
                         {"items", items.size()},
                         {"left_out_too_long", items.size() - whole.size()},
                         {"figures", evaluation.figures(whole)}};
  ALMOST_RETURN_IF_ERROR(folder->Write("result.json", result.dump(2) + "\n"));
  std::vector<ordered_json> rows;
  for (const ordered_json& item : items) {
    ordered_json row = item;
    if (evaluation.describe) row.update(evaluation.describe(item));
    rows.push_back(std::move(row));
  }
  ALMOST_RETURN_IF_ERROR(folder->Write("report.html", RenderPage(kEvalScript, result, rows)));
  if (cli.json) {
    absl::PrintF("%s\n", result.dump(2));
    return absl::OkStatus();
  }
  ordered_json table = result["figures"];
  if (result["left_out_too_long"] > 0) table["left_out_too_long"] = result["left_out_too_long"];
  ALMOST_RETURN_IF_ERROR(PrintSummary(stdout, table.dump()));
  absl::PrintF("\nReport: %s\n", fs::absolute(to / "report.html").lexically_normal().string());
  return absl::OkStatus();
}

ordered_json PreferenceItem(int64_t id, const Preference& pair, double chosen, double rejected) {
  return {{"id", id},
          {"type", pair.type},
          {"chosen_score", chosen},
          {"rejected_score", rejected},
          {"length_difference", LengthDifference(pair)}};
}

ordered_json DescribePreference(const Preference& pair) {
  return {{"type", pair.type},
          {"context", Joined(pair.chosen)},
          {"chosen", pair.chosen.back().content},
          {"rejected", pair.rejected.back().content}};
}

ordered_json FiguresOfPreferences(const std::vector<Preference>& pairs,
                                  const std::vector<ordered_json>& items,
                                  const BootstrapSettings& bootstrap) {
  std::vector<ScoredPreference> scored;
  for (const ordered_json& item : items) {
    const Preference& pair = pairs[item["id"].get<size_t>()];
    scored.push_back({pair.type, item["chosen_score"], item["rejected_score"], LengthDifference(pair),
                      Length(pair.chosen.back().content)});
  }
  return PreferenceFigures(scored, bootstrap);
}

// Whether a reward model scores the preferred answer higher.
absl::Status Preferences(const Cli& cli, const EvalFlags& flags, const std::string& benchmark,
                         const std::string& format_name) {
  ALMOST_ASSIGN_OR_RETURN(const PreferenceFormat format, PreferenceFormatNamed(format_name));
  ALMOST_ASSIGN_OR_RETURN(const std::vector<Preference> pairs, ReadPreferences(flags.file, format));
  ALMOST_ASSIGN_OR_RETURN(const auto model, AskedModel::Find(cli, "reward", flags.reward_model));
  Evaluation evaluation;
  evaluation.benchmark = benchmark;
  ALMOST_ASSIGN_OR_RETURN(const ordered_json file, AboutFile(flags.file));
  evaluation.about = {
      {"benchmark", benchmark}, {"format", format_name}, {"file", file}, {"reward_model", model->Identity()}};
  evaluation.num_items = NumItems(flags, pairs.size());
  evaluation.evaluate = [&](std::span<const int64_t> ids) -> absl::StatusOr<std::vector<ordered_json>> {
    std::vector<std::vector<Message>> dialogues;
    for (const int64_t id : ids) {
      dialogues.push_back(pairs[static_cast<size_t>(id)].chosen);
      dialogues.push_back(pairs[static_cast<size_t>(id)].rejected);
    }
    ALMOST_ASSIGN_OR_RETURN(const std::vector<absl::StatusOr<double>> scores, model->Rewards(dialogues));
    std::vector<ordered_json> items;
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto &chosen = scores[2 * i], &rejected = scores[2 * i + 1];
      items.push_back(!chosen.ok() ? TooLong(ids[i], chosen.status())
                      : !rejected.ok()
                          ? TooLong(ids[i], rejected.status())
                          : PreferenceItem(ids[i], pairs[static_cast<size_t>(ids[i])], *chosen, *rejected));
    }
    return items;
  };
  evaluation.figures = [&](const std::vector<ordered_json>& items) {
    return FiguresOfPreferences(pairs, items, flags.bootstrap);
  };
  evaluation.describe = [&](const ordered_json& item) {
    return DescribePreference(pairs[item["id"].get<size_t>()]);
  };
  return Run(cli, flags, evaluation);
}

// Whether a policy, asked for A or B, puts more probability on the preferred answer over both orders.
absl::Status HhhChoice(const Cli& cli, const EvalFlags& flags) {
  ALMOST_ASSIGN_OR_RETURN(const std::vector<Preference> pairs,
                          ReadPreferences(flags.file, PreferenceFormat::kHhh));
  ALMOST_ASSIGN_OR_RETURN(const std::string form, ReadTemplate(flags.template_file, kHhhTemplate,
                                                               {"question", "answer_a", "answer_b"}));
  ALMOST_ASSIGN_OR_RETURN(const auto model, AskedModel::Find(cli, "generation", flags.model));
  Evaluation evaluation;
  evaluation.benchmark = "hhh";
  ALMOST_ASSIGN_OR_RETURN(const ordered_json file, AboutFile(flags.file));
  evaluation.about = {
      {"benchmark", "hhh"}, {"file", file}, {"model", model->Identity()}, {"template_sha256", Sha256(form)}};
  evaluation.num_items = NumItems(flags, pairs.size());
  evaluation.batch = 16;  // four continuations a pair
  evaluation.evaluate = [&](std::span<const int64_t> ids) -> absl::StatusOr<std::vector<ordered_json>> {
    std::vector<AskedModel::Continuation> continuations;
    for (const int64_t id : ids) {
      const Preference& pair = pairs[static_cast<size_t>(id)];
      std::string context;
      for (size_t i = 0; i + 1 < pair.chosen.size(); ++i) {
        absl::StrAppend(&context, "\n\n",
                        pair.chosen[i].role == "user" ? "Query: " : "Response: ", pair.chosen[i].content);
      }
      const std::string chosen(StripSpace(pair.chosen.back().content));
      const std::string rejected(StripSpace(pair.rejected.back().content));
      for (const auto& [a, b] : {std::pair(chosen, rejected), std::pair(rejected, chosen)}) {
        const std::string text = FillIn(form, {{"question", context}, {"answer_a", a}, {"answer_b", b}});
        continuations.push_back({text, " A"});
        continuations.push_back({text, " B"});
      }
    }
    ALMOST_ASSIGN_OR_RETURN(const std::vector<absl::StatusOr<double>> sums,
                            model->LogLikelihoods(continuations));
    std::vector<ordered_json> items;
    for (size_t i = 0; i < ids.size(); ++i) {
      absl::Status status;
      double p[4] = {};
      for (size_t k = 0; k < 4; ++k) {
        const absl::StatusOr<double>& sum = sums[4 * i + k];
        if (sum.ok()) p[k] = std::exp(*sum);
        status.Update(sum.status());
      }
      if (!status.ok()) {
        items.push_back(TooLong(ids[i], status));
        continue;
      }
      ordered_json item =
          PreferenceItem(ids[i], pairs[static_cast<size_t>(ids[i])], p[0] + p[3], p[1] + p[2]);
      item["p_chosen_first"] = {p[0], p[1]};
      item["p_chosen_second"] = {p[2], p[3]};
      items.push_back(std::move(item));
    }
    return items;
  };
  evaluation.figures = [&](const std::vector<ordered_json>& items) {
    ordered_json figures = FiguresOfPreferences(pairs, items, flags.bootstrap);
    PositionCounts position;
    for (const ordered_json& item : items) {
      // Of the chosen answer, which is A the one time and B the other.
      const bool wins_first = item["p_chosen_first"][0] > item["p_chosen_first"][1];
      const bool wins_second = item["p_chosen_second"][0] <= item["p_chosen_second"][1];
      position.Add(wins_first ? "win" : "loss", wins_second ? "win" : "loss");
    }
    figures["position"] = ToJson(position);
    return figures;
  };
  evaluation.describe = [&](const ordered_json& item) {
    return DescribePreference(pairs[item["id"].get<size_t>()]);
  };
  return Run(cli, flags, evaluation);
}

absl::Status TruthfulQa(const Cli& cli, const EvalFlags& flags) {
  ALMOST_ASSIGN_OR_RETURN(const std::vector<TruthfulQuestion> questions, ReadTruthfulQa(flags.file));
  const bool p_true = flags.form == "p_true";
  ALMOST_ASSIGN_OR_RETURN(const std::string form,
                          p_true
                              ? ReadTemplate(flags.template_file, kTruthfulTemplate, {"question", "answer"})
                              : ReadTemplate(flags.template_file, kLikelihoodTemplate, {"question"}));
  ALMOST_ASSIGN_OR_RETURN(const auto model, AskedModel::Find(cli, "generation", flags.model));
  Evaluation evaluation;
  evaluation.benchmark = absl::StrCat("truthfulqa_mc1_", flags.form);
  ALMOST_ASSIGN_OR_RETURN(const ordered_json file, AboutFile(flags.file));
  evaluation.about = {{"benchmark", evaluation.benchmark},
                      {"file", file},
                      {"model", model->Identity()},
                      {"template_sha256", Sha256(form)}};
  evaluation.num_items = NumItems(flags, questions.size());
  evaluation.batch = 8;
  evaluation.evaluate = [&](std::span<const int64_t> ids) -> absl::StatusOr<std::vector<ordered_json>> {
    std::vector<AskedModel::Continuation> continuations;
    for (const int64_t id : ids) {
      const TruthfulQuestion& question = questions[static_cast<size_t>(id)];
      for (const std::string& choice : question.choices) {
        const std::string text = FillIn(form, {{"question", question.question}, {"answer", choice}});
        continuations.push_back({text, p_true ? " true" : absl::StrCat(" ", choice)});
      }
    }
    ALMOST_ASSIGN_OR_RETURN(const std::vector<absl::StatusOr<double>> sums,
                            model->LogLikelihoods(continuations));
    std::vector<ordered_json> items;
    size_t next = 0;
    for (const int64_t id : ids) {
      ordered_json scores = ordered_json::array();
      absl::Status status;
      for (size_t c = 0; c < questions[static_cast<size_t>(id)].choices.size(); ++c, ++next) {
        status.Update(sums[next].status());
        scores.push_back(sums[next].ok() ? *sums[next] : 0.0);
      }
      items.push_back(status.ok() ? ordered_json{{"id", id}, {"scores", scores}} : TooLong(id, status));
    }
    return items;
  };
  evaluation.figures = [&](const std::vector<ordered_json>& items) {
    std::vector<ChoiceAnswer> answers;
    for (const ordered_json& item : items) {
      const TruthfulQuestion& question = questions[item["id"].get<size_t>()];
      ChoiceAnswer& answer = answers.emplace_back(ChoiceAnswer{item["scores"], {}, question.truth});
      for (const std::string& choice : question.choices) answer.lengths.push_back(Length(choice));
    }
    return ChoiceFigures(answers, flags.bootstrap);
  };
  evaluation.describe = [&](const ordered_json& item) -> ordered_json {
    const TruthfulQuestion& question = questions[item["id"].get<size_t>()];
    ordered_json described = {{"question", question.question}, {"truth", question.choices[question.truth]}};
    if (item.contains("scores")) {
      const std::vector<double> scores = item["scores"];
      const auto best = static_cast<size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
      described["answer"] = question.choices[best];
      described["right"] = best == question.truth;
    }
    return described;
  };
  return Run(cli, flags, evaluation);
}

absl::Status Perplexity(const Cli& cli, const EvalFlags& flags) {
  ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> documents, ReadDocuments(flags.file));
  ALMOST_ASSIGN_OR_RETURN(const auto model, AskedModel::Find(cli, "generation", flags.model));
  Evaluation evaluation;
  evaluation.benchmark = "perplexity";
  ALMOST_ASSIGN_OR_RETURN(const ordered_json file, AboutFile(flags.file));
  evaluation.about = {{"benchmark", "perplexity"}, {"file", file}, {"model", model->Identity()}};
  evaluation.num_items = NumItems(flags, documents.size());
  evaluation.batch = 4;
  evaluation.evaluate = [&](std::span<const int64_t> ids) -> absl::StatusOr<std::vector<ordered_json>> {
    std::vector<ordered_json> items;
    for (const int64_t id : ids) {
      const std::string& text = documents[static_cast<size_t>(id)];
      ALMOST_ASSIGN_OR_RETURN(const AskedModel::TextScore score, model->ScoreText(text));
      items.push_back({{"id", id},
                       {"nll", -score.sum_logprob},
                       {"tokens", score.tokens},
                       {"bytes", text.size()},
                       {"words", SplitAtSpace(text).size()}});
    }
    return items;
  };
  evaluation.figures = [&](const std::vector<ordered_json>& items) {
    std::vector<DocumentScore> scores;
    for (const ordered_json& item : items) {
      scores.push_back({item["nll"], item["tokens"], item["bytes"], item["words"]});
    }
    return PerplexityFigures(scores, flags.bootstrap);
  };
  evaluation.describe = [&](const ordered_json& item) -> ordered_json {
    return {{"text", documents[item["id"].get<size_t>()]}};
  };
  return Run(cli, flags, evaluation);
}

// One of the two systems that are compared: answers of a file, or a model that is asked.
struct Side {
  std::vector<std::string> answers;
  std::unique_ptr<AskedModel> model;
  ordered_json about;
};

absl::StatusOr<Side> FindSide(const Cli& cli, const std::string& which,
                              const std::vector<BenchmarkPrompt>& prompts) {
  Side side;
  if (absl::EndsWith(which, ".jsonl")) {
    ALMOST_ASSIGN_OR_RETURN(side.answers, ReadAnswers(which, prompts));
    ALMOST_ASSIGN_OR_RETURN(side.about, AboutFile(which));
  } else {
    ALMOST_ASSIGN_OR_RETURN(side.model, AskedModel::Find(cli, "generation", which));
    side.about = side.model->Identity();
  }
  return side;
}

std::string Opposite(const std::string& verdict) {
  return verdict == "win" ? "loss" : verdict == "loss" ? "win" : verdict;
}

absl::Status Pairwise(const Cli& cli, const EvalFlags& flags, const std::string& benchmark) {
  ALMOST_ASSIGN_OR_RETURN(const std::vector<BenchmarkPrompt> prompts, ReadPromptFile(flags.file));
  ALMOST_ASSIGN_OR_RETURN(const Side a, FindSide(cli, flags.a, prompts));
  ALMOST_ASSIGN_OR_RETURN(const Side b, FindSide(cli, flags.b, prompts));
  ALMOST_ASSIGN_OR_RETURN(const auto judge, PairwiseJudge::Find(cli, flags.judge, flags.template_file));
  Evaluation evaluation;
  evaluation.benchmark = benchmark;
  ALMOST_ASSIGN_OR_RETURN(const ordered_json file, AboutFile(flags.file));
  evaluation.about = {
      {"benchmark", benchmark}, {"file", file}, {"a", a.about}, {"b", b.about}, {"judge", judge->about()}};
  if (a.model || b.model) {
    evaluation.about["sampling"] = {{"temperature", flags.sampling.temperature()},
                                    {"top_p", flags.sampling.top_p()},
                                    {"max_new_tokens", flags.sampling.max_new_tokens()},
                                    {"seed", flags.sampling.seed()}};
  }
  evaluation.num_items = NumItems(flags, prompts.size());
  evaluation.batch = 16;
  // Answers of one side to these prompts.
  const auto answers_of =
      [&](const Side& side, const std::string& name,
          std::span<const int64_t> ids) -> absl::StatusOr<std::vector<absl::StatusOr<std::string>>> {
    std::vector<absl::StatusOr<std::string>> answers;
    if (!side.model) {
      for (const int64_t id : ids) answers.push_back(side.answers[static_cast<size_t>(id)]);
      return answers;
    }
    std::vector<generation::v1::GenerateItem> items;
    for (const int64_t id : ids) {
      generation::v1::GenerateItem& item = items.emplace_back();
      types::v1::Message& message = *item.mutable_input()->mutable_messages()->add_messages();
      message.set_role("user");
      message.set_content(prompts[static_cast<size_t>(id)].text);
      *item.mutable_sampling() = flags.sampling;
      item.mutable_sampling()->set_seed(
          DeriveSeed(DeriveSeed(flags.sampling.seed(), name), static_cast<uint64_t>(id)));
    }
    ALMOST_ASSIGN_OR_RETURN(const auto completions, side.model->Complete(items));
    for (const auto& completion : completions) {
      if (completion.ok()) {
        answers.push_back(std::string(StripSpace(completion->text())));
      } else {
        answers.push_back(completion.status());
      }
    }
    return answers;
  };
  evaluation.evaluate = [&](std::span<const int64_t> ids) -> absl::StatusOr<std::vector<ordered_json>> {
    ALMOST_ASSIGN_OR_RETURN(const auto of_a, answers_of(a, "a", ids));
    ALMOST_ASSIGN_OR_RETURN(const auto of_b, answers_of(b, "b", ids));
    std::vector<pb::Comparison> comparisons;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (!of_a[i].ok() || !of_b[i].ok()) continue;
      for (const bool a_is_first : {true, false}) {
        pb::Comparison& comparison = comparisons.emplace_back();
        comparison.set_prompt(prompts[static_cast<size_t>(ids[i])].text);
        comparison.set_a(*(a_is_first ? of_a : of_b)[i]);
        comparison.set_b(*(a_is_first ? of_b : of_a)[i]);
      }
    }
    std::vector<absl::StatusOr<Review>> reviews;
    if (!comparisons.empty()) {
      ALMOST_ASSIGN_OR_RETURN(reviews, judge->Compare(comparisons));
    }
    std::vector<ordered_json> items;
    size_t next = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (!of_a[i].ok() || !of_b[i].ok()) {
        items.push_back(TooLong(ids[i], of_a[i].ok() ? of_b[i].status() : of_a[i].status()));
        continue;
      }
      const auto &there = reviews[next], &back = reviews[next + 1];
      next += 2;
      if (!there.ok() || !back.ok()) {
        items.push_back(TooLong(ids[i], there.ok() ? back.status() : there.status()));
        continue;
      }
      items.push_back({{"id", ids[i]},
                       {"a", *of_a[i]},
                       {"b", *of_b[i]},
                       {"a_first", there->verdict},
                       {"b_first", Opposite(back->verdict)},
                       {"judge", {there->detail, back->detail}}});
    }
    return items;
  };
  evaluation.figures = [&](const std::vector<ordered_json>& items) {
    std::vector<PairwiseOutcome> outcomes;
    for (const ordered_json& item : items) {
      outcomes.push_back({prompts[item["id"].get<size_t>()].category, item["a_first"], item["b_first"],
                          Length(item["a"].get<std::string>()), Length(item["b"].get<std::string>())});
    }
    return PairwiseFigures(outcomes, flags.bootstrap);
  };
  evaluation.describe = [&](const ordered_json& item) -> ordered_json {
    const BenchmarkPrompt& prompt = prompts[item["id"].get<size_t>()];
    ordered_json described = {{"prompt", prompt.text}, {"category", prompt.category}};
    if (item.contains("a_first")) {
      described["verdict"] =
          CombineOrders(item["a_first"].get<std::string>(), item["b_first"].get<std::string>());
      described["length_difference"] =
          Length(item["a"].get<std::string>()) - Length(item["b"].get<std::string>());
    }
    return described;
  };
  return Run(cli, flags, evaluation);
}

}  // namespace

void AddEval(CLI::App& app, Cli& cli) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* eval = app.add_subcommand(
      "eval",
      "Benchmarks, into a folder with the items, result.json and report.html; the same command goes on");
  eval->require_subcommand(1);
  const auto verb = [&](const char* name, const char* help, const char* file, auto run) {
    CLI::App* added = eval->add_subcommand(name, help);
    added->add_option("FILE", flags->file, file)->required();
    added->add_option("--to", flags->to, "The folder; by default eval-BENCHMARK here");
    added->add_option("--limit", flags->limit, "The first so many items alone")->check(CLI::PositiveNumber);
    added->add_option("--bootstrap", flags->bootstrap.resamples, "Resamples of intervals")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    added->callback([&cli, run] { cli.action = run; });
    return added;
  };
  const auto with_model = [&](CLI::App* added) {
    return added->add_option("--model", flags->model, absl::StrCat("A policy: ", kModelArgument));
  };
  const auto with_reward_model = [&](CLI::App* added) {
    return added->add_option("--reward_model", flags->reward_model,
                             absl::StrCat("A reward model: ", kModelArgument));
  };
  const auto with_template = [&](CLI::App* added, const char* places) {
    added->add_option("--template", flags->template_file,
                      absl::StrCat("File of the wording, with the places ", places));
  };

  CLI::App* hhh =
      verb("hhh", "Static HHH: is the better answer scored higher, or chosen of A and B in both orders",
           "hhh_eval.json", [&cli, flags] {
             if (!flags->model.empty()) return HhhChoice(cli, *flags);
             if (!flags->reward_model.empty()) return Preferences(cli, *flags, "hhh", "hhh");
             return absl::Status(absl::InvalidArgumentError("eval hhh: needs --reward_model or --model"));
           });
  CLI::Option* hhh_model = with_model(hhh);
  CLI::Option* hhh_reward = with_reward_model(hhh);
  hhh_model->excludes(hhh_reward);
  with_template(hhh, "{question}, {answer_a} and {answer_b}");

  CLI::App* preferences = verb("preferences", "Preference pairs: is the chosen answer scored higher",
                               "JSON Lines of pairs, plain or gzip", [&cli, flags] {
                                 return Preferences(cli, *flags, "preferences", flags->format);
                               });
  preferences->add_option("--format", flags->format, "hh-rlhf, rewardbench, comparisons or hhh")
      ->required()
      ->check(CLI::IsMember({"hh-rlhf", "rewardbench", "comparisons", "hhh"}));
  with_reward_model(preferences)->required();

  CLI::App* truthful = verb("truthfulqa", "TruthfulQA-MC1: is the true choice the likeliest", "mc_task.json",
                            [&cli, flags] { return TruthfulQa(cli, *flags); });
  with_model(truthful)->required();
  truthful
      ->add_option("--form", flags->form,
                   "p_true: which answer is called true with the highest probability (naver-ai/ALMoST); "
                   "likelihood: which "
                   "answer itself has the highest (lm-evaluation-harness)")
      ->check(CLI::IsMember({"p_true", "likelihood"}))
      ->capture_default_str();
  with_template(truthful, "{question} and, for p_true, {answer}");

  CLI::App* perplexity =
      verb("perplexity", "Perplexity and bits per byte of documents", "JSON Lines of {text}, or one text",
           [&cli, flags] { return Perplexity(cli, *flags); });
  with_model(perplexity)->required();

  types::v1::SamplingParams& sampling = flags->sampling;
  sampling.set_temperature(0.7);  // the three are the official code's
  sampling.set_top_p(1);
  sampling.set_max_new_tokens(1024);
  sampling.set_seed(1);
  for (const char* name : {"vicuna", "pairwise"}) {
    const std::string benchmark = name;
    CLI::App* pairwise = verb(
        name,
        benchmark == "vicuna" ? "Vicuna's questions: whose answer does a judge prefer, asked in both orders"
                              : "The same with any prompts",
        "JSON Lines of {question_id, text, category} or {prompt}, or a prompt a line",
        [&cli, flags, benchmark] { return Pairwise(cli, *flags, benchmark); });
    const char* side =
        "a model's id in the generation service, or answers: a file of {question_id, text}, .jsonl";
    pairwise->add_option("--a", flags->a, absl::StrCat("The system whose wins count: ", side))->required();
    pairwise->add_option("--b", flags->b, absl::StrCat("The one it is compared with: ", side))->required();
    pairwise
        ->add_option("--judge", flags->judge,
                     "reward:MODEL, llm:MODEL, service:HOST:PORT or service:up:judge")
        ->required();
    with_template(pairwise, "{question}, {answer_1} and {answer_2}, for llm:");
    pairwise->add_option_function<double>(
        "--temperature", [&sampling](double value) { sampling.set_temperature(value); },
        "Of answers; default 0.7");
    pairwise->add_option_function<double>(
        "--top_p", [&sampling](double value) { sampling.set_top_p(value); }, "Of answers; default 1");
    pairwise->add_option_function<int>(
        "--max_new_tokens", [&sampling](int value) { sampling.set_max_new_tokens(value); },
        "Of answers; default 1024");
    pairwise
        ->add_option_function<uint64_t>(
            "--seed", [&sampling](uint64_t value) { sampling.set_seed(value); }, "Of answers; default 1")
        ->check(CLI::NonNegativeNumber);
  }
}

}  // namespace almost::cli
