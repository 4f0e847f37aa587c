#!/usr/bin/env python3
"""The method's ablations on the tiny world, over several seeds, as a table in Markdown.

    tests/bench/ablations.py [--groups factors filters …] [--seeds 1 2 3] [--store DIR]      (binaries: build/release)

Each line of the table is a run of deploy/recipes/world.yaml with the changes that VARIANTS names. Runs share a store, so
what several of them need (prompts, responses) is made once a seed; a run that is in the store is not done again, so the
command can be stopped and goes on. Figures are means over the seeds ± standard error. Nothing is tuned here: what a
variant changes was fixed before its first judged result on the seeds was seen.
"""

import argparse
import copy
import json
import os
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("ALMOST_SOURCE_DIR", str(ROOT))
os.environ.setdefault("ALMOST_BINARY_DIR", str(ROOT / "build/release"))
sys.path.insert(0, str(ROOT / "tests/integration"))
from suite import Suite  # noqa: E402


def configuration(name):
    model, shots, *demonstrations = name.split("-")
    return {"id": name, "model": model, "shots": int(shots)} | ({"demonstrations": demonstrations[0]} if demonstrations else {})


ALL = ["L-3-good", "L-1-good", "M-3-good", "M-1-good", "L-3-poor", "S-1-good", "S-1-poor", "S-0"]  # the ranking of world.yaml
ANSWERED = ALL + ["S-3-good", "L-0"]  # by every run, so that it is done once
BEFORE_POLICY = ("demonstration", "sft", "rl")
PAIRS = 600  # what the poorest factor alone can give; the same for each
FACTORS = {  # ranking, and how far apart in it a pair's sides are at least
    "size, shots and demonstrations": (ALL, 2),
    "size alone": (["L-3-good", "M-3-good", "S-3-good"], 1),
    "shots alone": (["L-3-good", "L-1-good", "L-0"], 1),
    "demonstrations alone": (["L-3-good", "L-3-poor"], 1),
}


def ranked(*names, gap, pairs=None):
    change = {"rubric": [{"configurations": [name]} for name in names], "min_rank_gap": gap}
    return {"comparisons": change | ({"max_pairs": pairs} if pairs else {})}


def dpo(**changes):  # of deploy/recipes/dpo.yaml, at PPO's learning rate
    spec = {"epochs": 1, "batch_size": 16, "max_tokens": 512, "beta": 0.1, **changes}
    return {"policy": True, "rl": {"algorithm": "ALGORITHM_DPO", "dpo": spec}}


# Group -> line -> changes of the recipe; the first line of a group is what the others are compared with. "with" names files
# of deploy/recipes, "policy" keeps the stages after the reward model, "agreeing" names the line of "factors" whose reward model
# must agree with each pair.
VARIANTS = {
    "factors": {line: ranked(*names, gap=gap, pairs=PAIRS) for line, (names, gap) in FACTORS.items()},
    # Run after "factors" had been seen: what the same 700 prompts give, each pair of it.
    "factors_all_pairs": {f"{line}, all pairs": ranked(*names, gap=gap) for line, (names, gap) in FACTORS.items()},
    "filters": {
        "as world.yaml": {},
        "with the length filter": {"comparisons": {"length_filter": True}},
        "pairs of neighbouring ranks too": {"comparisons": {"min_rank_gap": 1}},
        "without the prompts' filter": {"with": ["ablations/without_prompt_filter"]},
        "without the responses' filter": {"responses": {"filter": "none"}},
        # The paper's as-is reward model: here that of good demonstrations against poor ones.
        "pairs on which another reward model agrees": {"agreeing": "demonstrations alone"},
    },
    "reward_model_size": {f"reward model from {model}": {"reward_model": {"base_model": model}} for model in "MSL"},
    "prompts": {f"{n} prompts": {"responses": {"num_prompts": n}} for n in (700, 350, 175)},
    "policy": {
        "SFT on chosen answers, PPO": {"policy": True},
        "SFT on chosen answers, GRPO": {"policy": True, "with": ["grpo"]},
        "SFT on chosen answers, DPO": {"policy": True, "with": ["dpo", "world-dpo"]},
        "SFT on random answers": {"policy": True, "with": ["ablations/without_best_of_n"], "rl": None},
    },
    # Why GRPO with its scores divided and DPO at PPO's learning rate fall behind SFT. What grpo.yaml and world-dpo.yaml have was
    # chosen after these had been seen, world-dpo.yaml's on seed 1.
    "policy_causes": {
        "GRPO, scores divided": {"policy": True, "rl": {"algorithm": "ALGORITHM_GRPO", "spec": {"group_size": 8, "value_learning_rate": 0}}},
        "DPO at PPO's learning rate": dpo(),
        "DPO at PPO's learning rate, three passes": dpo(epochs=3),
        "DPO at PPO's learning rate, β 0.5": dpo(beta=0.5),
    },
    "kl": {f"PPO, β {beta}": {"policy": True, "rl": {"spec": {"kl_coefficient": beta}}} for beta in (0.2, 0.05, 0.8)},
    "decoding": {
        "answers sampled at T 1": {"policy": True},
        "greedy answers": {"policy": True, "evaluation": {"sampling": {"temperature": 0}}},
    },
    "policy_size": {f"policy {model}": {"policy": True, "sft": {"base_model": model}} for model in "MSL"},
}


def changed(value, change):
    """`value` with `change` filled in: objects into objects, None takes away, anything else replaces."""
    out = dict(value)
    for key, new in change.items():
        if new is None:
            out.pop(key, None)
        else:
            out[key] = changed(out.get(key, {}), new) if isinstance(new, dict) else new
    return out


def recipe_of(base, change, seed):
    recipe = copy.deepcopy(base) | {"seed": seed}
    recipe["evaluation"]["judge_target"] = "up:judge"
    recipe["responses"]["configurations"] = [configuration(name) for name in ANSWERED]
    recipe = changed(recipe, ranked(*ALL, gap=2) | {"evaluation": {"best_of": 16, "num_pairs": 2400, "grid_prompts": 300}})
    recipe = changed(recipe, {key: value for key, value in change.items() if key not in ("policy", "with", "agreeing")})
    if not change.get("policy"):
        for stage in BEFORE_POLICY:
            recipe.pop(stage, None)
    return recipe


def run_name(line, seed):
    return "".join(c if c.isalnum() else "-" for c in line.encode("ascii", "ignore").decode()) + f"-{seed}"


def evaluate(suite, base, name, change, seed, folder):
    """evaluation.json of one run, done now if it is not there yet."""
    run = run_name(name, seed)
    kept = folder / f"{run}.json"
    if not kept.exists():
        written = recipe_of(base, change, seed)
        if "agreeing" in change:
            evaluate(suite, base, change["agreeing"], VARIANTS["factors"][change["agreeing"]], seed, folder)
            model = next(folder.parent.glob(f"runs/{run_name(change['agreeing'], seed)}-try*/reward_model/model"))
            written["comparisons"] |= {"agreeing_scorer": "models/agreeing", "agreeing_source": str(model.relative_to(ROOT))}
        recipe = folder / f"{run}.recipe.yaml"
        recipe.write_text(json.dumps(written))
        print(f"{name}, seed {seed} …", file=sys.stderr, flush=True)
        # One that was cut off is begun anew under another name and takes over the stages that had ended.
        tries = [each["name"] for each in suite.json("runs", "list").get("runs", []) if each["name"].startswith(f"runs/{run}-try")]
        attempt = f"{run}-try{len(tries)}"
        changes = ["--with", *(ROOT / f"deploy/recipes/{file}.yaml" for file in change["with"])] if "with" in change else []
        suite.run(recipe, attempt, *changes, timeout=3600)
        suite.almost("artifacts", "get", attempt, "evaluation", "--to", folder / run)
        kept.write_text((folder / run / "evaluation.json").read_text())
    return json.loads(kept.read_text())


COLUMNS = {
    "RM right, %": lambda e: 100 * e["rm_accuracy"]["value"],
    "longer right, %": lambda e: 100 * e["rm_accuracy_length_only"]["value"],
    "likelihood right, %": lambda e: 100 * e["rm_accuracy_likelihood"]["value"],
    "RM less longer, points": lambda e: 100 * e["rm_versus"]["length_only"]["difference"]["value"],
    "RM less likelihood, points": lambda e: 100 * e["rm_versus"]["likelihood"]["difference"]["value"],
    "RM right, same system, %": lambda e: 100 * e["rm_same_configuration"]["rm"]["value"],
    "best of 16 by RM": lambda e: e["best_of_n"]["chosen"]["value"],
    "SFT wins, %": lambda e: 100 * e["win_rate_sft"]["value"],
    "RL wins, %": lambda e: 100 * e["win_rate_rl"]["value"],
    "RL over SFT, %": lambda e: 100 * e["win_rate_rl_over_sft"]["value"],
}


def cell(values):
    if not values:
        return "–"
    mean = statistics.mean(values)
    return f"{mean:.2f}" + (f" ± {statistics.stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else "")


def measured(of, evaluations):
    values = []
    for evaluation in evaluations:
        try:
            values.append(of(evaluation))
        except KeyError:
            return []
    return values


def print_table(group, results):
    columns = [name for name, of in COLUMNS.items() if any(measured(of, evaluations) for evaluations in results.values())]
    print(f"\n### {group.replace('_', ' ')}\n")
    print("| | seeds | " + " | ".join(columns) + " |")
    print("| --- | --- |" + " --- |" * len(columns))
    for name, evaluations in results.items():
        print(f"| {name} | {len(evaluations)} | " + " | ".join(cell(measured(COLUMNS[c], evaluations)) for c in columns) + " |")


def print_paired(seeds, evaluations):
    print("\n### the reward model against two rules, on the same pairs\n")
    print("| rule | seed | pairs decided by one alone: RM, rule | McNemar p | difference, points (95 %) |\n| --- | --- | --- | --- | --- |")
    for rule, words in (("length_only", "always the longer"), ("likelihood", "the vanilla model's likelihood")):
        for seed, evaluation in zip(seeds, evaluations):
            versus = evaluation["rm_versus"][rule]
            low, value, high = (100 * versus["difference"][key] for key in ("low", "value", "high"))
            print(f"| {words} | {seed} | {versus['only_rm_right']}, {versus['only_other_right']} | {versus['mcnemar_p']:.2g} | "
                  f"{value:+.1f} ({low:+.1f} to {high:+.1f}) |")


def print_best_of_n(evaluations):
    rules = ("chosen", "longest", "likeliest", "random", "oracle")
    print("\n### best of N\n\nJudge score of the answer taken of N by L-3-good.\n")
    print("| N | " + " | ".join(("by RM", "by length", "by likelihood", "random", "oracle")) + " |\n| --- |" + " --- |" * len(rules))
    for point, n in enumerate(each["n"] for each in evaluations[0]["best_of_n"]["curve"]):
        print(f"| {n} | " + " | ".join(cell([e["best_of_n"]["curve"][point][rule]["value"] for e in evaluations]) for rule in rules) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--store", type=pathlib.Path, default=ROOT / "build/ablations", help="beneath this repository")
    arguments = parser.parse_args()
    folder = arguments.store.resolve() / "ablations"
    folder.mkdir(parents=True, exist_ok=True)
    (arguments.store / "up.json").unlink(missing_ok=True)  # of an `almost up` that was killed
    with Suite(store=arguments.store.resolve()) as suite:
        base = suite.json("run", ROOT / "deploy/recipes/world.yaml", "--validate_only", "--id", "base")["recipe"]
        groups = {}
        for group in arguments.groups:
            groups[group] = {name: [evaluate(suite, base, name, change, seed, folder) for seed in arguments.seeds]
                             for name, change in VARIANTS[group].items()}
    for group, results in groups.items():
        print_table(group, results)
    if "filters" in groups:
        print_paired(arguments.seeds, groups["filters"]["as world.yaml"])
        print_best_of_n(groups["filters"]["as world.yaml"])


if __name__ == "__main__":
    main()
