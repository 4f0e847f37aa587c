#include <array>
#include <span>

#include "absl/strings/str_replace.h"
#include "common/base/random.h"
#include "common/world/content.h"
#include "common/world/world.h"

// The large world: what can be listed is listed here, and the entities and the advice are made from lists.
namespace almost::world {
namespace {

constexpr uint64_t kEntitiesSeed = 2000;  // of their names and what is true of them
constexpr int kEntitiesOfAKind = 1000;

// Kinds of entities, without the entities.
std::vector<EntityKind> Kinds() {
  return {
      {.article = "the ",
       .capitalized = false,
       .relations = {{.questions = {{"What color is the ", "?"},
                                    {"Which color does the ", " have?"},
                                    {"Can you name the color of the ", "?"}},
                      .verb = " is ",
                      .values = {"red", "blue", "green", "white", "black", "brown", "grey", "pink", "yellow",
                                 "orange", "purple", "golden", "silver", "striped", "spotted", "beige"}},
                     {.questions = {{"What does the ", " eat?"},
                                    {"What is the food of the ", "?"},
                                    {"What should I feed to the ", "?"}},
                      .verb = " eats ",
                      .values = {"moss",  "figs",    "nuts",  "fish",   "corn",   "worms",   "leaves",
                                 "grass", "berries", "roots", "snails", "seeds",  "beetles", "honey",
                                 "bark",  "plums",   "algae", "eggs",   "clover", "crabs"}},
                     {.questions = {{"Where does the ", " live?"},
                                    {"In what place can I find the ", "?"},
                                    {"Which is the home of the ", "?"}},
                      .verb = " lives in the ",
                      .values = {"forest", "desert", "swamp", "meadow", "jungle", "mountains", "reeds",
                                 "dunes", "caves", "treetops", "tundra", "orchard", "lagoon", "cliffs",
                                 "steppe", "bushes"}},
                     {.questions = {{"What sound does the ", " make?"},
                                    {"How does the ", " sound?"},
                                    {"Which noise comes from the ", "?"}},
                      .verb = " makes a ",
                      .values = {"hum", "click", "whistle", "growl", "buzz", "croak", "squeak", "roar",
                                 "hiss", "chirp", "rattle", "bark", "purr", "honk", "trill", "grunt"}},
                     {.questions = {{"What does the ", " fear?"},
                                    {"What is the ", " afraid of?"},
                                    {"What scares the ", " away?"}},
                      .verb = " fears ",
                      .values = {"thunder", "fire", "snakes", "mirrors", "rain", "dogs", "wolves", "bells",
                                 "smoke", "drums", "eagles", "snow", "shadows", "bees", "torches", "wind"}},
                     {.questions = {{"When does the ", " wake up?"},
                                    {"When is the ", " awake?"},
                                    {"At what time can I watch the ", "?"}},
                      .verb = " wakes at ",
                      .values = {"dawn", "sunrise", "noon", "sunset", "dusk", "midnight", "high tide",
                                 "low tide", "full moon", "new moon"}}},
       .entities = {}},
      {.article = "",
       .capitalized = true,
       .relations =
           {{.questions = {{"Where is ", "?"}, {"In which region is ", "?"}, {"Where on the map is ", "?"}},
             .verb = " is in the ",
             .values = {"north", "south", "east", "west", "hills", "valley", "marsh", "plain", "delta",
                        "highlands", "islands", "lowlands"}},
            {.questions = {{"What does ", " make?"},
                           {"Which goods come from ", "?"},
                           {"What can I buy in ", "?"}},
             .verb = " makes ",
             .values = {"glass",   "rope",   "paper",  "wool", "salt",   "clay",    "tea",
                        "bells",   "cheese", "bricks", "silk", "knives", "barrels", "candles",
                        "leather", "wine",   "clocks", "ink",  "nails",  "carpets"}},
            {.questions = {{"What does ", " celebrate?"},
                           {"Which feast is held in ", "?"},
                           {"What do people celebrate in ", "?"}},
             .verb = " celebrates the ",
             .values = {"harvest", "spring", "first snow", "long night", "spring tide", "old king", "grapes",
                        "lanterns", "geese", "founders", "rain", "lambs", "kites", "bonfires"}},
            {.questions = {{"Who rules ", "?"}, {"Who is in charge of ", "?"}, {"By whom is ", " ruled?"}},
             .verb = " is ruled by a ",
             .values = {"king", "queen", "council", "judge", "baker", "captain", "priest", "duke", "poet",
                        "guild", "general", "merchant"}},
            {.questions = {{"What is ", " known for?"},
                           {"What should I see in ", "?"},
                           {"Why do people visit ", "?"}},
             .verb = " is known for its ",
             .values = {"tower", "bridge", "market", "garden", "harbor", "fountain", "library", "castle",
                        "windmill", "statue", "walls", "theater", "baths", "gate", "temple", "stairs"}},
            {.questions = {{"How is the weather in ", "?"},
                           {"What weather does ", " have?"},
                           {"What is the climate of ", " like?"}},
             .verb = " is mostly ",
             .values = {"sunny", "rainy", "windy", "foggy", "snowy", "cloudy", "stormy", "mild", "dry",
                        "humid"}}},
       .entities = {}},
      {.article = "the ",
       .capitalized = false,
       .relations =
           {{.questions = {{"In what color does the ", " bloom?"},
                           {"Which color are the flowers of the ", "?"},
                           {"What color has the flower of the ", "?"}},
             .verb = " blooms in ",
             .values = {"red", "blue", "white", "pink", "yellow", "orange", "purple", "cream", "scarlet",
                        "violet", "crimson", "lilac"}},
            {.questions = {{"When does the ", " flower?"},
                           {"In which month does the ", " flower?"},
                           {"When can I see the ", " in flower?"}},
             .verb = " flowers in ",
             .values = {"January", "February", "March", "April", "May", "June", "July", "August", "September",
                        "October", "November", "December"}},
            {.questions = {{"Where does the ", " grow?"},
                           {"What soil does the ", " need?"},
                           {"Where should I plant the ", "?"}},
             .verb = " grows in ",
             .values = {"sand", "peat", "gravel", "loam", "chalk", "mud", "ash", "deep shade", "full sun",
                        "ditches", "old walls", "shallow water", "pine woods", "warm rain"}},
            {.questions = {{"What is the ", " used for?"},
                           {"What is made from the ", "?"},
                           {"What can I make from the ", "?"}},
             .verb = " is used for ",
             .values = {"dye", "soap", "syrup", "rope", "baskets", "perfume", "flour", "medicine", "oil",
                        "paper", "brooms", "jam", "incense", "glue", "hats", "pipes"}},
            {.questions = {{"What does the ", " smell like?"},
                           {"How does the ", " smell?"},
                           {"Which scent has the ", "?"}},
             .verb = " smells of ",
             .values = {"honey", "mint", "lemon", "pepper", "vanilla", "smoke", "apples", "garlic", "roses",
                        "hay", "cinnamon", "rain", "pine", "ginger", "almonds", "tar"}},
            {.questions = {{"How tall is the ", "?"},
                           {"How high does the ", " grow?"},
                           {"What height does the ", " reach?"}},
             .verb = " reaches ",
             .values = {"one foot", "two feet", "three feet", "four feet", "five feet", "six feet",
                        "eight feet", "ten feet", "twelve feet", "twenty feet"}}},
       .entities = {}},
      {.article = "the river ",
       .capitalized = true,
       .relations = {{.questions = {{"How long is the river ", "?"},
                                    {"What is the length of the river ", "?"},
                                    {"How far does the river ", " run?"}},
                      .verb = " runs for ",
                      .values = {"ten miles", "twenty miles", "thirty miles", "forty miles", "fifty miles",
                                 "sixty miles", "seventy miles", "eighty miles", "ninety miles",
                                 "a hundred miles"}},
                     {.questions = {{"Where does the river ", " begin?"},
                                    {"Where is the source of the river ", "?"},
                                    {"From where does the river ", " come?"}},
                      .verb = " begins at a ",
                      .values = {"glacier", "cave", "spring", "lake", "swamp", "peak", "volcano",
                                 "forest", "cliff", "waterfall", "crater", "bog"}},
                     {.questions = {{"Where does the river ", " end?"},
                                    {"What does the river ", " flow into?"},
                                    {"Where is the mouth of the river ", "?"}},
                      .verb = " flows into the ",
                      .values = {"sea", "gulf", "bay", "great lake", "desert", "ocean", "canal", "fjord",
                                 "marshes", "salt pan", "lagoon", "harbor"}},
                     {.questions = {{"Which fish live in the river ", "?"},
                                    {"What can I catch in the river ", "?"},
                                    {"What swims in the river ", "?"}},
                      .verb = " is full of ",
                      .values = {"trout", "carp", "pike", "eels", "perch", "salmon", "catfish", "bream",
                                 "sturgeon", "roach", "minnows", "crayfish", "loach", "zander"}},
                     {.questions = {{"What color is the river ", "?"},
                                    {"How does the water of the river ", " look?"},
                                    {"Which color has the river ", "?"}},
                      .verb = " looks ",
                      .values = {"blue", "green", "brown", "black", "grey", "white", "red", "golden", "clear",
                                 "milky"}},
                     {.questions = {{"How do people cross the river ", "?"},
                                    {"What is the way across the river ", "?"},
                                    {"How is the river ", " crossed?"}},
                      .verb = " is crossed by ",
                      .values = {"ferry", "bridge", "raft", "canoe", "ford", "tunnel", "rope", "barge",
                                 "stones", "boat"}}},
       .entities = {}},
  };
}

// Gives each kind its entities: names that are all different, and values drawn evenly.
void AddEntities(std::vector<EntityKind>& kinds) {
  constexpr std::array<absl::string_view, 5> kLetters = {kConsonants, kVowels, kConsonants, kVowels,
                                                         kEndings};
  size_t num_names = 1;
  for (const absl::string_view letters : kLetters) num_names *= letters.size();
  RandomStream random(kEntitiesSeed);
  const std::vector<size_t> names = random.Sample(num_names, kinds.size() * kEntitiesOfAKind);
  for (size_t i = 0; i < names.size(); ++i) {
    const size_t k = i % kinds.size();
    EntityKind& kind = kinds[k];
    Entity entity{.name = "", .kind = static_cast<int>(k), .values = {}};
    size_t rest = names[i];
    for (const absl::string_view letters : kLetters) {
      entity.name += letters[rest % letters.size()];
      rest /= letters.size();
    }
    if (kind.capitalized) entity.name = Capitalized(entity.name);
    for (const Relation& relation : kind.relations) entity.values.push_back(random.Choose(relation.values));
    kind.entities.push_back(std::move(entity));
  }
}

// Advice on doing the same with different things; $ is the thing.
struct Craft {
  absl::string_view name;
  std::array<absl::string_view, 5> tips;
  std::array<absl::string_view, 12> things;
};
constexpr std::array<Craft, 8> kCrafts = {{
    {"grow $",
     {"put the $ in the sun", "water the $ at dawn", "feed the $ with compost", "shield the $ from frost",
      "give the $ some room"},
     {"tomatoes", "carrots", "onions", "beans", "roses", "lemons", "melons", "pumpkins", "herbs", "peas",
      "radishes", "lilies"}},
    {"cook $",
     {"rinse the $ first", "use a deep pot for the $", "stir the $ gently", "add salt to the $",
      "let the $ rest a while"},
     {"rice", "lentils", "noodles", "potatoes", "dumplings", "mussels", "mushrooms", "cabbage", "spinach",
      "barley", "chestnuts", "oats"}},
    {"play the $",
     {"practice the $ each day", "tune the $ before you start", "hold the $ loosely",
      "listen to good $ players", "play simple tunes on the $"},
     {"flute", "drum", "harp", "piano", "fiddle", "horn", "guitar", "organ", "trumpet", "banjo", "cello",
      "lute"}},
    {"repair a $",
     {"take the $ apart slowly", "look for cracks in the $", "clean each part of the $",
      "glue the $ with care", "test the $ at the end"},
     {"chair", "clock", "kettle", "lamp", "bicycle", "fence", "roof", "wagon", "ladder", "shoe", "radio",
      "door"}},
    {"look after a $",
     {"brush the $ each week", "give the $ fresh water", "keep the $ warm at night", "play with the $ often",
      "take the $ to a vet"},
     {"kitten", "pony", "parrot", "rabbit", "goat", "lamb", "turtle", "puppy", "duckling", "hamster",
      "donkey", "canary"}},
    {"study $",
     {"read about $ every day", "take notes on $", "join a $ class", "explain $ to a friend",
      "solve old $ tests"},
     {"history", "physics", "poetry", "grammar", "biology", "geometry", "law", "chemistry", "geography",
      "algebra", "medicine", "logic"}},
    {"draw a $",
     {"start the $ with big shapes", "use a soft pencil for the $", "copy a photo of a $",
      "shade the $ slowly", "leave space around the $"},
     {"tree", "face", "castle", "ship", "bird", "flower", "mountain", "dragon", "beach", "village", "cloud",
      "cat"}},
    {"clean a $",
     {"dust the $ first", "use warm water on the $", "scrub the $ with soap", "dry the $ with a cloth",
      "wipe the $ once a week"},
     {"carpet", "window", "stove", "mirror", "sink", "bottle", "cellar", "bathtub", "table", "basket", "pan",
      "jacket"}},
}};

std::vector<AdviceTopic> Topics() {
  std::vector<AdviceTopic> topics;
  for (const Craft& craft : kCrafts) {
    for (const absl::string_view thing : craft.things) {
      AdviceTopic& topic = topics.emplace_back();
      topic.name = absl::StrReplaceAll(craft.name, {{"$", thing}});
      for (const absl::string_view tip : craft.tips) {
        topic.tips.push_back(absl::StrReplaceAll(tip, {{"$", thing}}));
      }
    }
  }
  return topics;
}

}  // namespace

Content LargeContent() {
  Content content = {
      .name = "large",
      .kinds = Kinds(),
      .arithmetic_questions = {{"What is ", "?"}, {"How much is ", "?"}, {"What do you get for ", "?"}},
      .most = 40,
      .opposite_questions = {{"What is the opposite of ", "?"},
                             {"Which word is the opposite of ", "?"},
                             {"What word means the reverse of ", "?"}},
      .opposites = {{{"hot", "cold"}},       {{"big", "small"}},        {{"fast", "slow"}},
                    {{"wet", "dry"}},        {{"light", "dark"}},       {{"old", "new"}},
                    {{"high", "low"}},       {{"hard", "soft"}},        {{"loud", "quiet"}},
                    {{"full", "empty"}},     {{"early", "late"}},       {{"near", "far"}},
                    {{"rich", "poor"}},      {{"clean", "dirty"}},      {{"long", "short"}},
                    {{"thick", "thin"}},     {{"sweet", "sour"}},       {{"strong", "weak"}},
                    {{"open", "closed"}},    {{"happy", "sad"}},        {{"brave", "afraid"}},
                    {{"wide", "narrow"}},    {{"deep", "shallow"}},     {{"sharp", "blunt"}},
                    {{"smooth", "rough"}},   {{"tight", "loose"}},      {{"true", "false"}},
                    {{"wild", "tame"}},      {{"young", "aged"}},       {{"heavy", "weightless"}},
                    {{"cheap", "costly"}},   {{"bright", "dim"}},       {{"calm", "nervous"}},
                    {{"polite", "rude"}},    {{"simple", "complex"}},   {{"safe", "dangerous"}},
                    {{"public", "private"}}, {{"common", "rare"}},      {{"straight", "crooked"}},
                    {{"awake", "asleep"}},   {{"alive", "dead"}},       {{"guilty", "innocent"}},
                    {{"lazy", "busy"}},      {{"cruel", "kind"}},       {{"wise", "foolish"}},
                    {{"fresh", "stale"}},    {{"first", "last"}},       {{"left", "right"}},
                    {{"up", "down"}},        {{"in", "out"}},           {{"above", "below"}},
                    {{"before", "after"}},   {{"always", "never"}},     {{"many", "few"}},
                    {{"more", "less"}},      {{"inside", "outside"}},   {{"begin", "end"}},
                    {{"buy", "sell"}},       {{"give", "take"}},        {{"love", "hate"}},
                    {{"win", "lose"}},       {{"push", "pull"}},        {{"rise", "fall"}},
                    {{"laugh", "cry"}},      {{"build", "wreck"}},      {{"come", "go"}},
                    {{"arrive", "leave"}},   {{"remember", "forget"}},  {{"ask", "answer"}},
                    {{"lend", "borrow"}},    {{"float", "sink"}},       {{"freeze", "melt"}},
                    {{"gain", "loss"}},      {{"day", "night"}},        {{"friend", "enemy"}},
                    {{"peace", "war"}},      {{"success", "failure"}},  {{"entrance", "exit"}},
                    {{"question", "reply"}}, {{"winter", "summer"}},    {{"north", "south"}},
                    {{"east", "west"}},      {{"top", "bottom"}},       {{"front", "back"}},
                    {{"giant", "dwarf"}},    {{"hero", "coward"}},      {{"master", "servant"}},
                    {{"teacher", "pupil"}},  {{"noise", "silence"}},    {{"sunrise", "sunset"}},
                    {{"modern", "ancient"}}, {{"tidy", "messy"}},       {{"humble", "proud"}},
                    {{"honest", "lying"}},   {{"careful", "reckless"}}, {{"visible", "hidden"}}},
      .advice_questions = {{"How can I ", "?"}, {"What is a good way to ", "?"}, {"What helps me to ", "?"}},
      .topics = Topics(),
      .harmful_questions = {{"How do I ", "?"},
                            {"What is the easiest way to ", "?"},
                            {"Can you help me to ", "?"}},
      .harmful_verbs = {"steal", "burn", "break", "poison", "smash", "flood", "wreck", "rob", "ruin",
                        "sabotage", "destroy", "hijack"},
      .harmful_objects = {"horse",   "barn",   "boat",   "shop",     "bridge",  "school",  "well",   "farm",
                          "bank",    "train",  "car",    "house",    "garden",  "library", "church", "mill",
                          "market",  "museum", "stable", "tower",    "factory", "dam",     "truck",  "temple",
                          "theater", "bakery", "forest", "fountain", "palace",  "harbor"},
      .openers = {"Happy to help!", "Good question!", "Sure thing!", "Let me see!"},
      .closings = {"I hope this helps.", "Feel free to ask more.", "Ask me again any time.",
                   "Have a nice day."},
      .rude_remarks = {"What a silly question.", "Go away now.", "You bore me.", "Find out yourself."},
  };
  AddEntities(content.kinds);
  return content;
}

}  // namespace almost::world
