#!/usr/bin/env python3
"""Makes the golden numbers of the trainer: losses, gradients and optimizer steps of plain PyTorch.

    make_training_goldens.py FILE           writes FILE (tests/parity/goldens/training.json)
    make_training_goldens.py --check FILE   makes them anew; exit 1 and a line for each that differs

Models are those of tests/parity/goldens/models in transformers, one sequence at a time, without padding or packing;
losses are written out with masks over whole sequences. f32 is transformers as it is, f64 the same in double precision
throughout (make_model_goldens.py says how). Gradients are given as their norm by tensor.

Versions are those of deploy/versions.env.
"""

import argparse
import json
import math
import os
import sys

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_model_goldens import no_float32_inside  # noqa: E402

MODELS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "goldens", "models")
LANGUAGE_MODELS = ["llama", "llama_gqa_llama3", "qwen2", "qwen3", "pythia", "neox_sequential"]
VOCAB = 96
LENGTHS = [5, 17, 9, 30, 12, 23]
PPO = dict(kl_coefficient=0.07, gamma=0.98, gae_lambda=0.9, clip_range=0.2, value_clip_range=0.3,
           value_coefficient=0.5)


def formula(shape, scale, phase):
    """Weights that need no file: the same in C++."""
    count = math.prod(shape)
    return (scale * torch.sin(torch.arange(count, dtype=torch.float64) * 0.7 + phase)).view(shape)


def samples():
    generator = torch.Generator().manual_seed(5)
    sequences = [torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in LENGTHS]
    # Two turns each: what lies between two answers is not learned and carries PPO's state over.
    masks = [[t > n // 3 and not (2 * n // 3 <= t < 2 * n // 3 + 2) for t in range(n)] for n in LENGTHS]
    return sequences, masks


def token_logprobs(model, ids):
    """log p(ids[t] | before) for t >= 1, [len - 1]."""
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1]
    return F.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def pretrain(model, _):
    generator = torch.Generator().manual_seed(6)
    rows = torch.randint(0, VOCAB, (4, 24), generator=generator).tolist()
    return -torch.cat([token_logprobs(model, ids) for ids in rows]).mean(), {"sequences": rows}


def sft(model, _):
    sequences, masks = samples()
    parts = [token_logprobs(model, ids)[torch.tensor(mask[1:])] for ids, mask in zip(sequences, masks)]
    return -torch.cat(parts).mean(), {}


def dpo(model, dtype):
    sequences, masks = samples()
    sums = torch.stack([token_logprobs(model, ids)[torch.tensor(mask[1:])].sum()
                        for ids, mask in zip(sequences, masks)])
    reference = (sums.detach().double() + formula((6,), 2.0, 0.3)).to(dtype)
    margin = (sums[:3] - reference[:3]) - (sums[3:] - reference[3:])
    return -F.logsigmoid(0.3 * margin).mean(), {"beta": 0.3, "reference": reference.double().tolist()}


def reward_model(model, _):
    sequences, _ = samples()
    rewards = torch.stack([model(torch.tensor([ids])).logits[0, 0] for ids in sequences])
    return -F.logsigmoid(rewards[:3] - rewards[3:]).mean(), {}


def reward_model_with_margins(model, _):
    """All three pairs of a ranking of three answers, with margins and centering."""
    sequences, _ = samples()
    rewards = torch.stack([model(torch.tensor([ids])).logits[0, 0] for ids in sequences[:3]])
    pairs, margins = [(0, 1), (0, 2), (1, 2)], [0.25, 1.0, 0.5]
    losses = [-F.logsigmoid(rewards[a] - rewards[b] - m) + 0.01 * (rewards[a] + rewards[b]) ** 2
              for (a, b), m in zip(pairs, margins)]
    return torch.stack(losses).mean(), {"pairs": pairs, "margins": margins, "center_coefficient": 0.01}


class ValueHead(torch.nn.Module):
    def __init__(self, size, dtype):
        super().__init__()
        self.hidden = torch.nn.Linear(size, size, dtype=dtype)
        self.output = torch.nn.Linear(size, 1, dtype=dtype)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(formula(p.shape, 0.3, i))

    def forward(self, hidden):
        return self.output(torch.tanh(self.hidden(hidden)))[..., 0]


def ppo(model, dtype):
    """Iteration's arithmetic and the first update's loss, on whole sequences under a mask."""
    sequences, masks = samples()
    head = ValueHead(model.config.hidden_size, dtype)
    model.value_head = head
    policy_losses, value_losses, everything = [], [], []
    old_all, reference_all, values_all, scores = [], [], [], formula((6,), 1.5, 0.9).tolist()
    for i, (ids, mask) in enumerate(zip(sequences, masks)):
        T = len(ids) - 1
        out = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        logp = F.log_softmax(out.logits[0, :-1], -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        value = head(out.hidden_states[-1][0, :-1].detach())
        # What was noted when the rollout was made: near today's, so that some ratios are clipped.
        old = (logp.detach().double() + formula((T,), 0.35, i)).to(dtype)
        reference = (logp.detach().double() + formula((T,), 0.5, i + 0.5)).to(dtype)
        old_value = (value.detach().double() + formula((T,), 0.6, i + 0.2)).to(dtype)
        last = max(t for t in range(T) if mask[t + 1])
        reward = -PPO["kl_coefficient"] * (old - reference).double()
        reward[last] += scores[i]
        advantage, next_value, carried = torch.zeros(T, dtype=torch.float64), 0.0, 0.0
        for t in reversed(range(T)):
            if not mask[t + 1]:
                continue
            delta = reward[t].item() + PPO["gamma"] * next_value - old_value[t].item()
            carried = delta + PPO["gamma"] * PPO["gae_lambda"] * carried
            advantage[t], next_value = carried, old_value[t].item()
        everything.append((logp, value, old, old_value, advantage, advantage + old_value.double(),
                           torch.tensor(mask[1:])))
        old_all.append(old.double()[everything[-1][-1]].tolist())
        reference_all.append(reference.double()[everything[-1][-1]].tolist())
        values_all.append(old_value.double()[everything[-1][-1]].tolist())
    chosen = torch.cat([e[4][e[6]] for e in everything])
    mean, std = chosen.mean(), chosen.std(unbiased=False)
    for logp, value, old, old_value, advantage, returns, mask in everything:
        advantage = ((advantage - mean) / (std + 1e-8)).to(dtype)
        returns = returns.to(dtype)
        ratio = (logp - old).clamp(-20, 20).exp()
        clipped = ratio.clamp(1 - PPO["clip_range"], 1 + PPO["clip_range"])
        policy_losses.append(-torch.min(ratio * advantage, clipped * advantage)[mask])
        near = old_value + (value - old_value).clamp(-PPO["value_clip_range"], PPO["value_clip_range"])
        value_losses.append(0.5 * torch.max((value - returns) ** 2, (near - returns) ** 2)[mask])
    loss = torch.cat(policy_losses).mean() + PPO["value_coefficient"] * torch.cat(value_losses).mean()
    return loss, {**PPO, "scores": scores, "old_logprobs": old_all, "reference_logprobs": reference_all,
                  "old_values": values_all}


def grpo(model, dtype):
    """The first update's loss: two groups of three answers, KL penalty by answer."""
    sequences, masks = samples()
    scores, losses = formula((6,), 1.5, 0.9), []
    inputs = {"old_logprobs": [], "reference_logprobs": [], "scores": scores.tolist(), "group_size": 3, **PPO}
    noted = []
    for i, (ids, mask) in enumerate(zip(sequences, masks)):
        chosen = torch.tensor(mask[1:])
        logp = token_logprobs(model, ids)[chosen]
        T = len(logp)
        old = (logp.detach().double() + formula((T,), 0.35, i)).to(dtype)
        reference = (logp.detach().double() + formula((T,), 0.5, i + 0.5)).to(dtype)
        noted.append((logp, old, (old - reference).double().sum()))
        inputs["old_logprobs"].append(old.double().tolist())
        inputs["reference_logprobs"].append(reference.double().tolist())
    for begin in (0, 3):
        rewards = scores[begin:begin + 3]
        kls = torch.stack([kl for _, _, kl in noted[begin:begin + 3]])
        advantages = ((rewards - rewards.mean()) / (rewards.std(unbiased=False) + 1e-8)
                      - PPO["kl_coefficient"] * (kls - kls.mean()))
        for (logp, old, _), advantage in zip(noted[begin:begin + 3], advantages.to(dtype)):
            ratio = (logp - old).clamp(-20, 20).exp()
            clipped = ratio.clamp(1 - PPO["clip_range"], 1 + PPO["clip_range"])
            losses.append(-torch.min(ratio * advantage, clipped * advantage))
    return torch.cat(losses).mean(), inputs


def measure(name, kind, dtype):
    auto = AutoModelForSequenceClassification if kind in (reward_model, reward_model_with_margins) else AutoModelForCausalLM
    model = auto.from_pretrained(os.path.join(MODELS, name), dtype=dtype, attn_implementation="sdpa")
    with no_float32_inside(model) if dtype == torch.float64 else torch.enable_grad():
        loss, inputs = kind(model, dtype)
        loss.backward()
    norms = {n: p.grad.double().norm().item() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.item(), "grad_norms": norms, "inputs": inputs}


def muon_step(p, grad, momentum, lr, decay):
    """world-reference pretrain.py, one matrix."""
    momentum.lerp_(grad, 0.05)
    g = grad.lerp(momentum, 0.95)
    tall = g.shape[0] > g.shape[1]
    x = g.T if tall else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.T if tall else x
    p.mul_(1 - lr * decay).add_(x, alpha=-lr * max(1, g.shape[0] / g.shape[1]) ** 0.5)


def optimizers():
    """Twelve steps under a schedule with clipping; parameters and gradients by formula."""
    shapes = {"model.layers.0.tall.weight": (6, 4), "model.layers.0.wide.weight": (3, 5),
              "model.layers.0.norm.weight": (5,), "model.embed_tokens.weight": (4, 3)}
    result = {"shapes": shapes, "learning_rate": 0.03, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95,
              "max_grad_norm": 1.5, "muon_learning_rate": 0.02, "muon_weight_decay": 0.05,
              "factors": [min(1, (i + 1) / 4) * (1 - i / 16) for i in range(12)]}
    for muon in (False, True):
        parameters = {n: torch.nn.Parameter(formula(s, 1.0, i)) for i, (n, s) in enumerate(shapes.items())}
        hidden = [n for n in shapes if muon and n.startswith("model.layers.") and len(shapes[n]) == 2]
        rest = {n: p for n, p in parameters.items() if n not in hidden}
        adamw = torch.optim.AdamW([dict(params=[p for p in rest.values() if p.ndim == 2], weight_decay=0.1),
                                   dict(params=[p for p in rest.values() if p.ndim == 1], weight_decay=0.0)],
                                  betas=(0.9, 0.95), eps=1e-8)
        momentum = {n: torch.zeros_like(parameters[n]) for n in hidden}
        norms = []
        for step, factor in enumerate(result["factors"]):
            for i, (n, p) in enumerate(parameters.items()):
                p.grad = formula(p.shape, 0.2 + 0.1 * step, 1.3 * i + step)
            norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), result["max_grad_norm"]).item())
            for group in adamw.param_groups:
                group["lr"] = result["learning_rate"] * factor
            adamw.step()
            with torch.no_grad():
                for n in hidden:
                    muon_step(parameters[n], parameters[n].grad, momentum[n], result["muon_learning_rate"] * factor, 0.05)
        result["muon" if muon else "adamw"] = {
            "grad_norms": norms, "parameters": {n: p.detach().flatten().tolist() for n, p in parameters.items()}}
    return result


def make():
    sequences, masks = samples()
    kinds = {"pretrain": pretrain, "sft": sft, "dpo": dpo, "ppo": ppo, "grpo": grpo}
    losses = {}
    for name in LANGUAGE_MODELS:
        losses[name] = {k: {"f64": measure(name, kind, torch.float64), "f32": measure(name, kind, torch.float32)}
                        for k, kind in kinds.items()}
    reward_kinds = {"reward_model": reward_model, "reward_model_with_margins": reward_model_with_margins}
    for name in ("llama_reward", "pythia_reward"):
        losses[name] = {k: {"f64": measure(name, kind, torch.float64), "f32": measure(name, kind, torch.float32)}
                        for k, kind in reward_kinds.items()}
    return {"sequences": sequences, "is_target": masks, "losses": losses, "optimizers": optimizers()}


def differences(path, golden, fresh, tolerance):
    if isinstance(golden, dict):
        if golden.keys() != fresh.keys():
            yield f"{path}: other keys"
            return
        for key in golden:
            yield from differences(f"{path}/{key}", golden[key], fresh[key], 1e-5 if key == "f32" else tolerance)
    elif isinstance(golden, list):
        if len(golden) != len(fresh):
            yield f"{path}: another length"
            return
        for i, (a, b) in enumerate(zip(golden, fresh)):
            yield from differences(f"{path}[{i}]", a, b, tolerance)
    elif isinstance(golden, float):
        if abs(golden - fresh) > tolerance * max(1.0, abs(golden)):
            yield f"{path}: {fresh}, golden {golden}"
    elif golden != fresh:
        yield f"{path}: {fresh}, golden {golden}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fresh = json.loads(json.dumps(make()))
    if not arguments.check:
        with open(arguments.file, "w") as f:
            json.dump(fresh, f, separators=(",", ":"))
            f.write("\n")
        return 0
    with open(arguments.file) as f:
        wrong = list(differences("", json.load(f), fresh, 1e-11))
    print("\n".join(wrong) if wrong else "the goldens are what PyTorch computes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
