#pragma once

#include <cstdint>
#include <vector>

#include "common/engine/engine.h"

namespace almost::engine {

struct RunningRequest;

// One candidate of one request on its way: its tokens, and how far their keys and values are computed.
struct Sequence {
  RunningRequest* request = nullptr;
  int index = 0;                // candidate number
  std::vector<int32_t> tokens;  // prompt, then what was drawn
  int num_prompt = 0;
  int num_computed = 0;     // tokens whose keys and values are in `blocks`
  std::vector<int> blocks;  // each with this sequence as a user
  int num_scheduled = 0;    // tokens to compute in the step under way
  int num_completed = 0;    // blocks reported complete to the pool
  Candidate result;
  bool finished = false;

  int num_new() const { return static_cast<int>(tokens.size()) - num_prompt; }
};

}  // namespace almost::engine
