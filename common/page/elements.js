// ---- elements: data only ever becomes text nodes and attributes, never markup ----
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) if (value != null) element.setAttribute(name, value);
  for (const child of children.flat(Infinity)) if (child != null) element.append(child);
  return element;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const SVG = document.getElementById("svg").namespaceURI;
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// ---- words and numbers ----
const isEstimate = e => e && typeof e.value === "number";
const percent = x => (100 * x).toFixed(1) + "\u00a0%";
const points = x => (x < 0 ? "−" : "+") + Math.abs(100 * x).toFixed(1);
function number(x) {
  if (typeof x !== "number" || !isFinite(x)) return "–";
  if (Number.isInteger(x) && Math.abs(x) < 1e6) return String(x);
  const size = Math.abs(x);
  return size >= 1e5 || (size < 1e-3 && size > 0) ? x.toExponential(2) : size >= 100 ? x.toFixed(0) : String(+x.toPrecision(3));
}
const interval = (e, show) => `${show(e.value)} (${show(e.low).replace("\u00a0%", "")} to ${show(e.high)}, n = ${e.n})`;
const pValue = p => p < 1e-4 ? "p < 0.0001" : "p = " + number(p);
const duration = t => t >= 5400 ? (t / 3600).toFixed(1) + " h" : t >= 90 ? (t / 60).toFixed(1) + " min" : t.toFixed(t < 10 ? 1 : 0) + " s";
const size = b => b >= 1e6 ? (b / 1e6).toFixed(1) + "\u00a0MB" : b >= 1e3 ? (b / 1e3).toFixed(1) + "\u00a0kB" : b + "\u00a0B";
const words = name => name.replace(/_/g, " ");
const colour = i => `var(--c${i % 5})`;

// Of any number of values: Math.min(...values) takes some hundred thousand arguments and no more.
const least = values => values.reduce((low, value) => value < low ? value : low, Infinity);
const greatest = values => values.reduce((high, value) => value > high ? value : high, -Infinity);

// ---- tables and figures ----
function table(head, rows) {
  const numeric = head.map((_, i) => rows.length > 0 && rows.every(row => typeof row[i] === "number" || row[i] === "–"));
  return h("div", {class: "scroll"}, h("table", {},
    h("thead", {}, h("tr", {}, head.map((text, i) => h("th", {scope: "col", class: numeric[i] ? "n" : null}, text)))),
    h("tbody", {}, rows.map(row => h("tr", {}, row.map((cell, i) =>
      h("td", {class: numeric[i] ? "n" : null}, typeof cell === "number" ? number(cell) : cell)))))));
}
function figure(title, note, legend, drawing, head, rows) {
  return h("figure", {}, h("figcaption", {}, h("h3", {}, title), note ? h("div", {class: "soft small"}, note) : null),
    legend, drawing, h("details", {}, h("summary", {}, "The numbers"), table(head, rows)));
}
function legendOf(series) {
  if (series.length < 2) return null;
  return h("div", {class: "legend"}, series.map(one => h("span", {}, s("svg", {viewBox: "0 0 26 10", "aria-hidden": "true"},
    s("line", {x1: 0, x2: 26, y1: 5, y2: 5, stroke: one.colour, "stroke-width": 2.5, "stroke-dasharray": one.dash}),
    one.points.length > 40 ? null : marker(one, 13, 5)), one.name)));
}
function marker(one, x, y) {
  const look = {fill: one.hollow ? "var(--card)" : one.colour, stroke: one.colour, "stroke-width": 2};
  return one.square ? s("rect", {x: x - 3.5, y: y - 3.5, width: 7, height: 7, ...look}) : s("circle", {cx: x, cy: y, r: 3.5, ...look});
}
// Round values that cover [low, high].
function ticks(low, high, about) {
  if (!(high > low)) { low -= Math.abs(low) * 0.1 + 0.5; high += Math.abs(high) * 0.1 + 0.5; }
  const raw = (high - low) / about, ten = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * ten).find(v => v >= raw * 0.999);
  const out = [];
  for (let i = Math.floor(low / step + 1e-9); (i - 1) * step < high - 1e-9 * step; ++i) out.push(+(i * step).toPrecision(12));
  return out;
}
// Lines over x. series: [{name, colour, dash?, hollow?, points: [{x, y, low?, high?}]}]; xs: every tick, or null.
function lines({title, note, x, y, series, xs, width}) {
  series = series.filter(one => one.points.length > 0);
  const all = series.flatMap(one => one.points);
  const W = width, H = Math.min(270, Math.max(190, W * 0.56)), L = 50, R = 12, T = 10, B = 40;
  const yt = ticks(least(all.map(p => p.low ?? p.y)), greatest(all.map(p => p.high ?? p.y)), 4);
  const xLow = least(all.map(p => p.x)), xHigh = greatest(all.map(p => p.x));
  const place = xs ? v => xs.indexOf(v) / Math.max(1, xs.length - 1) : v => (v - xLow) / (xHigh - xLow || 1);
  const X = v => L + (xs ? 14 : 0) + place(v) * (W - L - R - (xs ? 28 : 0));
  const Y = v => H - B - (v - yt[0]) / (yt[yt.length - 1] - yt[0]) * (H - T - B);
  const xt = xs || ticks(xLow, xHigh, 5).filter(v => v >= xLow && v <= xHigh);
  const svg = s("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title},
    yt.map(v => [s("line", {x1: L, x2: W - R, y1: Y(v), y2: Y(v), stroke: "var(--grid)"}),
                 s("text", {x: L - 7, y: Y(v) + 4, "text-anchor": "end"}, number(v))]),
    xt.map(v => [s("line", {x1: X(v), x2: X(v), y1: H - B, y2: H - B + 4, stroke: "var(--soft)"}),
                 s("text", {x: X(v), y: H - B + 17, "text-anchor": "middle"}, number(v))]),
    s("line", {x1: L, x2: W - R, y1: H - B, y2: H - B, stroke: "var(--soft)"}),
    s("text", {x: (L + W - R) / 2, y: H - 5, "text-anchor": "middle"}, x),
    s("text", {x: 11, y: (T + H - B) / 2, "text-anchor": "middle", transform: `rotate(-90 11 ${(T + H - B) / 2})`}, y),
    series.map(one => [
      one.points.map(p => p.low == null ? null : s("line", {x1: X(p.x), x2: X(p.x), y1: Y(p.low), y2: Y(p.high), stroke: one.colour, opacity: .45})),
      s("path", {d: "M" + one.points.map(p => `${X(p.x).toFixed(1)},${Y(p.y).toFixed(1)}`).join("L"), fill: "none", stroke: one.colour, "stroke-width": 1.8, "stroke-linejoin": "round", "stroke-dasharray": one.dash}),
      one.points.length > 40 ? null : one.points.map(p => marker(one, X(p.x), Y(p.y)))]));
  const values = [...new Set(all.map(p => p.x))].sort((a, b) => a - b);
  const stride = Math.ceil(values.length / 40);
  const shown = values.filter((_, i) => i % stride === 0 || i === values.length - 1);
  return figure(title, note, legendOf(series), svg, [x, ...series.map(one => one.name)],
    shown.map(v => [v, ...series.map(one => { const p = one.points.find(q => q.x === v); return p ? p.y : "–"; })]));
}
// One row an estimate: a dot and its 95 % interval. rows: [{label, estimate, colour?}]
function estimates({title, note, x, rows, low, high, reference, show, width}) {
  const W = width, line = 26, T = 6, B = 40, H = T + rows.length * line + B;
  const L = Math.min(W * 0.42, 16 + 7 * Math.max(...rows.map(row => row.label.length))), R = 54;
  const xt = ticks(low ?? Math.min(...rows.map(r => r.estimate.low)), high ?? Math.max(...rows.map(r => r.estimate.high)), W < 420 ? 3 : 5);
  const X = v => L + (v - xt[0]) / (xt[xt.length - 1] - xt[0]) * (W - L - R);
  const svg = s("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title},
    xt.map(v => [s("line", {x1: X(v), x2: X(v), y1: T, y2: H - B, stroke: "var(--grid)"}),
                 s("text", {x: X(v), y: H - B + 16, "text-anchor": "middle"}, show(v).replace(".0\u00a0%", "\u00a0%"))]),
    s("text", {x: (L + W - R) / 2, y: H - 5, "text-anchor": "middle"}, x),
    reference == null ? null : s("line", {x1: X(reference), x2: X(reference), y1: T, y2: H - B, stroke: "var(--soft)", "stroke-dasharray": "4 3"}),
    rows.map((row, i) => {
      const at = T + line * (i + .5), e = row.estimate, ink = row.colour || colour(0);
      return [s("text", {x: L - 10, y: at + 4, "text-anchor": "end", class: "label"}, row.label),
        s("line", {x1: X(e.low), x2: X(e.high), y1: at, y2: at, stroke: ink, "stroke-width": 2}),
        marker({colour: ink, square: row.square}, X(e.value), at),
        s("text", {x: W, y: at + 4, "text-anchor": "end", class: "label"}, show(e.value))];
    }));
  return figure(title, note, null, svg, ["", "value", "low", "high", "n"],
    rows.map(({label, estimate: e}) => [label, e.value, e.low, e.high, e.n]));
}
// One row a count. rows: [{label, parts: [{name, value, colour}]}]
function bars({title, note, x, rows, legend, width}) {
  const W = width, line = 28, T = 4, B = 40, H = T + rows.length * line + B, L = Math.min(W * 0.42, 16 + 7 * Math.max(...rows.map(r => r.label.length))), R = 14;
  const sum = row => row.parts.reduce((t, part) => t + part.value, 0);
  const xt = ticks(0, Math.max(...rows.map(sum)), W < 420 ? 3 : 5), X = v => L + v / xt[xt.length - 1] * (W - L - R);
  const svg = s("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title},
    xt.map(v => [s("line", {x1: X(v), x2: X(v), y1: T, y2: H - B, stroke: "var(--grid)"}),
                 s("text", {x: X(v), y: H - B + 16, "text-anchor": "middle"}, number(v))]),
    s("text", {x: (L + W - R) / 2, y: H - 5, "text-anchor": "middle"}, x),
    rows.map((row, i) => {
      let from = 0;
      const at = T + line * i + 5;
      return [s("text", {x: L - 10, y: at + 14, "text-anchor": "end", class: "label"}, row.label),
        row.parts.map(part => {
          const left = X(from), wide = X(from + part.value) - left, inside = wide > 34;
          from += part.value;
          return [s("rect", {x: left, y: at, width: Math.max(0, wide - 1), height: 18, fill: part.colour}),
            inside || row.parts.length === 1 ? s("text", {x: inside ? left + wide / 2 : left + wide + 4, y: at + 13.5, "text-anchor": inside ? "middle" : "start",
              style: inside ? "fill:var(--page)" : "fill:var(--ink)"}, number(part.value)) : null];
        })];
    }));
  const names = [...new Set(rows.flatMap(row => row.parts.map(part => part.name)))];
  const swatches = !legend ? null : h("div", {class: "legend"}, names.map(name => h("span", {},
    s("svg", {viewBox: "0 0 26 10"}, s("rect", {width: 26, height: 10, fill: rows[0].parts.find(p => p.name === name).colour})), name)));
  return figure(title, note, swatches, svg, ["", ...names], rows.map(row => [row.label, ...names.map(n => (row.parts.find(p => p.name === n) || {value: "–"}).value)]));
}
// How many of `values` lie where. Numbers only; others are left out.
function histogram({title, note, x, values, width, bins = 40}) {
  values = values.filter(v => typeof v === "number" && isFinite(v));
  if (!values.length) return null;
  let low = Infinity, high = -Infinity;
  for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
  const whole = values.every(Number.isInteger);
  bins = Math.max(1, whole ? Math.min(bins, high - low + 1) : bins);
  const step = whole ? Math.ceil((high - low + 1) / bins) : (high - low) / bins || 1;
  const counts = new Array(bins).fill(0);
  for (const v of values) ++counts[Math.min(bins - 1, Math.floor((v - low) / step))];
  const W = width, H = 190, L = 50, R = 12, T = 10, B = 40, most = Math.max(...counts), yt = ticks(0, most, 3), xt = ticks(low, low + bins * step, 5);
  const X = v => L + (v - low) / (bins * step) * (W - L - R), Y = v => H - B - v / yt[yt.length - 1] * (H - T - B);
  const svg = s("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title},
    yt.map(v => [s("line", {x1: L, x2: W - R, y1: Y(v), y2: Y(v), stroke: "var(--grid)"}), s("text", {x: L - 7, y: Y(v) + 4, "text-anchor": "end"}, number(v))]),
    xt.filter(v => v >= low && v <= low + bins * step).map(v => s("text", {x: X(v), y: H - B + 17, "text-anchor": "middle"}, number(v))),
    counts.map((count, i) => count ? s("rect", {x: X(low + i * step), y: Y(count), width: Math.max(1, X(low + step) - X(low) - 1), height: H - B - Y(count), fill: colour(0)}) : null),
    s("line", {x1: L, x2: W - R, y1: H - B, y2: H - B, stroke: "var(--soft)"}), s("text", {x: (L + W - R) / 2, y: H - 5, "text-anchor": "middle"}, x));
  return figure(title, note, null, svg, [x + " from", "number"], counts.map((count, i) => [low + i * step, count]).filter(row => row[1]));
}

// ---- the page, drawn for its width: text in plots keeps its size on a narrow screen ----
const section = (title, content) => [h("h2", {}, title), typeof content === "string" ? h("p", {class: "soft"}, content) : content];
// Draws what `content({half, third})` returns now and whenever the width changes; half and third are the widths of plots
// of which two or three stand side by side.
function keepDrawn(title, content) {
  document.title = title;
  const main = document.getElementById("main");
  const draw = () => {
    const inner = main.clientWidth - 40 - 30;
    const half = inner > 900 ? Math.round((inner - 16 - 30) / 2) : Math.min(inner, 620);
    const third = inner > 900 ? Math.round((inner - 32 - 60) / 3) : Math.min(inner, 480);
    main.replaceChildren();
    fill(main, {}, content({half, third}).flat(Infinity));
  };
  let drawn = document.documentElement.clientWidth;
  draw();
  addEventListener("resize", () => {
    if (document.documentElement.clientWidth === drawn) return;  // a phone's address bar came or went
    drawn = document.documentElement.clientWidth;
    draw();
  });
  return draw;
}

// ---- rows: any number of them, read and searched piece by piece so that the page never stands still ----
const SLICE = 4000;
const soon = () => new Promise(resolve => setTimeout(resolve));
// The rows that the page carries, as objects; calls `progress(number so far)` in between.
async function loadRows(progress) {
  if (document.readyState === "loading") await new Promise(resolve => addEventListener("DOMContentLoaded", resolve));
  const rows = [];
  for (const element of document.querySelectorAll("script.rows")) {
    const {columns, rows: values} = JSON.parse(element.textContent);
    element.remove();
    for (const value of values) {
      const row = {};
      columns.forEach((column, i) => { if (value[i] !== null) row[column] = value[i]; });
      rows.push(row);
    }
    progress(rows.length);
    await soon();
  }
  return rows;
}
const isDialogue = value => Array.isArray(value) && value.length > 0 && value.every(turn => turn && typeof turn.content === "string");
const asText = value => typeof value === "string" ? value : typeof value === "number" ? number(value) : value === undefined ? "" :
  isDialogue(value) ? value.map(turn => `${turn.role}: ${turn.content}`).join("\n\n") : JSON.stringify(value);
// {numbers, choices: Map of column -> its values, texts}: what the columns are.
function columnsOf(rows) {
  const kinds = new Map();
  for (const row of rows) {
    for (const [name, value] of Object.entries(row)) {
      let kind = kinds.get(name);
      if (!kind) kinds.set(name, kind = {numeric: true, values: new Set()});
      if (typeof value !== "number") kind.numeric = false;
      if (kind.values && kind.values.size <= 40) {
        if ((typeof value === "string" && value.length <= 60) || typeof value === "boolean") kind.values.add(value);
        else if (typeof value !== "number") kind.values = null;
      }
    }
  }
  const out = {numbers: [], choices: new Map(), texts: []};
  for (const [name, kind] of kinds) {
    if (kind.numeric) out.numbers.push(name);
    else if (kind.values && kind.values.size <= 40 && kind.values.size < rows.length) out.choices.set(name, [...kind.values].sort());
    else out.texts.push(name);
  }
  return out;
}
// A list to search, filter, sort and open. sort: {column, descending}; lead: the texts that a row shows; extra(row): what
// stands beneath an open one.
function rowBrowser({rows, columns, sort, lead, extra}) {
  const ROW = 96;
  let shown = rows, turn = 0, open = null;
  const count = h("span", {class: "soft small", role: "status"});
  const list = h("div", {class: "rows", tabindex: 0}), spacer = h("div", {}), detail = h("div", {class: "detail", hidden: ""});
  list.append(spacer);
  const telling = [...columns.numbers, ...[...columns.choices].filter(([name, values]) => values.length > 1 && !lead.includes(name)).map(([name]) => name)];
  if (sort) telling.sort((a, b) => (b === sort.column) - (a === sort.column));
  const facts = row => telling.filter(name => row[name] !== undefined).map(name => `${words(name)} ${asText(row[name])}`).join(" · ");
  const show = row => {
    open = row;
    detail.hidden = false;
    detail.replaceChildren();
    fill(detail, {}, [h("dl", {style: "margin:0"}, Object.entries(row).map(([name, value]) => [h("dt", {}, words(name)), h("dd", {}, asText(value) || "(empty)")])), extra ? extra(row) : null]);
    paint();
    detail.scrollIntoView({block: "nearest"});
  };
  const paint = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 3), last = Math.min(shown.length, first + Math.ceil(list.clientHeight / ROW) + 7);
    spacer.style.height = shown.length * ROW + "px";
    spacer.replaceChildren(...shown.slice(first, last).map((row, i) => {
      const button = h("button", {class: row === open ? "row open" : "row", type: "button", style: `top:${(first + i) * ROW}px`},
        lead.filter(name => row[name] !== undefined).slice(0, 3).map(name => h("p", {}, h("span", {class: "soft"}, words(name) + " "), asText(row[name]).slice(0, 400).replace(/\s+/g, " "))),
        h("div", {class: "facts soft small"}, facts(row)));
      button.addEventListener("click", () => show(row));
      return button;
    }));
  };
  list.addEventListener("scroll", () => requestAnimationFrame(paint));
  const search = h("input", {type: "search", placeholder: "words in any text"});
  const selects = [...columns.choices].filter(([, values]) => values.length > 1).map(([name, values]) => {
    const select = h("select", {}, h("option", {value: ""}, "all"), values.map((value, i) => h("option", {value: i}, asText(value) === "" ? "(none)" : String(value))));
    return {name, values, select};
  });
  const orders = columns.numbers.flatMap(name => [{column: name, descending: false}, {column: name, descending: true}]);
  const order = h("select", {}, h("option", {value: ""}, "as in the file"), orders.map((each, i) => h("option", {value: i}, `${words(each.column)} ${each.descending ? "↓" : "↑"}`)));
  const chosen = sort ? orders.findIndex(each => each.column === sort.column && each.descending === !!sort.descending) : -1;
  if (chosen >= 0) order.value = chosen;
  const update = async () => {
    const mine = ++turn, words = search.value.trim();
    const pattern = words ? new RegExp(words.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "i") : null;
    const filters = selects.filter(({select}) => select.value !== "").map(({name, values, select}) => ({name, value: values[+select.value]}));
    const texts = columns.texts.concat([...columns.choices.keys()]);
    const found = [];
    for (let at = 0; at < rows.length; at += SLICE) {
      for (const row of rows.slice(at, at + SLICE)) {
        if (filters.every(({name, value}) => row[name] === value) && (!pattern || texts.some(name => pattern.test(asText(row[name]))))) found.push(row);
      }
      if (rows.length > SLICE) await soon();
      if (mine !== turn) return;  // something else is asked for by now
    }
    const by = orders[+order.value];
    if (order.value !== "") {
      const key = row => row[by.column] === undefined ? Infinity : by.descending ? -row[by.column] : row[by.column];
      found.sort((a, b) => key(a) - key(b) || 0);
    }
    shown = found;
    count.textContent = `${found.length} of ${rows.length}`;
    list.scrollTop = 0;
    paint();
  };
  search.addEventListener("input", update);
  for (const control of [order, ...selects.map(each => each.select)]) control.addEventListener("change", update);
  const out = h("div", {}, h("div", {class: "controls"}, h("label", {class: "search"}, "search", search), selects.map(({name, select}) => h("label", {}, words(name), select)),
    h("label", {}, "order", order), count), list, detail);
  requestAnimationFrame(update);  // once the list has its height
  return out;
}
