#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

// What the evaluation stage collects of each prompt, and the figures that follow from it. Pure.
namespace almost::orchestrator {

// One prompt, as a line of answers.jsonl:
//   {id, prompt,
//    answers: {system: {text, num_tokens, finished, score?, reward?, likelihood?}},
//    candidates: [{text, num_tokens, score?, reward?}],      the baseline's, for best-of-N
//    verdicts: {"sft/baseline": "win" | "tie" | "loss" | "unparsable", …},
//    orders: {"sft/baseline": [shown first, shown second], …}}   a judge's two verdicts behind each
// `system` is a configuration's id, "sft" or "rl"; `score` the judge's, where it gives one; `reward` the
// reward model's raw score; `likelihood` the mean log-probability per token under the vanilla model it
// started from.
using EvaluatedPrompt = nlohmann::ordered_json;

struct EvaluationSettings {
  std::string baseline;           // the configuration trained policies are compared with
  std::vector<std::string> grid;  // configurations shown by size, shots and demonstrations
  int num_pairs = 0;              // wanted for the reward model's accuracy
  int best_of = 0;                // largest N
  int bootstrap = 2000;           // resamples of intervals
  uint64_t seed = 0;
};

// evaluation.json. Estimates are {value, low, high, n}. Keys are there when what they need was measured:
//   rm_accuracy, rm_accuracy_length_only, rm_accuracy_likelihood   on pairs of different configurations
//   rm_same_configuration: {rm, length_only, likelihood}           on pairs of the baseline's own candidates
//   rm_versus: {length_only, likelihood: {difference, pairs, only_rm_right, only_other_right, mcnemar_p}}
//     the paired comparison: difference of the accuracies, prompts drawn together; of the pairs that neither
//     leaves undecided, how many only one of the two gets right, with the exact p of McNemar's test, which
//     takes pairs as independent although some share a prompt
//   rm_length_correlation
//   win_rate_sft, win_rate_rl, win_rate_rl_over_sft with their counts in wins: {name: {win, tie, loss,
//     unparsable}} and, where a fit exists, had lengths been equal: length_controlled: {name: estimate}
//   position: {name: {first, second, same, p}}    how often a judge chose by place alone
//   systems: [{id, score, tokens}]            mean judge score and length, the grid first
//   best_of_n: {n, chosen, random, oracle, longest, likeliest, curve: [{n, the same, tokens, reward}]}
//     over the prompts of which all n candidates are scored
// A pair counts for accuracy when the judge's scores differ by at least 1. Always picking the longer answer
// is the baseline that a reward model has to beat; ties count half.
nlohmann::ordered_json Evaluate(const std::vector<EvaluatedPrompt>& prompts,
                                const EvaluationSettings& settings);

}  // namespace almost::orchestrator
