#!/usr/bin/env python3
"""Makes the golden models: tiny random checkpoints as transformers writes them, with what transformers computes.

    make_model_goldens.py DIR                              writes DIR (tests/parity/goldens/models)
    make_model_goldens.py --check DIR --binary PRINT_LOGITS
        makes the numbers of DIR's checkpoints anew; then makes other, less regular checkpoints and compares the
        binary's logits and greedy completions on them with transformers'; then loads what the binary wrote back of
        them in transformers. Exit 1 and a line for each that differs.

Each sub-folder is a model folder with
    expected.json         token_ids, the position of the first golden logits, greedy completions, and how far
                          transformers' own bfloat16 logits are off; of a reward model sequences and their scores
    expected.safetensors  logits_f32, logits_f64 [positions, vocabulary] of token_ids

float32 is transformers as it is. float64 is the same modules in double precision, with the casts to float32 that
transformers has in its norms and rotary embedding lifted. Weights are scaled so that logits spread (standard
deviation 1 to 6) and attention is not uniform.

Versions are those of deploy/versions.env.
"""

import argparse
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile

import safetensors.torch
import torch
import transformers
from transformers import (AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, GPTNeoXConfig,
                          LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
LOGIT_POSITIONS = 16
LENGTH = 80

SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2)
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)

YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
NEOX = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}

# name: (configuration, dtype of the file, reward model, bytes a shard)
GOLDEN = {
    "llama": (LlamaConfig(**SMALL | dict(num_key_value_heads=4)), torch.float32, False, "40KB"),
    # Rotary frequencies on both sides of llama3's band and inside it.
    "llama_gqa_llama3": (LlamaConfig(**SMALL, rope_theta=100.0, rope_scaling=LLAMA3, tie_word_embeddings=True),
                         torch.bfloat16, False, "1GB"),
    "llama_linear_biases": (LlamaConfig(**SMALL | dict(num_attention_heads=2, num_key_value_heads=1), head_dim=32,
                                        rope_scaling=dict(rope_type="linear", factor=2.5), attention_bias=True,
                                        mlp_bias=True, tie_word_embeddings=True), torch.float16, False, "1GB"),
    "mistral": (MistralConfig(**SMALL, head_dim=16, sliding_window=128), torch.bfloat16, False, "1GB"),
    "qwen2": (Qwen2Config(**SMALL, tie_word_embeddings=True), torch.bfloat16, False, "1GB"),
    "qwen3": (Qwen3Config(**SMALL, head_dim=24), torch.bfloat16, False, "1GB"),
    "llama_yarn": (LlamaConfig(**SMALL, rope_theta=100.0, rope_scaling=YARN, tie_word_embeddings=True), torch.bfloat16,
                   False, "1GB"),
    # The context ends where the window does.
    "mistral_window": (MistralConfig(**SMALL, sliding_window=96, tie_word_embeddings=True), torch.bfloat16, False, "1GB"),
    "pythia": (GPTNeoXConfig(**NEOX), torch.float16, False, "1GB"),
    # What Pythia leaves at its defaults the other way round.
    "neox_sequential": (GPTNeoXConfig(**NEOX, rotary_pct=1.0, rotary_emb_base=1000, use_parallel_residual=False,
                                      attention_bias=False, hidden_act="gelu_new", tie_word_embeddings=True),
                        torch.bfloat16, False, "1GB"),
    "llama_reward": (LlamaConfig(**SMALL, num_labels=1), torch.bfloat16, True, "1GB"),
    "pythia_reward": (GPTNeoXConfig(**NEOX, num_labels=1), torch.bfloat16, True, "1GB"),
}

# Sizes that no vector width or block divides.
ODD = dict(vocab_size=301, hidden_size=60, intermediate_size=108, num_hidden_layers=3, num_attention_heads=6,
           num_key_value_heads=3, max_position_embeddings=512, bos_token_id=1, eos_token_id=2)
ODD_NEOX = {k: v for k, v in ODD.items() if k != "num_key_value_heads"}
LIVE = {
    "llama": (LlamaConfig(**ODD, rope_theta=500000.0), torch.float32, False, "100KB"),
    "llama3": (LlamaConfig(**ODD | dict(hidden_size=256, num_attention_heads=4, num_key_value_heads=1), rope_scaling=LLAMA3),
               torch.bfloat16, False, "1GB"),
    "llama_linear": (LlamaConfig(**ODD, rope_scaling=dict(rope_type="linear", factor=8.0)), torch.float16, False, "1GB"),
    "llama_dynamic": (LlamaConfig(**ODD, rope_scaling=dict(rope_type="dynamic", factor=4.0)), torch.float16, False, "1GB"),
    "llama_yarn": (LlamaConfig(**ODD | dict(hidden_size=240), rope_scaling=dict(
        rope_type="yarn", factor=8.0, original_max_position_embeddings=64, beta_fast=16.0, beta_slow=2.0,
        truncate=False)), torch.float32, False, "1GB"),
    "qwen2_yarn": (Qwen2Config(**ODD, rope_scaling=dict(rope_type="yarn", factor=4.0, mscale=0.7, mscale_all_dim=0.3)),
                   torch.bfloat16, False, "1GB"),
    "mistral": (MistralConfig(**ODD, head_dim=32, sliding_window=None), torch.float16, False, "1GB"),
    "qwen2": (Qwen2Config(**ODD), torch.bfloat16, False, "1GB"),
    "qwen3": (Qwen3Config(**ODD, head_dim=64, attention_bias=True), torch.float32, False, "1GB"),
    "mistral_window": (MistralConfig(**ODD, sliding_window=301), torch.bfloat16, False, "1GB"),
    "qwen2_window": (Qwen2Config(**ODD, use_sliding_window=True, sliding_window=310, max_window_layers=1), torch.bfloat16,
                     False, "1GB"),
    "pythia": (GPTNeoXConfig(**ODD_NEOX, attention_bias=False), torch.float16, False, "100KB"),
    "neox_yarn": (GPTNeoXConfig(**ODD_NEOX | dict(hidden_size=240), rotary_pct=0.5, hidden_act="gelu_fast",
                                rope_scaling=YARN), torch.float32, False, "1GB"),
    "neox_sequential": (GPTNeoXConfig(**ODD_NEOX, rotary_pct=1.0, use_parallel_residual=False, tie_word_embeddings=True),
                        torch.bfloat16, False, "1GB"),
    "pythia_reward": (GPTNeoXConfig(**ODD_NEOX, num_labels=1), torch.float16, True, "1GB"),
    "mistral_reward": (MistralConfig(**ODD, num_labels=1, sliding_window=None), torch.float32, True, "1GB"),
    "qwen2_reward": (Qwen2Config(**ODD, num_labels=1), torch.bfloat16, True, "1GB"),
    "qwen3_reward": (Qwen3Config(**ODD, num_labels=1, head_dim=32), torch.bfloat16, True, "1GB"),
}


def make(folder, config, dtype, reward, shard_bytes, generator):
    auto = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name and p.ndim == 1 and name.endswith("weight"):
                p.copy_(1 + 0.2 * noise)
            elif p.ndim == 1:
                p.copy_(0.3 * noise)
            elif "embed_tokens" in name or "embed_in" in name:
                p.copy_(noise * (0.5 if config.tie_word_embeddings else 1.0))
            elif "lm_head" in name or "embed_out" in name or "score" in name:
                p.copy_(noise * 3 / math.sqrt(p.shape[1]))
            else:
                p.copy_(noise * (1.6 if re.search(r"[qk]_proj|query_key_value", name) else 1.0) / math.sqrt(p.shape[1]))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_bytes)


@contextlib.contextmanager
def no_float32_inside(model):
    """transformers casts norms and angles to float32 whatever the model's dtype; here they are float64."""
    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        single = torch.float
        torch.float = torch.float32 = torch.float64  # what the frequencies are computed in
        try:
            frequencies, scaling = ROPE_INIT_FUNCTIONS[self.rope_type](self.config, None)
        finally:
            torch.float = torch.float32 = single
        assert frequencies.dtype == torch.float64
        angles = position_ids[:, :, None].double() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * scaling, angles.sin() * scaling

    patched = [(type(m), norm if "RMSNorm" in type(m).__name__ else rotary) for m in model.modules()
               if "RMSNorm" in type(m).__name__ or "RotaryEmbedding" in type(m).__name__]
    before = {kind: kind.forward for kind, _ in patched}
    try:
        for kind, forward in patched:
            kind.forward = forward
        yield
    finally:
        for kind, forward in before.items():
            kind.forward = forward


class Reference:
    def __init__(self, folder):
        self.reward = AutoConfig.from_pretrained(folder).architectures[0].endswith("SequenceClassification")
        auto = AutoModelForSequenceClassification if self.reward else AutoModelForCausalLM
        self.single = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
        self.half = auto.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        self.double = auto.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()

    @torch.no_grad()
    def logits(self, ids):
        """float32 and float64, [tokens, vocabulary]; a reward model's score [1]."""
        ids = torch.tensor([ids])
        single = self.single(ids, use_cache=False).logits[0]
        with no_float32_inside(self.double):
            double = self.double(ids, use_cache=False).logits[0]
        assert single.dtype == torch.float32 and double.dtype == torch.float64
        return single, double

    @torch.no_grad()
    def bfloat16_error(self, ids, double):
        """Root mean square of what bfloat16 weights and activations do to the logits."""
        half = self.half(torch.tensor([ids]), use_cache=False).logits[0]
        assert half.dtype == torch.bfloat16
        return (half.double() - double).square().mean().sqrt().item()

    def greedy(self, prompt, count):
        """The completion, or None where two tokens come so close that rounding may decide."""
        ids = list(prompt)
        for _ in range(count):
            best = self.logits(ids)[1][-1].topk(2)
            if best.values[0] - best.values[1] < 0.01:
                return None
            ids.append(best.indices[0].item())
        return ids[len(prompt):]


def random_ids(count, vocab, generator):
    return torch.randint(0, vocab, (count,), generator=generator).tolist()


def greedy_cases(reference, vocab, generator):
    cases = []
    while len(cases) < 2:
        prompt = random_ids(5 + 20 * len(cases), vocab, generator)
        completion = reference.greedy(prompt, 24)
        if completion:
            cases.append({"prompt_ids": prompt, "completion_ids": completion})
    return cases


def expected(folder, vocab, generator):
    reference = Reference(folder)
    if reference.reward:
        sequences = [random_ids(n, vocab, generator) for n in (1, 7, 16, 33, 80)]
        scores = [reference.logits(ids) for ids in sequences]
        return {"sequences": sequences, "scores_f32": [s[0].item() for s in scores],
                "scores_f64": [s[1].item() for s in scores]}, {}
    ids = random_ids(LENGTH, vocab, generator)
    single, double = reference.logits(ids)
    assert 1 < double.std() < 6, double.std()
    assert (single - double).abs().max() < 1e-4
    first = LENGTH - LOGIT_POSITIONS
    return ({"token_ids": ids, "first_position": first, "greedy": greedy_cases(reference, vocab, generator),
             "bfloat16_error": reference.bfloat16_error(ids, double)},
            {"logits_f32": single[first:].clone(), "logits_f64": double[first:].clone()})


def write(root):
    for name, (config, dtype, reward, shard_bytes) in GOLDEN.items():
        generator = torch.Generator().manual_seed(sum(name.encode()))
        folder = os.path.join(root, name)
        make(folder, config, dtype, reward, shard_bytes, generator)
        generation = os.path.join(folder, "generation_config.json")
        if os.path.exists(generation):
            os.remove(generation)
        numbers, tensors = expected(folder, config.vocab_size, generator)
        with open(os.path.join(folder, "expected.json"), "w") as f:
            json.dump(numbers, f, separators=(",", ":"))
            f.write("\n")
        if tensors:
            safetensors.torch.save_file(tensors, os.path.join(folder, "expected.safetensors"))
    size = sum(os.path.getsize(os.path.join(at, file)) for at, _, files in os.walk(root) for file in files)
    print(f"{len(GOLDEN)} models, {size} bytes")


def ask(binary, folder, request, *copy):
    return json.loads(subprocess.run([binary, folder, *copy], input=json.dumps(request), text=True, check=True,
                                     stdout=subprocess.PIPE).stdout)


def check_goldens(root, fail):
    """The committed numbers are those of the committed checkpoints."""
    for name in GOLDEN:
        folder = os.path.join(root, name)
        golden = json.load(open(os.path.join(folder, "expected.json")))
        reference = Reference(folder)
        if reference.reward:
            fresh = torch.tensor([reference.logits(ids)[1].item() for ids in golden["sequences"]], dtype=torch.float64)
            wanted = torch.tensor(golden["scores_f64"], dtype=torch.float64)
        else:
            fresh = reference.logits(golden["token_ids"])[1][golden["first_position"]:]
            wanted = safetensors.torch.load_file(os.path.join(folder, "expected.safetensors"))["logits_f64"]
            for case in golden["greedy"]:
                if reference.greedy(case["prompt_ids"], 24) != case["completion_ids"]:
                    fail(f"{name}: greedy completion differs from the golden one")
        if (difference := (fresh - wanted).abs().max().item()) > 1e-11:
            fail(f"{name}: differs by {difference} from the golden numbers")


def check_live(binary, fail):
    for name, (config, dtype, reward, shard_bytes) in LIVE.items():
        generator = torch.Generator().manual_seed(1000 + sum(name.encode()))
        with tempfile.TemporaryDirectory() as root:
            folder, copy = os.path.join(root, "model"), os.path.join(root, "copy")
            os.mkdir(copy)
            make(folder, config, dtype, reward, shard_bytes, generator)
            reference = Reference(folder)
            sequences = [random_ids(n, config.vocab_size, generator) for n in (1, 17, 300)]
            cases = [] if reward else greedy_cases(reference, config.vocab_size, generator)
            answer = ask(binary, folder, {"sequences": sequences, "prompts": [c["prompt_ids"] for c in cases],
                                          "max_new_tokens": 24}, copy)
            written = Reference(copy)
            # A reward model has one number a sequence: its spread is over sequences.
            references = [reference.logits(ids) for ids in sequences]
            spread = torch.cat([double.flatten() for _, double in references]).std().item()
            worst = 0.0
            for ids, ours, (single, double) in zip(sequences, answer["logits"], references):
                worst = max(worst, (torch.tensor(ours, dtype=torch.float64) - double).abs().max().item() / spread)
                # Bits may differ: torch rounds by where the file puts a tensor in memory.
                if (written.logits(ids)[1] - double).abs().max().item() > 1e-11:
                    fail(f"{name}: the folder written back gives other logits in transformers")
            if worst > 1e-4:
                fail(f"{name}: logits differ by {worst:.2e} of their standard deviation")
            if answer["completions"] != [c["completion_ids"] for c in cases]:
                fail(f"{name}: greedy completions differ")
            print(f"{name}: {worst:.1e} of the standard deviation {spread:.2f}, {len(cases)} greedy completions")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--binary")
    parser.add_argument("dir")
    args = parser.parse_args()
    pinned = dict(re.findall(r"^(\w+)=(\S+)$", open(os.path.join(ROOT, "deploy", "versions.env")).read(), re.M))
    for package, wanted in ((torch, pinned["LIBTORCH_VERSION"]), (transformers, pinned["TRANSFORMERS_VERSION"])):
        if package.__version__.split("+")[0] != wanted:
            sys.exit(f"{package.__name__} {wanted} is needed, found {package.__version__}")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not args.check:
        return write(args.dir)
    failures = []
    check_goldens(args.dir, failures.append)
    check_live(args.binary, failures.append)
    print("\n".join(failures) or f"{len(GOLDEN)} goldens as made anew, {len(LIVE)} further models alike")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
