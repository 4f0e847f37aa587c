#pragma once

#include <string>

#include "absl/time/time.h"
#include "common/metrics/metrics_server.h"
#include "services/simulator/core/dialogue.h"
#include "services/simulator/core/prompt_round.h"

namespace almost::simulator {

// almost_simulator_*: what the simulator service counts. Labels: outcome, "kept" or a drop reason from the
// fixed lists of prompt_round.h and dialogue.h. Thread-safe.
class Metrics {
 public:
  explicit Metrics(prometheus::Registry& registry)
      : prompts_(prometheus::BuildCounter()
                     .Name("almost_simulator_prompts_total")
                     .Help("Prompts mined, by outcome.")
                     .Register(registry)),
        dialogues_(prometheus::BuildCounter()
                       .Name("almost_simulator_dialogues_total")
                       .Help("Dialogues played, by outcome.")
                       .Register(registry)),
        candidates_(prometheus::BuildCounter()
                        .Name("almost_simulator_candidates_total")
                        .Help("Answers considered.")
                        .Register(registry)
                        .Add({})),
        turn_seconds_(prometheus::BuildHistogram()
                          .Name("almost_simulator_turn_seconds")
                          .Help("Time of one turn of a batch of dialogues.")
                          .Register(registry)
                          .Add({}, LatencyBuckets())),
        best_of_n_gain_(
            prometheus::BuildHistogram()
                .Name("almost_simulator_best_of_n_gain")
                .Help("Normalised score of a turn's chosen answer above the mean of its candidates.")
                .Register(registry)
                .Add({}, prometheus::Histogram::BucketBoundaries{-1, -0.5, 0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3,
                                                                 4})) {}

  void Mined(const MinedPrompt& prompt) { prompts_.Add(Outcome(prompt.drop_reason)).Increment(); }
  void Turn(absl::Duration time) { turn_seconds_.Observe(absl::ToDoubleSeconds(time)); }
  void Played(const Dialogue& dialogue) {
    dialogues_.Add(Outcome(dialogue.drop_reason())).Increment();
    for (const AssistantTurn& turn : dialogue.turns()) {
      candidates_.Increment(static_cast<double>(turn.candidates.size()));
      if (turn.chosen < 0) continue;
      double sum = 0;
      int scored = 0;
      for (const Candidate& candidate : turn.candidates) {
        if (!candidate.score.has_value()) continue;
        sum += candidate.score->normalized;
        ++scored;
      }
      best_of_n_gain_.Observe(turn.candidates[turn.chosen].score->normalized - sum / scored);
    }
  }

 private:
  static prometheus::Labels Outcome(const std::string& drop_reason) {
    return {{"outcome", drop_reason.empty() ? "kept" : drop_reason}};
  }

  prometheus::Family<prometheus::Counter>&prompts_, &dialogues_;
  prometheus::Counter& candidates_;
  prometheus::Histogram &turn_seconds_, &best_of_n_gain_;
};

}  // namespace almost::simulator
