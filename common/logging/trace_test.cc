#include "common/logging/trace.h"

#include <gtest/gtest.h>

#include <thread>

#include "common/logging/logging.h"

namespace almost {
namespace {

constexpr char kHeader[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST(TraceTest, ReadsWhatItWrites) {
  const auto trace = Trace::Parse(kHeader);
  ASSERT_TRUE(trace.has_value());
  EXPECT_EQ(trace->trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(trace->span_id, "00f067aa0ba902b7");
  EXPECT_EQ(trace->Header(), kHeader);
  const Trace made = Trace::New();
  EXPECT_EQ(Trace::Parse(made.Header())->Header(), made.Header());
}

TEST(TraceTest, KeepsTheSampledFlagAndDropsFlagsItDoesNotKnow) {
  const std::string ids = std::string(kHeader).substr(0, 53);
  EXPECT_EQ(Trace::Parse(ids + "00")->Header(), ids + "00");
  EXPECT_EQ(Trace::Parse(ids + "ff")->Header(), ids + "01");
  EXPECT_EQ(Trace::Parse(ids + "fe")->Header(), ids + "00");
}

TEST(TraceTest, RefusesWhatTheStandardRefuses) {
  for (const char* header : {
           "",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
           "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
           "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
           "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
           "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
           "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
       }) {
    EXPECT_FALSE(Trace::Parse(header).has_value()) << header;
  }
  EXPECT_TRUE(Trace::Parse("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").has_value());
}

TEST(TraceTest, AChildIsOfTheSameTraceWithASpanOfItsOwn) {
  const Trace parent = Trace::New(), child = parent.Child();
  EXPECT_EQ(child.trace_id, parent.trace_id);
  EXPECT_NE(child.span_id, parent.span_id);
  EXPECT_NE(Trace::New().trace_id, parent.trace_id);
}

TEST(TraceTest, AScopeIsOfItsThreadAndEnds) {
  EXPECT_EQ(CurrentTrace().trace_id, "");
  const Trace outer = Trace::New(), inner = Trace::New();
  {
    const TraceScope scope(outer);
    {
      const TraceScope nested(inner);
      EXPECT_EQ(CurrentTrace().trace_id, inner.trace_id);
      std::jthread([] { EXPECT_EQ(CurrentTrace().trace_id, ""); });
    }
    EXPECT_EQ(CurrentTrace().trace_id, outer.trace_id);
    testing::internal::CaptureStderr();
    log::Info("event", {{"n", 1}});
    const auto line = nlohmann::json::parse(testing::internal::GetCapturedStderr());
    EXPECT_EQ(line.at("trace_id"), outer.trace_id);
    EXPECT_EQ(line.at("n"), 1);
  }
  testing::internal::CaptureStderr();
  log::Info("event");
  EXPECT_FALSE(nlohmann::json::parse(testing::internal::GetCapturedStderr()).contains("trace_id"));
}

}  // namespace
}  // namespace almost
