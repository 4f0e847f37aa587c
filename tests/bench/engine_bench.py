#!/usr/bin/env python3
"""The CPU engine beside transformers, llama.cpp, OpenVINO GenAI and vLLM, on one machine.

    tests/bench/setup                          once: the others, in environments of their own
    tests/bench/engine_bench.py PART…          runs parts; results are kept in build/bench
    tests/bench/engine_bench.py table          prints what is kept

Parts: models (random weights, 134M parameters, float32 and bfloat16), peak, ours, transformers, llama, openvino, vllm;
world (the tiny world's S, M and L: ours and transformers). Each takes minutes; run them one after the other, with nothing else.

Work: `batch` is 64 prompts of 24 tokens behind 1,000 common ones, 128 new tokens each, T 1.0, top-p 0.9, from a cold cache;
`single` is one prompt of 16 tokens, 128 new ones, tokens a second from the first token on.
"""
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPS = pathlib.Path(os.environ.get("ALMOST_DEPS", pathlib.Path.home() / ".cache/almost"))
OUT = pathlib.Path(os.environ.get("ALMOST_BENCH_OUT", ROOT / "build/bench"))
BINARY = ROOT / "build/release/bin/engine_bench"
THREADS = int(os.environ.get("ALMOST_BENCH_THREADS", len(os.sched_getaffinity(0))))
NEW = 128
DTYPES = ("float32", "bfloat16")


def batch_prompts():
    draw = random.Random(1)
    prefix = [draw.randrange(3, 32000) for _ in range(1000)]
    return [prefix + [draw.randrange(3, 32000) for _ in range(24)] for _ in range(64)]


def single_prompt():
    draw = random.Random(2)
    return [draw.randrange(3, 32000) for _ in range(16)]


def model(dtype):
    return OUT / f"model-{dtype}"


def keep(part, **figures):
    """Adds figures to what is kept of `part`."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{part}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept.update(figures)
    path.write_text(json.dumps(kept, indent=1))
    print(part, json.dumps(figures), flush=True)


def timed(repeats, run):
    """Seconds of each repeat."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def rates(tokens, seconds):
    return [tokens / s for s in seconds]


def models():
    for dtype in DTYPES:
        model(dtype).mkdir(parents=True, exist_ok=True)
        subprocess.run([BINARY, "model", model(dtype), dtype], check=True)


def peak():
    """What MKL's sgemm (through torch) reaches, and how fast memory is read."""
    import torch

    torch.set_num_threads(THREADS)
    best = 0.0
    for m, k, n in ((1024, 4096, 4096), (512, 768, 4096), (64, 768, 32000)):
        a, b = torch.randn(m, k), torch.randn(n, k)
        seconds = timed(15, lambda: torch.nn.functional.linear(a, b))
        best = max(best, 2e-9 * m * k * n / statistics.median(seconds))
    x = torch.randn(1 << 27)
    read = x.numel() * 4e-9 / statistics.median(timed(9, x.sum))
    keep("peak", mkl_sgemm_gflops=best, torch_read_gbytes=read, torch=torch.__version__)
    keep("peak", **json.loads(subprocess.run([BINARY, "kernels", str(THREADS)], check=True, capture_output=True).stdout))


def generate(folder, **request):
    return json.loads(subprocess.run([BINARY, "generate", folder, str(THREADS)], input=json.dumps(request).encode(),
                                     check=True, capture_output=True).stdout)


def ours():
    for dtype in DTYPES:
        sampling = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": NEW, "repeats": 5}
        runs = generate(model(dtype), prompts=batch_prompts(), **sampling)
        keep("ours", **{f"batch {dtype}": [r["output_tokens"] / r["seconds"] for r in runs]})
        runs = generate(model(dtype), prompts=[single_prompt()], **sampling)
        keep("ours", **{f"single {dtype}": [(NEW - 1) / (r["seconds"] - r["seconds_to_first_token"]) for r in runs]})


def transformers():
    import torch
    import transformers as hf

    torch.set_num_threads(THREADS)
    hf.logging.set_verbosity_error()
    keep("transformers", version=hf.__version__)
    lm = hf.AutoModelForCausalLM.from_pretrained(model("float32"), torch_dtype=torch.float32)

    def run(prompts, new=NEW):
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = lm.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_p=0.9, top_k=0,
                              max_new_tokens=new, min_new_tokens=new, pad_token_id=0)
        assert out.shape[1] == ids.shape[1] + new

    whole = timed(5, lambda: run([single_prompt()]))
    first = statistics.median(timed(5, lambda: run([single_prompt()], 1)))
    keep("transformers", **{"single float32": [(NEW - 1) / (s - first) for s in whole]})
    # A batch prefills its prefix once a prompt: this takes minutes, so each size runs once.
    for size in (16, 32):
        keep("transformers", **{f"batch float32, {size} at once": rates(size * NEW, timed(1, lambda: run(batch_prompts()[:size])))})


def write_gguf(dtype):
    """The checkpoint as llama.cpp reads it; without a vocabulary."""
    import gguf
    import numpy as np
    import torch
    from safetensors.torch import load_file

    path = OUT / f"model-{dtype}.gguf"
    config = json.loads((model(dtype) / "config.json").read_text())
    heads = config["num_attention_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight",
             "model.norm.weight": "output_norm.weight"}
    layer = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
             "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    for i in range(config["num_hidden_layers"]):
        names.update({f"model.layers.{i}.{a}.weight": f"blk.{i}.{b}.weight" for a, b in layer.items()})
    for name, tensor in load_file(model(dtype) / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:  # pairs (i, i + D/2) become neighbours
            out, width = tensor.shape
            tensor = tensor.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)
        if tensor.dim() == 1 or dtype == "float32":
            writer.add_tensor(names[name], tensor.float().numpy())
        else:
            writer.add_tensor(names[name], tensor.contiguous().view(torch.int16).numpy().view(np.uint8),
                              raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Llama:
    """llama.cpp's own batches over one cache that the sequences share; nothing is sampled, which favours it."""

    def __init__(self, path, sequences):
        import llama_cpp as cpp

        self.cpp = cpp
        self.model = cpp.llama_model_load_from_file(str(path).encode(), cpp.llama_model_default_params())
        params = cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 1024 + sequences * 160, 2048, 512, sequences
        params.n_threads = params.n_threads_batch = THREADS
        params.kv_unified = True
        self.context = cpp.llama_init_from_model(self.model, params)
        self.batch = cpp.llama_batch_init(2048, 0, 1)

    def decode(self, tokens):
        """tokens: of (id, position, sequence, whether its logits are wanted)."""
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = token, position, wanted
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
        self.batch.n_tokens = len(tokens)
        assert self.cpp.llama_decode(self.context, self.batch) == 0
        self.cpp.llama_get_logits_ith(self.context, -1)  # waits

    def generate(self, prompts, prefix):
        """Prefills the prefix once, lends it to all, then takes NEW steps."""
        memory = self.cpp.llama_get_memory(self.context)
        self.cpp.llama_memory_clear(memory, True)
        draw = random.Random(3)
        if prefix:
            self.decode([(token, p, 0, p + 1 == prefix) for p, token in enumerate(prompts[0][:prefix])])
        for s in range(1, len(prompts)):
            self.cpp.llama_memory_seq_cp(memory, 0, s, -1, -1)
        tokens = [(t, p, s, p + 1 == len(prompt)) for s, prompt in enumerate(prompts) for p, t in enumerate(prompt) if p >= prefix]
        self.decode(tokens)
        start = time.perf_counter()
        for step in range(NEW - 1):
            self.decode([(draw.randrange(3, 32000), len(prompts[0]) + step, s, True) for s in range(len(prompts))])
        return time.perf_counter() - start


def llama():
    import llama_cpp

    keep("llama", version=llama_cpp.__version__)
    for dtype in DTYPES:
        path = write_gguf(dtype)
        many = Llama(path, 64)
        keep("llama", **{f"batch {dtype}": rates(64 * NEW, timed(2, lambda: many.generate(batch_prompts(), 1000)))})
        one = Llama(path, 1)
        keep("llama", **{f"single {dtype}": rates(NEW - 1, [one.generate([single_prompt()], 0) for _ in range(5)])})


def openvino():
    import numpy as np
    import openvino as ov
    import openvino_genai as genai
    from openvino_tokenizers import convert_tokenizer
    from optimum.exporters.openvino import main_export
    from transformers import AutoTokenizer

    keep("openvino", version=genai.__version__)
    folder = OUT / "openvino"
    if not (folder / "openvino_model.xml").exists():
        main_export(str(model("float32")), str(folder), task="text-generation-with-past", library_name="transformers")
        # The engine wants a tokenizer, which is not used: any will do.
        pair = convert_tokenizer(AutoTokenizer.from_pretrained(ROOT / "common/world/models/S"), with_detokenizer=True)
        for part, name in zip(pair, ("tokenizer", "detokenizer")):
            ov.save_model(part, folder / f"openvino_{name}.xml")

    for precision in ("f32", "bf16"):
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size, scheduler.enable_prefix_caching, scheduler.dynamic_split_fuse = 4, True, True
        scheduler.max_num_batched_tokens, scheduler.max_num_seqs = 512, 64
        name = {"f32": "float32", "bf16": "bfloat16"}[precision]

        def run(prompts):
            pipe = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU",
                                                    {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": THREADS})
            config = genai.GenerationConfig()
            config.max_new_tokens, config.do_sample, config.temperature, config.top_p = NEW, True, 1.0, 0.9
            config.ignore_eos, config.top_k = True, 0
            start = time.perf_counter()

            def add(some):
                return [pipe.add_request(i, ov.Tensor(np.array([prompts[i]], np.int64)), config) for i in some]

            handles = add([0])
            while handles[0].can_read() is False:  # those added meanwhile would compute the prefix again, each for itself
                pipe.step()
            first = time.perf_counter()
            handles += add(range(1, len(prompts)))
            while pipe.has_non_finished_requests():
                pipe.step()
            end = time.perf_counter()
            produced = sum(len(out.generated_ids) for h in handles for out in h.read_all())
            assert produced == NEW * len(prompts), produced
            return end - start, end - first

        keep("openvino", **{f"batch {name}": [64 * NEW / run(batch_prompts())[0] for _ in range(2)]})
        keep("openvino", **{f"single {name}": [(NEW - 1) / run([single_prompt()])[1] for _ in range(5)]})


def vllm():
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="4", VLLM_CPU_OMP_THREADS_BIND="0-" + str(THREADS - 1) if THREADS > 1 else "0",
                      HF_HUB_OFFLINE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    from vllm import LLM, SamplingParams, __version__

    keep("vllm", version=__version__)
    for dtype in DTYPES:
        lm = LLM(model=str(model(dtype)), skip_tokenizer_init=True, dtype=dtype, max_model_len=2048, max_num_seqs=64,
                 enable_prefix_caching=True, seed=1)
        params = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=NEW, min_tokens=0, ignore_eos=True, detokenize=False)

        def run(prompts):
            out = lm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
            assert all(len(o.outputs[0].token_ids) == NEW for o in out)

        run([single_prompt()])
        seconds = []
        for _ in range(2):
            lm.reset_prefix_cache()
            seconds += timed(1, lambda: run(batch_prompts()))
        keep("vllm", **{f"batch {dtype}": rates(64 * NEW, seconds)})
        keep("vllm", **{f"single {dtype}": rates(NEW, timed(5, lambda: run([single_prompt()])))})
        del lm


def world_prompts(folder):
    """100 questions behind three good demonstrations, and the tokens that end an answer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    parts = (ROOT / "common/world/data/good-0.txt").read_text().split("\n\n-----")
    seeds = [line for line in (ROOT / "common/world/data/seeds.txt").read_text().splitlines() if line.strip()]
    text = "\n\n-----".join(parts[:4])
    prompts = [tokenizer.encode(f"{text}\n\nHuman: {q}\n\nAssistant:").ids for q in (seeds * 400)[:400]]
    stop = [i for i in range(tokenizer.get_vocab_size()) if "\n" in tokenizer.decode([i], skip_special_tokens=False)]
    eos = json.loads((folder / "config.json").read_text())["eos_token_id"]
    return prompts, sorted(set(stop) | set(eos if isinstance(eos, list) else [eos]))


def world():
    import torch
    import transformers as hf

    torch.set_num_threads(1)
    for name in "SML":
        folder = ROOT / "common/world/models" / name
        prompts, stop = world_prompts(folder)
        runs = json.loads(subprocess.run([BINARY, "generate", folder, "1"], check=True, capture_output=True, input=json.dumps(
            {"prompts": prompts, "temperature": 1.0, "top_p": 0.95, "max_new_tokens": 60, "stop_token_ids": stop,
             "repeats": 5}).encode()).stdout)
        keep("world", **{f"ours {name}": [r["samples"] / r["seconds"] for r in runs],
                         f"ours {name} tokens an answer": runs[0]["output_tokens"] / runs[0]["samples"]})
        lm = hf.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)

        def run(size):
            longest = max(map(len, prompts))
            for begin in range(0, 100, size):
                some = prompts[begin:begin + size]
                ids = torch.tensor([[0] * (longest - len(p)) + p for p in some])
                mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in some])
                with torch.inference_mode():
                    lm.generate(ids, attention_mask=mask, do_sample=True, temperature=1.0, top_p=0.95, top_k=0,
                                max_new_tokens=60, eos_token_id=stop, pad_token_id=0)

        for size in (25, 50, 100):
            keep("world", **{f"transformers {name}, {size} at once": rates(100, timed(3, lambda: run(size)))})


def table():
    kept = {p.stem: json.loads(p.read_text()) for p in sorted(OUT.glob("*.json"))}
    cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    print(f"{THREADS} cores of {cpu}")
    for part, figures in kept.items():
        for name, value in figures.items():
            if isinstance(value, list):
                print(f"{part:13} {name:32} {statistics.median(value):9.1f}  of {len(value)}: "
                      f"{min(value):.1f} to {max(value):.1f}")
            elif isinstance(value, float):
                print(f"{part:13} {name:32} {value:9.1f}")
            else:
                print(f"{part:13} {name:32} {value}")


def main():
    parts = sys.argv[1:] or ["table"]
    known = {f.__name__: f for f in (models, peak, ours, transformers, llama, openvino, vllm, world, table)}
    for part in parts:
        if part not in known:
            sys.exit(__doc__)
    environment = DEPS / "bench" / ("vllm" if parts == ["vllm"] else "python")
    if pathlib.Path(sys.prefix) != environment and (environment / "bin/python").exists():
        os.execv(environment / "bin/python", [str(environment / "bin/python"), __file__, *parts])
    for part in parts:
        known[part]()


if __name__ == "__main__":
    main()
