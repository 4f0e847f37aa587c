#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace almost {

// Where a piece of work is in a distributed trace: W3C Trace Context, version 00. The suite passes it from
// call to call and writes the trace id into its logs; it exports no spans.
struct Trace {
  std::string trace_id;  // 32 lowercase hexadecimal digits, not all zero; empty: of no trace
  std::string span_id;   // 16 of them: the call that is being handled
  bool sampled = true;

  // Of work that nobody's call began. Ids are random.
  static Trace New();
  // nullopt: not a well-formed traceparent. One of a later version is read as far as it is one of version 00.
  static std::optional<Trace> Parse(absl::string_view traceparent);

  // The same trace with a span of its own, for a call made in the course of this one.
  Trace Child() const;
  // The value of the header traceparent.
  std::string Header() const;
};

// What the calling thread works for; of no trace unless a TraceScope is alive.
const Trace& CurrentTrace();

// Makes `trace` the calling thread's until destroyed, then what was there before. Work handed to another
// thread takes CurrentTrace() along and opens a scope there. Scopes of one thread end in reverse order.
class TraceScope {
 public:
  explicit TraceScope(Trace trace);
  ~TraceScope();
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  Trace before_;
};

}  // namespace almost
