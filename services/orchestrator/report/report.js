const evaluation = data.evaluation || {};
const stages = data.stages || [];
const GOAL_RL = 0.75;  // what this project has set itself

// How the last policy was made. "RL" is PPO, as everywhere where nothing else is said.
const RL = {ALGORITHM_GRPO: "GRPO", ALGORITHM_DPO: "DPO"}[data.rl_algorithm] || "RL";
const systemName = id => id === "sft" ? "SFT policy" : id === "rl" ? `${RL} policy` : id;
// ---- sections: each returns what stands under its heading; a string says what is missing ----
function headline() {
  const claims = [], baseline = data.baseline || "the baseline";
  const {win_rate_rl: rl, win_rate_sft: sft, win_rate_rl_over_sft: over, rm_accuracy: rm, rm_accuracy_length_only: length, rm_accuracy_likelihood: likelihood, best_of_n: best} = evaluation;
  const claim = (good, verdict, text) => claims.push(h("li", {}, h("span", {class: good ? "good" : "bad"}, (good ? "✓ " : "✗ ") + verdict + ". "), text));
  if (isEstimate(rl)) {
    const reached = rl.value >= GOAL_RL;
    claim(reached, `${RL} goal of ${100 * GOAL_RL} % ${reached ? "reached" : "missed"}`,
      `The ${RL} policy wins ${interval(rl, percent)} of its comparisons with ${baseline}, ties counted half.` +
      (reached && rl.low < GOAL_RL ? " The interval reaches below the goal." : !reached && rl.high >= GOAL_RL ? " The interval includes the goal." : ""));
  }
  const against = (e, who, whom) => claim(e.low > .5, e.low > .5 ? `${who} better than ${whom}` : e.high < .5 ? `${who} worse than ${whom}` : `No clear difference between ${who} and ${whom}`,
    `It wins ${interval(e, percent)}.`);
  if (isEstimate(sft)) against(sft, "SFT", baseline);
  if (isEstimate(over)) against(over, RL, "SFT");
  for (const [other, what] of [[length, "always picking the longer answer"], [likelihood, "the vanilla model's likelihood"]]) {
    if (!isEstimate(rm) || !isEstimate(other)) continue;
    const ahead = rm.value > other.value, clear = rm.low > other.high;
    claim(ahead, `Reward model ${clear ? "clearly beats" : ahead ? "is ahead of" : "does not beat"} ${what}`,
      `It orders ${percent(rm.value)} of the judged pairs rightly, against ${percent(other.value)}` + (ahead && !clear ? "; the intervals overlap." : "."));
  }
  if (best && isEstimate(best.chosen) && best.oracle.value > best.random.value) {
    const share = (best.chosen.value - best.random.value) / (best.oracle.value - best.random.value);
    claim(share > 0, `Best-of-${best.n ?? "N"} by the reward model ${share > 0 ? "helps" : "does not help"}`,
      `Its choice scores ${number(best.chosen.value)}, a random one ${number(best.random.value)}, the best possible ${number(best.oracle.value)}: ${share < 0 ? "none" : (100 * share).toFixed(0) + " %"} of the way.`);
  }
  const tile = (name, value, note) => h("div", {class: "tile"}, h("span", {class: "soft small"}, name), h("b", {}, value), h("span", {class: "soft small"}, note));
  const range = e => `95 %: ${percent(e.low).replace("\u00a0%", "")} to ${percent(e.high)}`;
  const total = stages.reduce((t, stage) => t + stage.seconds, 0);
  const used = name => stages.reduce((t, stage) => t + (stage.cost?.[name] || 0), 0);
  return [
    h("div", {class: "tiles"},
      isEstimate(rl) ? tile(`${RL} wins against ${baseline}`, percent(rl.value), range(rl)) : null,
      isEstimate(sft) ? tile(`SFT wins against ${baseline}`, percent(sft.value), range(sft)) : null,
      isEstimate(rm) ? tile("Reward model accuracy", percent(rm.value), range(rm)) : null,
      stages.length ? tile("Time, all stages", duration(total), `${stages.length} stages`) : null,
      used("device_seconds") ? tile("Devices at work", duration(used("device_seconds")), costWords(Object.fromEntries(costs.map(name => [name, used(name)])))) : null),
    claims.length ? h("ul", {style: "list-style:none;padding:0"}, claims) : h("p", {class: "soft"}, "Nothing was measured, so nothing is claimed."),
    evaluation.judge ? h("p", {class: "soft small"}, `Judged by ${evaluation.judge}. Intervals are 95 % bootstrap intervals over prompts, of this one run: they say nothing about other seeds.`) : null];
}
const costs = ["prompt_tokens", "generated_tokens", "scored_items", "judged_items", "trained_tokens"];
function costWords(cost) {
  const count = x => x < 1e4 ? number(x) : x < 1e6 ? `${(x / 1e3).toFixed(0)}\u00a0k` : `${+(x / 1e6).toPrecision(3)}\u00a0M`;
  return costs.filter(name => cost[name]).map(name => `${count(cost[name])} ${words(name)}`).join(" · ");
}
function pipeline() {
  if (!stages.length) return "This run has no stages.";
  const longest = Math.max(...stages.map(stage => stage.seconds), 1e-9);
  return [h("p", {class: "soft small"}, "Each stage reads what the stages before it made. The bar is its time against the longest stage's."),
    h("ol", {class: "flow"}, stages.map(stage => h("li", {}, h("div", {}, words(stage.id)), h("b", {}, duration(stage.seconds)),
      stage.items_failed ? h("div", {class: "small bad"}, `${stage.items_failed} set aside`) : null,
      stage.cached_from ? h("div", {class: "small soft"}, `from ${stage.cached_from}`) : null,
      h("div", {class: "share", style: `width:${Math.max(2, 100 * stage.seconds / longest)}%`})))),
    h("details", {}, h("summary", {}, "The numbers"), table(["stage", "seconds", "device seconds", "items", "set aside", "cost", "figures"], stages.map(stage =>
      [words(stage.id), stage.seconds, stage.cost?.device_seconds ?? "", stage.items_done, stage.items_failed, costWords(stage.cost || {}),
       Object.entries(stage.figures).map(([name, value]) => `${words(name)} ${number(value)}`).join(" · ")])))];
}
function judgeScores(width) {
  const systems = (evaluation.systems || []).filter(system => isEstimate(system.score));
  if (!systems.length) return "No judge scores were measured.";
  const known = new Map((data.configurations || []).map(c => [c.id, c]));
  const models = [...new Set(systems.map(system => known.get(system.id)?.model).filter(Boolean))];
  const sets = [...new Set((data.configurations || []).map(c => c.demonstrations).filter(Boolean))];
  const series = [];
  for (const model of models) {
    for (const [i, set] of sets.entries()) {
      const points = systems.map(system => ({system, c: known.get(system.id)}))
        .filter(({c}) => c?.model === model && (c.shots === 0 || c.demonstrations === set))
        .map(({system, c}) => ({x: c.shots, y: system.score.value, low: system.score.low, high: system.score.high})).sort((a, b) => a.x - b.x);
      if (points.some(p => p.x > 0) || (i === 0 && points.length)) {
        series.push({name: `${model}, ${set}`, colour: colour(models.indexOf(model)), dash: i ? "5 4" : null, hollow: i > 0, points});
      }
    }
  }
  const xs = [...new Set(series.flatMap(one => one.points.map(p => p.x)))].sort((a, b) => a - b);
  return h("div", {class: "grid wide"},
    series.length && xs.length > 1 ? lines({title: "Do size, more and better demonstrations help a vanilla model?", note: "A line a model and quality of demonstrations; bars are 95 % intervals. This order is what the comparisons assume.",
      x: "demonstrations in the prompt (shots)", y: "judge score (points)", series, xs, width}) : null,
    estimates({title: "How good is each system in the judge's eyes?", note: "Mean judge score with its 95 % interval.", x: "judge score (points)", show: x => String(+x.toFixed(2)), width,
      rows: systems.map(system => ({label: systemName(system.id), estimate: system.score, square: !known.has(system.id),
        colour: known.has(system.id) ? colour(Math.max(0, models.indexOf(known.get(system.id).model))) : colour(3)}))}));
}
function kept(width) {
  const asked = [["prompts", "Which prompts were kept?", "attempts"], ["comparisons", "Which comparisons were kept?", "comparisons"], ["demonstrations", "Which demonstrations were kept?", "dialogues"]];
  const figures = asked.map(([id, title, unit]) => {
    const found = stages.find(stage => stage.id === id)?.figures || {};
    const rows = Object.entries(found).filter(([name, value]) => (name === "kept" || name.startsWith("dropped_")) && value > 0).sort((a, b) => (b[0] === "kept") - (a[0] === "kept") || b[1] - a[1])
      .map(([name, value]) => ({label: words(name.replace("dropped_", "")), parts: [{name: unit, value, colour: name === "kept" ? colour(2) : colour(1)}]}));
    return rows.length ? bars({title, note: "The first bar is what was kept, the others what was dropped, by reason.", x: `number of ${unit}`, rows, width}) : null;
  }).filter(Boolean);
  return figures.length ? h("div", {class: "grid wide"}, figures) : "No stage counted what it kept and dropped.";
}
function rewardModel(width) {
  const rows = (names, from) => names.map(([name, label], i) => ({label, estimate: from?.[name], colour: i ? colour(1) : colour(0), square: i > 0})).filter(row => isEstimate(row.estimate));
  const mixed = rows([["rm_accuracy", "reward model"], ["rm_accuracy_length_only", "longer answer"], ["rm_accuracy_likelihood", "likelihood"]], evaluation);
  const same = rows([["rm", "reward model"], ["length_only", "longer answer"], ["likelihood", "likelihood"]], evaluation.rm_same_configuration);
  if (!mixed.length && !same.length) return "The reward model's accuracy was not measured.";
  const draw = (title, note, rows) => rows.length ? estimates({title, note, x: "pairs ordered as the judge orders them (%)", rows, low: Math.min(.5, ...rows.map(r => r.estimate.low)), high: 1, reference: .5, show: percent, width}) : null;
  return [h("div", {class: "grid wide"},
    draw("Does the reward model find the better of two systems' answers?", "Answers of different configurations to one prompt. The dashed line is guessing.", mixed),
    draw("And of two answers by the same system?", "The harder question: nothing but the answer's quality differs. The dashed line is guessing.", same)),
    Object.entries({length_only: "always picking the longer", likelihood: "the vanilla model's likelihood"}).filter(([rule]) => isEstimate(evaluation.rm_versus?.[rule]?.difference)).map(([rule, name]) => {
      const {difference, only_rm_right, only_other_right, mcnemar_p} = evaluation.rm_versus[rule];
      return h("p", {class: "soft small"}, `Against ${name}, on the same pairs: ${points(difference.value)} points (${points(difference.low)} to ${points(difference.high)}, prompts drawn together); ${only_rm_right} pairs only the reward model gets right, ${only_other_right} only the other, ${pValue(mcnemar_p)} (McNemar, exact).`);
    }),
    typeof evaluation.rm_length_correlation === "number" ? h("p", {class: "soft small"}, `Correlation of reward and length in tokens: ${number(evaluation.rm_length_correlation)}.`) : null];
}
function bestOfN(width) {
  const curve = evaluation.best_of_n?.curve;
  if (!curve?.length) return "Best-of-N was not measured.";
  const xs = curve.map(point => point.n);
  const one = (key, name, i, dash, intervals) => ({name, colour: colour(i), dash, square: i === 3, hollow: i === 1, points: curve.filter(p => isEstimate(p[key])).map(p => ({x: p.n, y: p[key].value, low: intervals ? p[key].low : null, high: intervals ? p[key].high : null}))});
  const plot = (title, note, y, series) => series.some(each => each.points.length) ? lines({title, note, x: "candidates to choose from (N)", y, xs, series, width}) : null;
  return h("div", {class: "grid"},
    plot("Does choosing by reward give better answers?", "Judge score of the answer taken; the bars are 95 % intervals of the reward model's choice.", "judge score (points)",
      [one("oracle", "best possible", 2, "2 3"), one("chosen", "reward model's choice", 0, null, true), one("longest", "longest", 3, "8 3"), one("likeliest", "likeliest", 4, "8 3 2 3"), one("random", "random", 1, "5 4")]),
    plot("How does the reward grow with N?", "Reward of the chosen answer. Where it grows and the score does not, the reward model is being exploited.", "reward (raw)", [one("reward", "chosen", 0, null, true)]),
    plot("Does choosing make answers longer?", "Length of the chosen answer.", "tokens", [one("tokens", "chosen", 0, null, true)]));
}
const CURVES = {
  loss: ["Does the loss fall?", "loss (nats)"], accuracy: ["Are the training pairs ordered rightly?", "share of pairs"], margin: ["How far apart are chosen and rejected?", "reward difference"],
  held_out_loss: ["Does the loss fall on pairs held out?", "loss (nats)"], held_out_accuracy: ["Are held-out pairs ordered rightly?", "share of pairs"],
  reward_mean: ["Does the reward rise?", "mean reward"], kl: ["How far does the policy move from the SFT policy?", "KL (nats)"],
  completion_tokens_mean: ["Do answers grow longer?", "tokens per answer"], entropy: ["Does the policy stay varied?", "entropy (nats)"],
};
const TIMES = ["step", "step_seconds", "tokens_per_second", "tokens"];
function curves(width) {
  const names = {reward_model: "Reward model", sft: "Supervised policy (SFT)", rl: RL === "RL" ? "Policy by RL (PPO)" : `Policy by ${RL}`};
  return Object.entries(names).map(([stage, name]) => {
    const all = data.curves?.[stage];
    if (!all?.length) return [h("h3", {style: "margin-top:18px"}, name), h("p", {class: "soft"}, "No curves of this stage.")];
    const metrics = [...new Set(all.flatMap(Object.keys))].filter(metric => !TIMES.includes(metric) && all.some(point => typeof point[metric] === "number"));
    const plot = metric => lines({title: CURVES[metric]?.[0] || words(metric), note: CURVES[metric] ? metric : null, x: "step", y: stage === "rl" && metric === "loss" ? "loss" : CURVES[metric]?.[1] || words(metric), width,
      series: [{name: metric, colour: colour(0), points: all.filter(p => typeof p[metric] === "number").map(p => ({x: p.step, y: p[metric]}))}]});
    const first = Object.keys(CURVES).filter(metric => metrics.includes(metric)), rest = metrics.filter(metric => !CURVES[metric]);
    return [h("h3", {style: "margin-top:18px"}, name), h("div", {class: "grid"}, first.map(plot)),
      rest.length ? h("details", {}, h("summary", {}, `${rest.length} more: ${rest.map(words).join(", ")}`), h("div", {class: "grid"}, rest.map(plot))) : null];
  });
}
function winRates(width) {
  const names = [["win_rate_rl", `${RL} against ${data.baseline}`], ["win_rate_sft", `SFT against ${data.baseline}`], ["win_rate_rl_over_sft", `${RL} against SFT`]];
  const rows = names.map(([name, label]) => ({name, label, estimate: evaluation[name], counts: evaluation.wins?.[name]})).filter(row => isEstimate(row.estimate));
  if (!rows.length) return "No win rates were measured.";
  const counted = rows.filter(row => row.counts);
  const controlled = rows.filter(row => isEstimate(evaluation.length_controlled?.[row.name]));
  const placed = rows.filter(row => evaluation.position?.[row.name]);
  const unparsable = counted.reduce((t, row) => t + (row.counts.unparsable || 0), 0);
  return [h("div", {class: "grid wide"},
    estimates({title: "How often do the trained policies win?", note: "Share of wins, ties counted half; 95 % interval. The dashed line is no difference.", x: "win rate (%)", rows, low: 0, high: 1, reference: .5, show: percent, width}),
    counted.length ? bars({title: "How many wins, ties and losses is that?", note: evaluation.judge === "a JudgeService" ? "A win is one in both orders of the two answers." : null, x: "prompts", legend: true, width,
      rows: counted.map(({label, counts}) => ({label, parts: [{name: "win", value: counts.win, colour: colour(0)}, {name: "tie", value: counts.tie, colour: "var(--soft)"}, {name: "loss", value: counts.loss, colour: colour(1)}]}))}) : null),
    controlled.length ? h("p", {class: "soft small"}, "Had both answers been equally long (logistic regression on the difference of length, its tanh in standard deviations): " + controlled.map(({name, label}) => {
      const {value, low, high} = evaluation.length_controlled[name];
      return `${label} ${percent(value)} (${percent(low)} – ${percent(high)})`;
    }).join("; ") + ".") : null,
    placed.length ? h("p", {class: "soft small"}, "How often the place alone decided, so that the two orders made a tie: " + placed.map(({name, label}) => {
      const {first, second, p} = evaluation.position[name];
      return `${label}: ${first} for the answer shown first, ${second} for the second` + (first + second ? ` (sign test, ${pValue(p)})` : "");
    }).join("; ") + ".") : null,
    unparsable ? h("p", {class: "soft small"}, `${unparsable} verdicts could not be read and do not count.`) : null];
}
function samples() {
  if (!data.samples?.length) return "No answers were collected.";
  const verdictOf = {sft: "sft/baseline", rl: "rl/baseline"};
  return [h("p", {class: "soft small"}, "Evenly spread over the evaluation prompts; nobody chose them. Score is the judge's, reward the reward model's raw one."),
    data.samples.map(sample => h("article", {class: "sample"}, h("h3", {}, sample.prompt), h("div", {class: "answers"},
      [data.baseline, "sft", "rl"].filter(id => sample.answers?.[id]).map(id => {
        const answer = sample.answers[id], verdict = sample.verdicts?.[verdictOf[id]];
        const facts = [answer.score != null ? `score ${number(answer.score)}` : null, answer.reward != null ? `reward ${number(answer.reward)}` : null, `${answer.num_tokens} tokens`].filter(Boolean).join(" · ");
        return h("div", {}, h("div", {class: "small"}, h("b", {}, id === data.baseline ? `${id} (baseline)` : systemName(id)), " ",
          verdict ? h("span", {class: verdict === "win" ? "good" : verdict === "loss" ? "bad" : "soft"}, verdict) : null), h("p", {}, answer.text || "(empty)"), h("div", {class: "soft small"}, facts));
      }))))];
}
function lineage() {
  if (!data.artifacts?.length) return "This run published no artifacts.";
  const names = new Map(data.artifacts.map(artifact => [artifact.digest, artifact.name]));
  const short = digest => h("code", {title: digest}, digest.slice(0, 12));
  return [h("p", {class: "soft small"}, "What was made of what. A hash is the SHA-256 of an artifact's manifest; equal hashes mean equal content, and times are in none of them. ",
      h("code", {}, "almost lineage HASH"), " follows them, line by line."),
    table(["artifact", "hash", "size", "made of"], data.artifacts.map(artifact => [artifact.name, short(artifact.digest), size(artifact.size_bytes),
      h("div", {}, Object.entries(artifact.inputs || {}).map(([name, digest]) => h("div", {}, names.get(digest) || name, " ", short(digest))))])),
    traces()];
}
// What came of some prompts: from left to right what a reader would ask one after the other.
function traces() {
  if (!data.traces?.length) return null;
  const reward = data.artifacts.find(artifact => artifact.name === "reward_model/model");
  const mark = reason => reason ? h("span", {class: "bad"}, "✗ " + words(reason)) : h("span", {class: "good"}, "✓");
  const answer = (head, text, facts) => h("div", {}, h("div", {class: "small"}, head), h("p", {}, text || "(empty)"), h("div", {class: "soft small"}, facts));
  return [h("h3", {style: "margin-top:22px"}, "From prompt to demonstration"),
    h("p", {class: "soft small"}, "Some prompts, evenly spread, and everything that came of each. ✓ was kept, ✗ was dropped, with its reason. ",
      reward ? ["Scores are those of the reward model ", h("code", {title: reward.digest}, reward.digest.slice(0, 12)), "."] : null),
    data.traces.map(trace => h("details", {class: "sample trace"}, h("summary", {}, h("b", {}, trace.prompt), " ",
        h("span", {class: "small"}, trace.dialogue ? mark(trace.dialogue.drop_reason) : null)),
      trace.responses.length ? [h("h3", {class: "small"}, "Answered by every configuration"), h("div", {class: "answers"},
        trace.responses.map(each => answer([h("b", {}, each.config), " ", mark(each.bad_reason)], each.response, `${each.num_tokens} tokens`)))] : null,
      trace.pairs.length ? [h("h3", {class: "small"}, "Compared by rank"),
        h("ul", {class: "pairs small"}, trace.pairs.map(each => h("li", {}, each.meta.replace("-vs-", " over "), " ", mark(each.drop_reason))))] : null,
      trace.candidates.length ? [h("h3", {class: "small"}, `Best of ${trace.candidates.length} by reward`), h("div", {class: "answers"},
        trace.candidates.map(each => answer([h("b", {}, each.chosen ? "chosen" : "not chosen"), " ", each.bad_reason ? mark(each.bad_reason) : null], each.text, `score ${number(each.score)}`)))] : null,
      trace.dialogue?.drop_reason ? h("p", {class: "small"}, "No demonstration: ", words(trace.dialogue.drop_reason), ".") : null))];
}
function recipe() {
  if (!data.recipe) return "The recipe is not known.";
  return h("details", {}, h("summary", {}, "Everything this run was told to do, defaults filled in"), h("pre", {}, data.recipe));
}

keepDrawn(`Report: ${data.display_name || data.run || "run"}`, ({half, third}) => [
  h("h1", {}, data.display_name || "Run report"), h("p", {class: "soft"}, data.run ? `Run ${data.run}: a model aligned with feedback it made itself` : null),
  headline(),
  section("The pipeline", pipeline()),
  section("Vanilla and trained systems", judgeScores(half)),
  section("Filters", kept(half)),
  section("Reward model", rewardModel(half)),
  section("Best of N", bestOfN(third)),
  section("Training", curves(third)),
  section("Win rates", winRates(half)),
  section("Answers side by side", samples()),
  section("Lineage", lineage()),
  section("Recipe", recipe()),
]);
