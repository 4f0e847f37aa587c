#pragma once

#include <functional>
#include <map>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "common/rpc/peer_tls.h"

namespace almost::cli {

// What all verbs share: the flags that may stand anywhere on the command line, and what is to be done.
struct Cli {
  // Folder of the journal and the artifacts; `almost up` leaves the services' addresses in it.
  std::string store = "almost-store";
  // Whether results are printed as JSON, for programs.
  bool json = false;
  // host:port by service, where the command line names them; the others are looked up (see endpoints.h).
  std::map<std::string, std::string> addresses;
  // File of the token shown to the services; empty: none.
  std::string token_file;
  PeerTls tls;
  // Set by the verb on the command line.
  std::function<absl::Status()> action;
};

// Each adds one verb (or a group of them) to `app`; when it is chosen it sets `cli.action`. `cli` must
// outlive both. Verbs only translate between the command line and the services or libraries that do the work.
void AddUp(CLI::App& app, Cli& cli);
void AddRun(CLI::App& app, Cli& cli);
void AddRuns(CLI::App& app, Cli& cli);
void AddArtifacts(CLI::App& app, Cli& cli);
void AddGenerate(CLI::App& app, Cli& cli);
void AddEval(CLI::App& app, Cli& cli);
void AddInspect(CLI::App& app, Cli& cli);
void AddTrain(CLI::App& app, Cli& cli);
void AddJobs(CLI::App& app, Cli& cli);
void AddData(CLI::App& app, Cli& cli);
void AddWorld(CLI::App& app, Cli& cli);
void AddDoctor(CLI::App& app, Cli& cli);

}  // namespace almost::cli
