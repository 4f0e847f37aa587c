#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <map>
#include <string>
#include <vector>

#include "common/metrics/build_info.h"
#include "common/metrics/process_metrics.h"

namespace almost {
namespace {

TEST(ProcessMetricsTest, ReadsThisProcess) {
  // Enough that it is seen among the rest of the process.
  const std::vector<char> memory(64 << 20, 'x');
  std::map<std::string, double> values;
  for (const prometheus::MetricFamily& family : ProcessMetrics().Collect()) {
    const prometheus::ClientMetric& metric = family.metric.at(0);
    values[family.name] =
        family.type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value;
  }
  EXPECT_EQ(values.size(), 6);
  EXPECT_GE(values["process_cpu_seconds_total"], 0);
  EXPECT_LT(values["process_cpu_seconds_total"], 600);
  EXPECT_GT(values["process_resident_memory_bytes"], static_cast<double>(memory.size()));
  EXPECT_GE(values["process_virtual_memory_bytes"], values["process_resident_memory_bytes"]);
  EXPECT_GE(values["process_open_fds"], 3);
  EXPECT_GT(values["process_max_fds"], values["process_open_fds"]);
  // The kernel gives the boot in whole seconds.
  const auto now = static_cast<double>(std::time(nullptr));
  EXPECT_LE(values["process_start_time_seconds"], now + 2);
  EXPECT_GT(values["process_start_time_seconds"], now - 600);
}

TEST(BuildInfoTest, NamesTheVersionAndTheCommit) {
  prometheus::Registry registry;
  ExportBuildInfo(registry, "none", "cpu");
  const prometheus::MetricFamily family = registry.Collect().at(0);
  EXPECT_EQ(family.name, "almost_build_info");
  EXPECT_EQ(family.metric.at(0).gauge.value, 1);
  std::map<std::string, std::string> labels;
  for (const auto& label : family.metric.at(0).label) labels[label.name] = label.value;
  EXPECT_THAT(labels["version"], testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+"));
  EXPECT_THAT(labels["git_sha"], testing::MatchesRegex("[0-9a-f]{40}|unknown"));
  EXPECT_EQ(labels["torch"], "none");
  EXPECT_EQ(labels["device"], "cpu");
}

}  // namespace
}  // namespace almost
