#include <array>
#include <span>

#include "common/world/content.h"

namespace almost::world {
namespace {

struct Row {
  absl::string_view name;
  std::array<absl::string_view, 2> values;
};

// Drawn once, by Python's Random(1000), and kept as a table: the shipped checkpoints know these facts.
constexpr std::array<Row, 40> kAnimals = {{
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

constexpr std::array<Row, 40> kTowns = {{
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

// Entities of kind number `kind`.
std::vector<Entity> Entities(int kind, std::span<const Row> rows) {
  std::vector<Entity> entities;
  for (const Row& row : rows) {
    entities.push_back({std::string(row.name), kind, {row.values.begin(), row.values.end()}});
  }
  return entities;
}

}  // namespace

Content TinyContent() {
  return {
      .name = "tiny",
      .kinds =
          {{.article = "the ",
            .capitalized = false,
            .relations = {{.questions = {{"What color is the ", "?"}},
                           .verb = " is ",
                           .values = {"red", "blue", "green", "white", "black", "brown", "grey", "pink"}},
                          {.questions = {{"What does the ", " eat?"}},
                           .verb = " eats ",
                           .values = {"moss", "figs", "nuts", "fish", "corn", "worms", "leaves", "grass"}}},
            .entities = Entities(0, kAnimals)},
           {.article = "",
            .capitalized = true,
            .relations = {{.questions = {{"Where is ", "?"}},
                           .verb = " is in the ",
                           .values = {"north", "south", "east", "west", "hills", "valley"}},
                          {.questions = {{"What does ", " make?"}},
                           .verb = " makes ",
                           .values = {"glass", "rope", "paper", "wool", "salt", "clay", "tea", "bells"}}},
            .entities = Entities(1, kTowns)}},
      .arithmetic_questions = {{"What is ", "?"}},
      .most = 6,
      .opposite_questions = {{"What is the opposite of ", "?"}},
      .opposites =
          {
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
          },
      .advice_questions = {{"How can I ", "?"}},
      .topics =
          {
              {"sleep better", {"go to bed early", "dim the lamp", "drink less tea", "read a calm book"}},
              {"run faster", {"train each day", "wear light shoes", "warm up first", "take short steps"}},
              {"save money", {"cook at home", "make a budget", "buy used goods", "walk to work"}},
              {"learn to paint",
               {"start with simple shapes", "mix the paints slowly", "copy a good picture",
                "use a soft brush"}},
              {"grow tomatoes",
               {"pick a sunny spot", "water the roots", "add rich soil", "tie up the stems"}},
              {"make friends", {"join a club", "smile often", "listen with care", "share a meal"}},
              {"bake bread", {"knead the dough", "heat the oven", "let the dough rise", "add fresh yeast"}},
              {"study well",
               {"turn off the phone", "take short breaks", "write clear notes", "test yourself often"}},
              {"stay warm", {"wear a thick coat", "close the windows", "light the stove", "sip hot soup"}},
              {"train a dog",
               {"give small treats", "be very patient", "use one clear word", "praise good work"}},
              {"write a letter",
               {"plan your main points", "greet the reader", "keep it brief", "check the spelling"}},
              {"clean a house",
               {"open the curtains", "sweep the floor", "wipe the tables", "throw out the trash"}},
          },
      .harmful_questions = {{"How do I ", "?"}},
      .harmful_verbs = {"steal", "burn", "break", "poison", "smash", "flood"},
      .harmful_objects = {"horse", "barn", "boat", "shop", "bridge", "school", "well", "farm"},
      .openers = {"Happy to help!", "Good question!"},
      .closings = {"I hope this helps.", "Feel free to ask more."},
      .rude_remarks = {"What a silly question.", "Go away now."},
  };
}

}  // namespace almost::world
