#include "common/metrics/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "prometheus/metric_family.h"

namespace almost {
namespace {

using Families = std::vector<prometheus::MetricFamily>;

void Add(Families& families, const char* name, const char* help, prometheus::MetricType type, double value) {
  prometheus::MetricFamily family{name, help, type, {}};
  prometheus::ClientMetric metric;
  if (type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family.metric.push_back(metric);
  families.push_back(std::move(family));
}

// /proc/self/stat from its third field on; the second, the command's name, may hold spaces. Empty: not there.
std::vector<double> StatFields() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  const size_t end_of_name = line.rfind(')');
  if (end_of_name == std::string::npos) return {};
  std::vector<double> fields;
  for (const absl::string_view text : absl::StrSplit(line.substr(end_of_name + 1), ' ', absl::SkipEmpty())) {
    double value = 0;
    if (!absl::SimpleAtod(text, &value)) value = 0;  // the state, a letter
    fields.push_back(value);
  }
  return fields;
}

// Seconds since 1970 at which the machine started; 0: not known.
double BootTime() {
  std::ifstream file("/proc/stat");
  std::string word;
  while (file >> word) {
    double seconds = 0;
    if (word == "btime" && file >> seconds) return seconds;
  }
  return 0;
}

}  // namespace

Families ProcessMetrics::Collect() const {
  using Type = prometheus::MetricType;
  // Numbered as in proc(5), from 1.
  constexpr size_t kFirst = 3, kUserTime = 14, kSystemTime = 15, kStart = 22, kVirtual = 23, kResident = 24;
  Families families;
  const std::vector<double> stat = StatFields();
  if (stat.size() > kResident - kFirst) {
    const auto ticks_per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
    Add(families, "process_cpu_seconds_total", "User and system CPU time.", Type::Counter,
        (stat[kUserTime - kFirst] + stat[kSystemTime - kFirst]) / ticks_per_second);
    Add(families, "process_virtual_memory_bytes", "Virtual memory.", Type::Gauge, stat[kVirtual - kFirst]);
    Add(families, "process_resident_memory_bytes", "Resident memory.", Type::Gauge,
        stat[kResident - kFirst] * static_cast<double>(sysconf(_SC_PAGESIZE)));
    if (const double boot = BootTime(); boot > 0) {
      Add(families, "process_start_time_seconds", "Start of the process, since 1970.", Type::Gauge,
          boot + stat[kStart - kFirst] / ticks_per_second);
    }
  }
  std::error_code error;
  double open_files = 0;
  for (std::filesystem::directory_iterator entry("/proc/self/fd", error), end; !error && entry != end;
       entry.increment(error)) {
    ++open_files;
  }
  if (!error) Add(families, "process_open_fds", "Open file descriptors.", Type::Gauge, open_files);
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    Add(families, "process_max_fds", "Most file descriptors that may be open.", Type::Gauge,
        static_cast<double>(limit.rlim_cur));
  }
  return families;
}

}  // namespace almost
