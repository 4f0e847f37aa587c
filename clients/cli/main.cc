// almost: the command line of the suite.

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "clients/cli/verbs.h"

namespace {

// gRPC sends calls to this machine's own services through a proxy that the environment names, too. Also for
// the services that `almost up` starts.
void AskNoProxyForThisMachine() {
  const char* hosts = getenv("no_grpc_proxy");
  if (hosts == nullptr) hosts = getenv("no_proxy");
  std::string all = "127.0.0.1,localhost,::1";
  if (hosts != nullptr) absl::StrAppend(&all, ",", hosts);
  setenv("no_grpc_proxy", all.c_str(), /*overwrite=*/1);
}

}  // namespace

int main(int argc, char** argv) {
  using almost::cli::Cli;
  Cli cli;
  CLI::App app{"Aligns language models through synthetic feedback: from vanilla models to an RL-trained one.",
               "almost"};
  app.require_subcommand(1);
  app.fallthrough();  // verbs take the common flags too
  app.set_version_flag("--version", "almost " ALMOST_VERSION);
  app.set_help_all_flag("--help-all", "Help of all verbs");

  app.add_option("--store", cli.store,
                 "Folder of journal and artifacts, where `almost up` leaves its addresses")
      ->envname("ALMOST_STORE")
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--output", [&cli](const std::string& format) { cli.json = format == "json"; }, "text or json")
      ->check(CLI::IsMember({"text", "json"}));
  app.add_option("--token_file", cli.token_file, "File of the token that the services ask for");
  almost::AddPeerTlsFlags(app, cli.tls, "");
  for (const char* service : {"generation", "reward", "simulator", "trainer", "orchestrator"}) {
    app.add_option_function<std::string>(
           absl::StrFormat("--%s", service),
           [&cli, service](const std::string& address) { cli.addresses[service] = address; },
           absl::StrFormat("host:port of the %s service", service))
        ->group("Addresses (default: those of `almost up`, else the default ports of this machine)");
  }

  almost::cli::AddUp(app, cli);
  almost::cli::AddRun(app, cli);
  almost::cli::AddRuns(app, cli);
  almost::cli::AddArtifacts(app, cli);
  almost::cli::AddGenerate(app, cli);
  almost::cli::AddEval(app, cli);
  almost::cli::AddInspect(app, cli);
  almost::cli::AddTrain(app, cli);
  almost::cli::AddJobs(app, cli);
  almost::cli::AddData(app, cli);
  almost::cli::AddWorld(app, cli);
  almost::cli::AddDoctor(app, cli);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;  // 2: the command line itself is wrong
  }
  AskNoProxyForThisMachine();
  absl::Status status = cli.action();
  if ((fflush(stdout) != 0 || ferror(stdout) != 0) && status.ok()) {
    status = absl::DataLossError("cannot write to the standard output; what it shows is not all");
  }
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "almost: %s\n", status.message());
  return 1;
}
