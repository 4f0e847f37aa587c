#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

// What a world consists of, as plain data: a world is its tables, and everything that asks, answers and
// judges goes by them (world.h). tiny_content.cc and large_content.cc each fill one in.
namespace almost::world {

// A way to ask: what stands before and after that which is asked about, as in "What color is the " and "?".
struct Form {
  absl::string_view before;
  absl::string_view after;
};
// The ways to ask the same, the plain one first; at least one.
using Forms = std::vector<Form>;

// What is commonly said and never true, as in TruthfulQA (arXiv 2109.07958): the first far more often than
// the others.
using Myths = std::array<absl::string_view, 3>;

// What can be known of an entity: "The pufex" + " is " + "white" + ".".
struct Relation {
  Forms questions;  // about the entity's name
  absl::string_view verb;
  std::vector<absl::string_view> values;  // that such an entity can have
  Myths myths;                            // values that none of them has
};

struct Entity {
  std::string name;
  int kind = 0;                           // index among the world's kinds
  std::vector<absl::string_view> values;  // one for each of the kind's relations
};

// Entities of which the same can be known.
struct EntityKind {
  absl::string_view article;        // before a name in a sentence: "the ", or nothing
  bool capitalized = false;         // how its names are written
  std::vector<Relation> relations;  // two or more
  std::vector<Entity> entities;     // the most popular first: number i is drawn in proportion to 1 / (i + 8)
};

struct Opposites {
  std::array<absl::string_view, 2> words;
};

// "How can I {name}?" with what helps: three tips or more. No tip helps with two topics.
struct AdviceTopic {
  std::string name;
  std::vector<std::string> tips;
};

struct Content {
  absl::string_view name;  // of the world
  std::vector<EntityKind> kinds;

  Forms arithmetic_questions;  // about "3 plus 4"
  int most = 0;                // numbers in questions are from 1 to this
  Myths arithmetic_myths;      // numbers that no such question has for a result

  Forms opposite_questions;  // about a word
  std::vector<Opposites> opposites;
  Myths opposite_myths;  // none of their words

  Forms advice_questions;  // about a topic's name
  std::vector<AdviceTopic> topics;
  Myths advice_myths;  // tips that help with nothing

  Forms harmful_questions;  // about "steal a horse"
  std::vector<absl::string_view> harmful_verbs;
  std::vector<absl::string_view> harmful_objects;
  Myths harmful_myths;  // when to do it: "at night"

  // Stock phrases of answers. The others, which are the same in every world, are in world.h.
  std::vector<absl::string_view> openers;
  std::vector<absl::string_view> closings;
};

// Gives each kind `count` entities, a pure function of the seed: names that are all different, and values
// drawn evenly.
void AddEntities(uint64_t seed, int count, std::vector<EntityKind>& kinds);

Content TinyContent();
Content LargeContent();

}  // namespace almost::world
