#pragma once

#include <string>

#include "prometheus/registry.h"

namespace almost {

// What this binary was built from. The commit is that of the checkout when it was built, whatever was changed
// in it by hand; "unknown" where the sources are no checkout.
struct BuildInfo {
  std::string version;
  std::string git_sha;

  static const BuildInfo& OfThisBinary();
};

// almost_build_info{version,git_sha,torch,device} = 1. `torch`: LibTorch's version, or "none"; `device`: what
// the service's models compute on, "cpu", "cuda:N" or "none". Once, in main.
void ExportBuildInfo(prometheus::Registry& registry, const std::string& torch, const std::string& device);

}  // namespace almost
