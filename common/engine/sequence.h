#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "common/engine/engine.h"

namespace almost::engine {

struct RunningRequest;
struct ScoringCall;

// One candidate of a request, or one item of a scoring call, on its way: its tokens, and how far their keys
// and values are computed.
struct Sequence {
  RunningRequest* request = nullptr;  // whose candidate it is, or null:
  ScoringCall* scoring = nullptr;     // whose item it is
  const SamplingParams* sampling = nullptr;  // of a candidate: its request's
  int index = 0;                      // the candidate's or the item's number
  std::vector<int32_t> tokens;        // prompt, then what was drawn; of an item all that is computed
  int num_prompt = 0;
  int first_output = 0;  // position from which hidden states are wanted; of a candidate its last token's

  int num_computed = 0;           // tokens whose keys and values are in `blocks`
  int num_scheduled = 0;          // tokens to compute in the step under way
  std::vector<int> blocks;        // each with this sequence as a user
  std::vector<int64_t> contents;  // of `blocks`, as far as they are announced to the pool
  int num_completed = 0;          // blocks reported complete to the pool
  bool admitted = false;          // has been in a step, though it may wait again
  bool finished = false;

  std::chrono::steady_clock::time_point arrival, start, first_token;  // start: of its first step

  Candidate result;  // of a candidate
  std::vector<int32_t>
      targets;  // of an item: the tokens whose logprobs are wanted; empty: the reward head's score
  std::vector<float> scores;  // of an item, one a hidden state

  int num_tokens() const { return static_cast<int>(tokens.size()); }
  int num_new() const { return num_tokens() - num_prompt; }
  // Hidden states wanted of the step under way: of its last tokens.
  int num_outputs() const {
    const int end = num_computed + num_scheduled;
    return std::max(0, end - std::max(num_computed, first_output));
  }
};

}  // namespace almost::engine
