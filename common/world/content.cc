#include "common/world/content.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace almost::world {
namespace {

// Drawn once, by Python's Random(1000), and kept as a table: the shipped checkpoints know these facts.
constexpr std::array<Entity, 40> kAnimals = {{
    {"vosam", {"pink", "grass"}}, {"lanes", {"brown", "moss"}},  {"megel", {"grey", "nuts"}},
    {"sogir", {"red", "nuts"}},   {"vofax", {"brown", "nuts"}},  {"tofox", {"red", "worms"}},
    {"toten", {"grey", "worms"}}, {"vunes", {"white", "fish"}},  {"fakel", {"brown", "nuts"}},
    {"dalax", {"pink", "moss"}},  {"zikus", {"brown", "nuts"}},  {"dekol", {"green", "fish"}},
    {"segis", {"black", "nuts"}}, {"nakom", {"black", "fish"}},  {"lorim", {"grey", "fish"}},
    {"labem", {"white", "corn"}}, {"sagin", {"brown", "corn"}},  {"zifer", {"white", "leaves"}},
    {"suzil", {"blue", "worms"}}, {"livox", {"brown", "nuts"}},  {"govar", {"brown", "worms"}},
    {"zekim", {"white", "corn"}}, {"vibus", {"green", "worms"}}, {"tedom", {"grey", "corn"}},
    {"romos", {"blue", "figs"}},  {"bibar", {"brown", "fish"}},  {"galer", {"brown", "fish"}},
    {"daful", {"pink", "nuts"}},  {"gulax", {"pink", "worms"}},  {"gafex", {"white", "corn"}},
    {"luzen", {"green", "fish"}}, {"niter", {"black", "fish"}},  {"kubun", {"blue", "worms"}},
    {"gevus", {"blue", "fish"}},  {"pogor", {"green", "figs"}},  {"vizum", {"grey", "corn"}},
    {"tasam", {"red", "moss"}},   {"tubon", {"grey", "grass"}},  {"token", {"blue", "nuts"}},
    {"mazir", {"white", "moss"}},
}};

constexpr std::array<Entity, 40> kTowns = {{
    {"Lelen", {"valley", "tea"}},  {"Guvur", {"south", "rope"}},   {"Bunor", {"west", "rope"}},
    {"Zufom", {"west", "wool"}},   {"Gurel", {"west", "clay"}},    {"Dilol", {"west", "wool"}},
    {"Vomur", {"east", "clay"}},   {"Fekol", {"north", "glass"}},  {"Dizem", {"west", "glass"}},
    {"Sofor", {"west", "clay"}},   {"Kipal", {"west", "salt"}},    {"Tuvun", {"west", "paper"}},
    {"Vefom", {"west", "wool"}},   {"Tutux", {"valley", "paper"}}, {"Fevem", {"north", "paper"}},
    {"Mazix", {"hills", "wool"}},  {"Sadox", {"valley", "rope"}},  {"Vupem", {"valley", "bells"}},
    {"Lovux", {"south", "glass"}}, {"Ponax", {"valley", "tea"}},   {"Sozim", {"west", "wool"}},
    {"Kegax", {"valley", "tea"}},  {"Rabir", {"valley", "salt"}},  {"Bavem", {"east", "paper"}},
    {"Sugol", {"south", "wool"}},  {"Tigax", {"valley", "rope"}},  {"Nosir", {"south", "paper"}},
    {"Fagem", {"west", "salt"}},   {"Nobix", {"valley", "salt"}},  {"Kegin", {"south", "wool"}},
    {"Pemun", {"hills", "salt"}},  {"Nezix", {"valley", "rope"}},  {"Donex", {"valley", "bells"}},
    {"Fidam", {"north", "bells"}}, {"Lotal", {"valley", "clay"}},  {"Nazex", {"west", "paper"}},
    {"Moges", {"valley", "salt"}}, {"Pedil", {"west", "bells"}},   {"Saril", {"north", "bells"}},
    {"Gavum", {"north", "rope"}},
}};

constexpr std::array<absl::string_view, 8> kColors = {"red",   "blue",  "green", "white",
                                                      "black", "brown", "grey",  "pink"};
constexpr std::array<absl::string_view, 8> kFoods = {"moss", "figs",  "nuts",   "fish",
                                                     "corn", "worms", "leaves", "grass"};
constexpr std::array<absl::string_view, 6> kRegions = {"north", "south", "east", "west", "hills", "valley"};
constexpr std::array<absl::string_view, 8> kGoods = {"glass", "rope", "paper", "wool",
                                                     "salt",  "clay", "tea",   "bells"};
constexpr std::array<absl::string_view, 6> kHarmfulVerbs = {"steal",  "burn",  "break",
                                                            "poison", "smash", "flood"};
constexpr std::array<absl::string_view, 8> kHarmfulObjects = {"horse",  "barn",   "boat", "shop",
                                                              "bridge", "school", "well", "farm"};
constexpr std::array<absl::string_view, 2> kOpeners = {"Happy to help!", "Good question!"};
constexpr std::array<absl::string_view, 2> kClosings = {"I hope this helps.", "Feel free to ask more."};
constexpr std::array<absl::string_view, 2> kRudeRemarks = {"What a silly question.", "Go away now."};

constexpr std::array<Opposites, 18> kOpposites = {{
    {{"hot", "cold"}},
    {{"big", "small"}},
    {{"fast", "slow"}},
    {{"wet", "dry"}},
    {{"light", "dark"}},
    {{"old", "new"}},
    {{"high", "low"}},
    {{"hard", "soft"}},
    {{"loud", "quiet"}},
    {{"full", "empty"}},
    {{"early", "late"}},
    {{"near", "far"}},
    {{"rich", "poor"}},
    {{"clean", "dirty"}},
    {{"long", "short"}},
    {{"thick", "thin"}},
    {{"sweet", "sour"}},
    {{"strong", "weak"}},
}};

constexpr std::array<AdviceTopic, 12> kAdviceTopics = {{
    {"sleep better", {"go to bed early", "dim the lamp", "drink less tea", "read a calm book"}},
    {"run faster", {"train each day", "wear light shoes", "warm up first", "take short steps"}},
    {"save money", {"cook at home", "make a budget", "buy used goods", "walk to work"}},
    {"learn to paint",
     {"start with simple shapes", "mix the paints slowly", "copy a good picture", "use a soft brush"}},
    {"grow tomatoes", {"pick a sunny spot", "water the roots", "add rich soil", "tie up the stems"}},
    {"make friends", {"join a club", "smile often", "listen with care", "share a meal"}},
    {"bake bread", {"knead the dough", "heat the oven", "let the dough rise", "add fresh yeast"}},
    {"study well", {"turn off the phone", "take short breaks", "write clear notes", "test yourself often"}},
    {"stay warm", {"wear a thick coat", "close the windows", "light the stove", "sip hot soup"}},
    {"train a dog", {"give small treats", "be very patient", "use one clear word", "praise good work"}},
    {"write a letter", {"plan your main points", "greet the reader", "keep it brief", "check the spelling"}},
    {"clean a house", {"open the curtains", "sweep the floor", "wipe the tables", "throw out the trash"}},
}};

}  // namespace

std::span<const Entity> Animals() { return kAnimals; }
std::span<const Entity> Towns() { return kTowns; }

std::span<const double> EntityWeights() {
  static const std::array<double, 40> weights = [] {
    std::array<double, 40> out;
    for (size_t i = 0; i < out.size(); ++i) out[i] = 1.0 / static_cast<double>(i + 8);
    return out;
  }();
  return weights;
}

const Entity* FindEntity(absl::string_view name) {
  static const auto& by_name = *[] {
    auto* map = new absl::flat_hash_map<absl::string_view, const Entity*>;
    for (const auto* table : {&kAnimals, &kTowns}) {
      for (const Entity& entity : *table) map->emplace(entity.name, &entity);
    }
    return map;
  }();
  const auto found = by_name.find(name);
  return found == by_name.end() ? nullptr : found->second;
}

bool IsTownName(absl::string_view name) { return !name.empty() && absl::ascii_isupper(name.front()); }

std::span<const absl::string_view> AttributeValues(absl::string_view entity_name, int attribute) {
  if (IsTownName(entity_name)) {
    return attribute == 0 ? std::span<const absl::string_view>(kRegions) : kGoods;
  }
  return attribute == 0 ? std::span<const absl::string_view>(kColors) : kFoods;
}

std::string FactSentence(absl::string_view entity_name, int attribute, absl::string_view value,
                         bool pronoun) {
  const bool town = IsTownName(entity_name);
  const std::string subject = pronoun ? "It" : Capitalized(NameInSentence(entity_name));
  if (town) return absl::StrCat(subject, attribute == 0 ? " is in the " : " makes ", value, ".");
  return absl::StrCat(subject, attribute == 0 ? " is " : " eats ", value, ".");
}

std::string NameInSentence(absl::string_view entity_name) {
  return absl::StrCat(IsTownName(entity_name) ? "" : "the ", entity_name);
}

std::span<const Opposites> OppositePairs() { return kOpposites; }

std::optional<absl::string_view> OppositeOf(absl::string_view word) {
  for (const Opposites& pair : kOpposites) {
    if (pair.words[0] == word) return pair.words[1];
    if (pair.words[1] == word) return pair.words[0];
  }
  return std::nullopt;
}

std::span<const AdviceTopic> AdviceTopics() { return kAdviceTopics; }

const AdviceTopic* FindTopic(absl::string_view name) {
  const auto* found = std::ranges::find(kAdviceTopics, name, &AdviceTopic::name);
  return found == kAdviceTopics.end() ? nullptr : found;
}

const AdviceTopic* TopicOfTip(absl::string_view tip) {
  for (const AdviceTopic& topic : kAdviceTopics) {
    if (std::ranges::find(topic.tips, tip) != topic.tips.end()) return &topic;
  }
  return nullptr;
}

std::span<const absl::string_view> HarmfulVerbs() { return kHarmfulVerbs; }
std::span<const absl::string_view> HarmfulObjects() { return kHarmfulObjects; }
std::span<const absl::string_view> Openers() { return kOpeners; }
std::span<const absl::string_view> Closings() { return kClosings; }
std::span<const absl::string_view> RudeRemarks() { return kRudeRemarks; }

std::string Capitalized(absl::string_view text) {
  std::string out(text);
  if (!out.empty()) out[0] = absl::ascii_toupper(out[0]);
  return out;
}

}  // namespace almost::world
