// data: result.json (clients/cli/eval.cc); rows: its items with their texts.
const figures = data.figures, about = data.about;
const range = e => `95 %: ${percent(e.low).replace("\u00a0%", "")} to ${percent(e.high)}`;
const tile = (name, value, note) => h("div", {class: "tile"}, h("span", {class: "soft small"}, name), h("b", {}, value), h("span", {class: "soft small"}, note));
const groups = of => Object.entries(of || {}).map(([name, value]) => ({name: name || "(none)", value}));
let rows = null, columns = null, loaded = 0;

function preferences(half) {
  const all = figures.all, versus = all.versus_longer, correlation = all.score_length_correlation;
  const every = [{name: "all", value: all}, ...groups(figures.types)];
  const estimateRows = every.flatMap(({name, value}) => [{label: name, estimate: value.accuracy, colour: colour(0)},
    {label: `${name}, the longer`.slice(0, 40), estimate: value.longer, colour: colour(1), square: true}]);
  return [h("div", {class: "tiles"}, tile("Preferred answer scored higher", percent(all.accuracy.value), range(all.accuracy)),
      tile("Always picking the longer", percent(all.longer.value), "what it is measured against"),
      tile("Difference", points(versus.difference.value), `points; ${points(versus.difference.low)} to ${points(versus.difference.high)}`),
      tile("Score and length", number(correlation), "correlation")),
    h("p", {class: "soft small"}, `Right ${all.right}, tied ${all.tied}, wrong ${all.wrong}; exact interval of the right ones ${percent(all.exact[0])} to ${percent(all.exact[1])}. ` +
      `On the same pairs: ${versus.only_scorer_right} only the scorer has right, ${versus.only_longer_right} only the longer-wins rule, ${pValue(versus.mcnemar_p)} (McNemar, exact).`),
    figures.position ? h("p", {class: "soft small"}, `Position: in ${figures.position.first} pairs A was preferred in both orders, in ${figures.position.second} B, in ${figures.position.same} the same answer (${pValue(figures.position.p)}).`) : null,
    h("div", {class: "grid wide"}, estimates({title: "How often is the preferred answer scored higher?", note: "Dots are the scorer, squares always picking the longer answer; 95 % intervals. The dashed line is guessing.",
      x: "pairs (%)", rows: estimateRows.slice(0, 60), low: 0, high: 1, reference: .5, show: percent, width: half}),
      rows ? histogram({title: "By how much?", note: "Score of the preferred answer less that of the other; below zero they disagree.", x: "difference of scores", width: half,
        values: rows.map(row => row.margin)}) : null)];
}
function pairwise(half) {
  const all = figures.all, position = all.position;
  const every = [{name: "all", value: all}, ...groups(figures.categories)];
  const parts = counts => [["win", colour(0)], ["tie", "var(--soft)"], ["loss", colour(1)], ["unparsable", colour(4)]].map(([name, ink]) => ({name, value: counts[name], colour: ink}));
  return [h("div", {class: "tiles"}, tile("a wins, ties half", percent(all.win_rate.value), range(all.win_rate)),
      all.length_controlled ? tile("At equal length", percent(all.length_controlled.value), range(all.length_controlled)) : tile("At equal length", "–", "no finite fit"),
      tile("Unparsable", String(all.counts.unparsable), `of ${data.items} prompts, counted apart`),
      tile("Length of a and b", `${number(all.a_length.value)} / ${number(all.b_length.value)}`, "characters, mean")),
    h("p", {class: "soft small"}, `Of the decided prompts a wins ${interval(all.decided, percent)}, ${pValue(all.sign_test_p)} (sign test). The longer answer won ${interval(all.longer, percent)}. ` +
      `Position: whichever was shown first won both times in ${position.first} prompts, second in ${position.second}; the verdict stayed in ${position.same} (${pValue(position.p)}). ` +
      `Single judgements: ${all.reviews.win} won, ${all.reviews.tie} tied, ${all.reviews.loss} lost, ${all.reviews.unparsable} unparsable.`),
    h("div", {class: "grid wide"}, estimates({title: "How often does a win?", note: "Both orders together: a win is one in both, anything mixed is a tie, ties count half.", x: "win rate (%)",
      rows: every.map(({name, value}) => ({label: name, estimate: value.win_rate})), low: 0, high: 1, reference: .5, show: percent, width: half}),
      bars({title: "Wins, ties and losses", x: "prompts", legend: true, rows: every.map(({name, value}) => ({label: name, parts: parts(value.counts)})), width: half}))];
}
function choices(half) {
  return [h("div", {class: "tiles"}, tile("The true choice is first", percent(figures.accuracy.value), range(figures.accuracy)), tile("Chance", percent(figures.chance), "mean of 1 / choices"),
      tile("Always the longest", percent(figures.longest.value), range(figures.longest))),
    estimates({title: "How often is the true choice the likeliest?", x: "questions (%)", rows: [{label: "model", estimate: figures.accuracy}, {label: "longest choice", estimate: figures.longest, colour: colour(1), square: true}],
      low: 0, high: 1, reference: figures.chance, show: percent, note: "The dashed line is chance.", width: half})];
}
function perplexity(half) {
  const of = e => `95 %: ${number(e.low)} to ${number(e.high)}`;
  return [h("div", {class: "tiles"}, tile("Perplexity per token", number(figures.perplexity.value), of(figures.perplexity)), tile("Per word", number(figures.word_perplexity.value), of(figures.word_perplexity)),
      tile("Bits per byte", number(figures.bits_per_byte.value), of(figures.bits_per_byte)), tile("Tokens", number(figures.tokens), `${figures.documents} documents`)),
    rows ? histogram({title: "How hard are the documents?", x: "nats per token", values: rows.map(row => row.nats_per_token), width: half}) : null];
}
const kind = figures.all?.win_rate ? pairwise : figures.all ? preferences : figures.perplexity ? perplexity : choices;
function asked() {
  const lines = [];
  const walk = (value, path) => value && typeof value === "object" ? Object.entries(value).forEach(([key, inner]) => walk(inner, path ? `${path}.${key}` : key)) : lines.push([path, h("code", {style: "overflow-wrap:anywhere"}, String(value))]);
  walk(about, "");
  return table(["setting", "value"], lines);
}
// Who was asked, in short; the table at the end has it whole.
const shortName = of => (of.name || of.service || "").replace(/^models\//, "").replace(/[0-9a-f]{64}/, digest => digest.slice(0, 12));
function who() {
  const one = of => shortName(of) || shortName(Object.values(of)[0]);
  return [["a", about.a], ["b", about.b], ["judge", about.judge], ["model", about.model], ["reward model", about.reward_model]]
    .filter(([, of]) => of).map(([role, of]) => `${role}: ${one(of)}`).join("; ");
}
const redraw = keepDrawn(`Evaluation: ${data.benchmark}`, ({half}) => [
  h("h1", {}, words(data.benchmark)),
  h("p", {class: "soft"}, `${data.items} items of ${about.file.name}` + (data.left_out_too_long ? `; ${data.left_out_too_long} left out, longer than a model's context` : ""), h("br", {}), who()),
  kind(half),
  section("Items", rows ? rowBrowser({rows, columns, lead: ["prompt", "context", "question", "text", "chosen", "rejected", "a", "b", "answer"],
    sort: kind === preferences ? {column: "margin"} : null}) : `Reading the items … ${loaded}`),
  section("What was asked", asked()),
]);
loadRows(count => { loaded = count; }).then(found => {
  rows = found;
  for (const row of rows) {
    if (row.chosen_score !== undefined) row.margin = row.chosen_score - row.rejected_score;
    if (row.nll !== undefined && row.tokens) row.nats_per_token = row.nll / row.tokens;
  }
  columns = columnsOf(rows);
  columns.numbers.sort((a, b) => (b === "margin") - (a === "margin"));
  redraw();
});
