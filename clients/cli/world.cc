// almost world: a world's corpus, questions and judge.

#include <fstream>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "clients/cli/verbs.h"
#include "clients/cli/world_judge.h"
#include "common/base/status_macros.h"
#include "common/logging/logging.h"
#include "common/metrics/build_info.h"
#include "common/rpc/server.h"
#include "common/storage/json_lines.h"
#include "common/text/hugging_face_tokenizer.h"
#include "common/world/corpus.h"
#include "common/world/question.h"
#include "prometheus/registry.h"

namespace almost::cli {
namespace {

struct WorldFlags {
  std::string name = "tiny";
  uint64_t seed = 0;
  uint64_t first = 0;
  uint64_t count = 0;
  int vocab_size = 0;
  ServerOptions server;

  const world::World& world() const { return *world::World::Named(name); }
};

absl::Status Corpus(const WorldFlags& flags) {
  for (uint64_t i = 0; i < flags.count; ++i) {
    std::string line;
    ALMOST_RETURN_IF_ERROR(AppendJsonLine(
        nlohmann::ordered_json{{"text", world::CorpusDocument(flags.world(), flags.seed, flags.first + i)}},
        &line));
    std::cout << line;
  }
  std::cout.flush();
  return std::cout ? absl::OkStatus() : absl::UnavailableError("cannot write to the standard output");
}

absl::Status Tokenizer(const WorldFlags& flags) {
  ALMOST_ASSIGN_OR_RETURN(
      const std::string json,
      TrainByteLevelBpe(world::CorpusDocuments(flags.world(), flags.seed, flags.first, flags.count),
                        flags.vocab_size, "<|endoftext|>"));
  std::cout << json;
  std::cout.flush();
  return std::cout ? absl::OkStatus() : absl::UnavailableError("cannot write to the standard output");
}

absl::Status Questions(const Cli& cli, const WorldFlags& flags) {
  for (const world::Question& question :
       world::EvaluationQuestions(flags.world(), flags.seed, static_cast<int>(flags.count))) {
    std::string line = absl::StrCat(world::QuestionText(flags.world(), question), "\n");
    if (cli.json) {
      line.clear();
      ALMOST_RETURN_IF_ERROR(
          AppendJsonLine(nlohmann::ordered_json{{"prompt", world::QuestionText(flags.world(), question)},
                                                {"kind", std::string(world::KindName(question.kind))}},
                         &line));
    }
    std::cout << line;
  }
  std::cout.flush();
  return std::cout ? absl::OkStatus() : absl::UnavailableError("cannot write to the standard output");
}

absl::Status Judge(const WorldFlags& flags) {
  BlockStopSignals();
  ALMOST_RETURN_IF_ERROR(log::Start("judge", flags.server.log_level));
  prometheus::Registry registry;
  ExportBuildInfo(registry, "none", "none");
  WorldJudge judge(flags.world());
  ALMOST_ASSIGN_OR_RETURN(
      const std::unique_ptr<Server> server,
      Server::Start(flags.server, {{judge::v1::JudgeService::service_full_name(), &judge}}, registry));
  server->SetReady();
  server->WaitForStop();
  return absl::OkStatus();
}

}  // namespace

void AddWorld(CLI::App& app, Cli& cli) {
  CLI::App* world = app.add_subcommand("world", "The tiny world, or the large one: corpus, questions, judge");
  world->require_subcommand(1);
  auto flags = std::make_shared<WorldFlags>();
  const auto add_name = [flags](CLI::App* command) {
    command->add_option("--world", flags->name, "tiny or large")
        ->check(CLI::IsMember({"tiny", "large"}))
        ->capture_default_str();
  };

  CLI::App* corpus =
      world->add_subcommand("corpus", "Documents that vanilla models learn from, as JSON Lines of {text}");
  CLI::App* tokenizer =
      world->add_subcommand("tokenizer", "A byte-level BPE learnt from the corpus, as a tokenizer.json");
  for (CLI::App* of_corpus : {corpus, tokenizer}) {
    add_name(of_corpus);
    of_corpus->add_option("--seed", flags->seed, "Of the corpus")
        ->capture_default_str()
        ->check(CLI::NonNegativeNumber);
    of_corpus->add_option("--first", flags->first, "Number of the first document")
        ->capture_default_str()
        ->check(CLI::NonNegativeNumber);
    of_corpus->add_option("--count", flags->count, "How many documents")
        ->required()
        ->check(CLI::NonNegativeNumber);
  }
  tokenizer->add_option("--vocab_size", flags->vocab_size, "Most tokens, at least 257")->required();
  corpus->callback([&cli, flags] { cli.action = [flags] { return Corpus(*flags); }; });
  tokenizer->callback([&cli, flags] { cli.action = [flags] { return Tokenizer(*flags); }; });

  CLI::App* questions = world->add_subcommand("questions", "Held-out questions, one a line");
  add_name(questions);
  questions->add_option("--seed", flags->seed, "Of the draw")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  questions->add_option("--count", flags->count, "How many questions")
      ->required()
      ->check(CLI::Range(1, 100000));
  questions->callback([&cli, flags] { cli.action = [&cli, flags] { return Questions(cli, *flags); }; });

  CLI::App* judge = world->add_subcommand("judge", "Serves the ground truth as a JudgeService");
  add_name(judge);
  AddServerFlags(*judge, flags->server, "127.0.0.1:50056", "127.0.0.1:9456");
  judge->callback([&cli, flags] {
    cli.action = [&cli, flags] {
      if (flags->server.token_file.empty()) flags->server.token_file = cli.token_file;
      return Judge(*flags);
    };
  });
}

}  // namespace almost::cli
