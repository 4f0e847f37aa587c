#include "common/logging/trace.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace almost {
namespace {

constexpr size_t kTraceDigits = 32, kSpanDigits = 16;
// "00-" trace "-" span "-" flags
constexpr size_t kHeaderLength = 2 + 1 + kTraceDigits + 1 + kSpanDigits + 1 + 2;

// Never zero, so that no id made of it is.
uint64_t RandomId() {
  thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed = {device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  uint64_t id = 0;
  while (id == 0) id = generator();
  return id;
}

std::string Hex(uint64_t id) { return absl::StrCat(absl::Hex(id, absl::kZeroPad16)); }

bool IsLowerHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'); });
}

bool IsId(absl::string_view text) {
  return IsLowerHex(text) && text.find_first_not_of('0') != absl::string_view::npos;
}

Trace& ThreadsTrace() {
  thread_local Trace trace;
  return trace;
}

}  // namespace

Trace Trace::New() { return {absl::StrCat(Hex(RandomId()), Hex(RandomId())), Hex(RandomId())}; }

std::optional<Trace> Trace::Parse(absl::string_view header) {
  if (header.size() < kHeaderLength) return std::nullopt;
  const absl::string_view version = header.substr(0, 2), trace = header.substr(3, kTraceDigits),
                          span = header.substr(4 + kTraceDigits, kSpanDigits),
                          flags = header.substr(kHeaderLength - 2, 2);
  const bool well_formed = header[2] == '-' && header[3 + kTraceDigits] == '-' &&
                           header[kHeaderLength - 3] == '-' && IsLowerHex(version) && version != "ff" &&
                           IsId(trace) && IsId(span) && IsLowerHex(flags);
  if (!well_formed) return std::nullopt;
  if (header.size() > kHeaderLength && (version == "00" || header[kHeaderLength] != '-')) return std::nullopt;
  const bool sampled = absl::string_view("13579bdf").find(flags[1]) != absl::string_view::npos;
  return Trace{std::string(trace), std::string(span), sampled};
}

Trace Trace::Child() const { return {trace_id, Hex(RandomId()), sampled}; }

std::string Trace::Header() const {
  return absl::StrCat("00-", trace_id, "-", span_id, sampled ? "-01" : "-00");
}

const Trace& CurrentTrace() { return ThreadsTrace(); }

TraceScope::TraceScope(Trace trace) : before_(std::exchange(ThreadsTrace(), std::move(trace))) {}
TraceScope::~TraceScope() { ThreadsTrace() = std::move(before_); }

}  // namespace almost
