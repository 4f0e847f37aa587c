// data: {title, subtitle, card: [[name, value], …], readme, lead, sort, histograms: [{column, title, note, x}], lineage:
// artifact by dataset}; rows: the dataset's (clients/cli/inspect.cc).
let rows = null, columns = null, loaded = 0;

function shapes(third) {
  const drawn = (data.histograms || []).map(({column, title, note, x}) => histogram({title, note, x, values: rows.map(row => row[column]), width: third})).filter(Boolean);
  return drawn.length ? h("div", {class: "grid"}, drawn) : "No numbers to show.";
}
function counts(third) {
  const drawn = [...columns.choices].map(([name, values]) => {
    const of = new Map(values.map(value => [value, 0]));
    for (const row of rows) if (row[name] !== undefined) of.set(row[name], of.get(row[name]) + 1);
    const sorted = [...of].sort((a, b) => b[1] - a[1]).slice(0, 14);
    return values.length > 1 ? bars({title: words(name), x: "rows", width: third, rows: sorted.map(([value, n]) => ({label: (asText(value) === "" ? "(none)" : String(value)).slice(0, 26), parts: [{name: "rows", value: n, colour: colour(0)}]}))}) : null;
  }).filter(Boolean);
  return drawn.length ? h("div", {class: "grid"}, drawn) : "Nothing to count.";
}
// Where a row came from, as a command: the dataset's artifact and the row's line in it.
const extra = row => {
  const artifact = data.lineage?.[row.dataset ?? ""];
  return artifact && row.line !== undefined ? h("p", {class: "soft small"}, "Where it came from: ", h("code", {style: "overflow-wrap:anywhere"}, `almost lineage artifacts/${artifact}/${row.line}`)) : null;
};
const redraw = keepDrawn(data.title, ({third}) => [
  h("h1", {}, data.title), data.subtitle ? h("p", {class: "soft"}, data.subtitle) : null,
  section("Rows", rows ? rowBrowser({rows, columns, lead: data.lead, sort: data.sort, extra}) : `Reading the rows … ${loaded}`),
  rows ? section("Numbers", shapes(third)) : null,
  rows ? section("Counts", counts(third)) : null,
  data.card?.length ? section("Card", [table(["", ""], data.card.map(([name, value]) => [name, h("span", {style: "overflow-wrap:anywhere;white-space:pre-wrap"}, String(value))])),
    data.readme ? h("details", {}, h("summary", {}, "README.md of the dataset"), h("pre", {}, data.readme)) : null]) : null,
]);
loadRows(count => { loaded = count; }).then(found => {
  rows = found;
  columns = columnsOf(rows);
  // An id or a line's number says nothing in a fact line.
  columns.numbers = columns.numbers.filter(name => !/^(line|id|.*_id)$/.test(name));
  redraw();
});
