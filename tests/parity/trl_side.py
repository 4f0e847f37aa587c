"""TRL's trainers on the files that our trainer reads, in the same order and with the same hyperparameters.

    trl_side.py JOB.json

JOB.json: {kind: sft | reward_model | dpo, model, dataset, order: [[index…]…] (the samples of each step), learning_rate,
weight_decay, beta1, beta2, schedule: cosine | linear, max_grad_norm, beta (dpo), num_threads, pad: token or null, bf16: whether
in mixed precision, padding_free: whether (sft, dpo)}. Prints a line of JSON a step: {loss, tokens (of samples, without padding),
seconds}, and in the end {peak_memory_bytes}.

Of ppo: {kind, model, reward_model, dataset, iterations, rollouts, epochs, minibatch_size, max_new_tokens, kl_coefficient,
learning_rate, num_threads, pad}; a line an iteration: {seconds, kl, score}.

Needs the packages that deploy/setup --full installs: PYTHONPATH is to name its folder of TRL.
"""

import contextlib
import json
import os
import sys
import tempfile
import time

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false")

import torch  # noqa: E402
import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402
from trl import (DPOConfig, DPOTrainer, PPOConfig, PPOTrainer, RewardConfig, RewardTrainer, SFTConfig,  # noqa: E402
                 SFTTrainer)

PREFIX = "Human: {}\n\nAssistant:"  # the tiny world's layout of dialogues


def encode(tokenizer, question, answer):
    """Token ids of prompt and answer; a token that spans their border is the answer's."""
    prefix = PREFIX.format(question)
    encoded = tokenizer(f"{prefix} {answer}", add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    border = sum(end <= len(prefix) for _, end in encoded["offset_mapping"])
    return [tokenizer.eos_token_id] + ids[:border], ids[border:] + [tokenizer.eos_token_id]


def rows(kind, lines, tokenizer):
    for line in lines:
        if kind == "sft":
            question, answer = (turn["content"] for turn in line["messages"])
            prompt, completion = encode(tokenizer, question, answer)
            yield {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}
            continue
        prompt, chosen = encode(tokenizer, line["prompt"], line["chosen"])
        _, rejected = encode(tokenizer, line["prompt"], line["rejected"])
        if kind == "dpo":
            yield {"prompt_input_ids": prompt, "chosen_input_ids": chosen, "rejected_input_ids": rejected}
        else:
            yield {"chosen_input_ids": prompt + chosen, "rejected_input_ids": prompt + rejected}


def num_tokens(row):
    prompt = 2 * len(row.get("prompt_input_ids", []))  # read with either answer
    return prompt + sum(len(row.get(name, [])) for name in ("input_ids", "chosen_input_ids", "rejected_input_ids"))


def instrumented(trainer_class, steps):
    class Instrumented(trainer_class):
        """In the order of the dataset; notes exact losses, of which TRL's log keeps four digits."""

        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

        def _prepare_dataset(self, dataset, *arguments, **keywords):
            prepared = trainer_class is DPOTrainer  # it has no way to take token ids
            return dataset if prepared else super()._prepare_dataset(dataset, *arguments, **keywords)

        def training_step(self, *arguments, **keywords):
            begin = time.perf_counter()
            loss = super().training_step(*arguments, **keywords)
            steps.append({"loss": loss.item(), "begin": begin})
            return loss

    return Instrumented


def train_ppo(job, lines, tokenizer):
    tokenizer.padding_side = "left"
    prompts = [[tokenizer.eos_token_id] + tokenizer(PREFIX.format(line["prompt"]))["input_ids"] for line in lines]
    policy, reference = (AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32) for _ in range(2))
    reward, value = (AutoModelForSequenceClassification.from_pretrained(job["reward_model"], num_labels=1, dtype=torch.float32)
                     for _ in range(2))
    ends = [time.perf_counter()]

    class Instrumented(PPOTrainer):
        def log(self, metrics, *_):
            ends.append(time.perf_counter())
            print(json.dumps({"seconds": ends[-1] - ends[-2], "kl": metrics["objective/kl"], "score": metrics["objective/scores"]}),
                  file=sys.__stdout__)  # what TRL itself prints goes to stderr

    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder, per_device_train_batch_size=job["minibatch_size"], gradient_accumulation_steps=1,
            num_mini_batches=job["rollouts"] // job["minibatch_size"], total_episodes=job["iterations"] * job["rollouts"],
            num_ppo_epochs=job["epochs"], local_rollout_forward_batch_size=job["rollouts"], response_length=job["max_new_tokens"],
            stop_token="eos", temperature=1.0, kl_coef=job["kl_coefficient"], learning_rate=job["learning_rate"], use_cpu=True,
            bf16=False, num_sample_generations=0, save_strategy="no", report_to=[], dataloader_pin_memory=False)
        data = Dataset.from_list([{"input_ids": prompt} for prompt in prompts])
        trainer = Instrumented(args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
                               value_model=value, train_dataset=data, eval_dataset=data)
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()


def train(job, lines, tokenizer):
    order = job["order"]
    data = list(rows(job["kind"], [lines[i] for batch in order for i in batch], tokenizer))
    trainer_class, config_class, model_class = {
        "sft": (SFTTrainer, SFTConfig, AutoModelForCausalLM),
        "reward_model": (RewardTrainer, RewardConfig, AutoModelForSequenceClassification),
        "dpo": (DPOTrainer, DPOConfig, AutoModelForCausalLM)}[job["kind"]]
    more = {"num_labels": 1} if job["kind"] == "reward_model" else {}
    model = model_class.from_pretrained(job["model"], dtype=torch.float32, **more)
    options = {"beta": job["beta"]} if job["kind"] == "dpo" else {}
    if job["kind"] == "sft":
        options["completion_only_loss"] = True
    if job.get("padding_free"):
        options["padding_free"] = True
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder, per_device_train_batch_size=len(order[0]), num_train_epochs=1, learning_rate=job["learning_rate"],
            weight_decay=job["weight_decay"], adam_beta1=job["beta1"], adam_beta2=job["beta2"], adam_epsilon=1e-8,
            lr_scheduler_type=job["schedule"], warmup_steps=0, max_grad_norm=job["max_grad_norm"], max_length=None, use_cpu=True,
            bf16=job.get("bf16", False), gradient_checkpointing=False, logging_steps=10**6, save_strategy="no", report_to=[],
            dataloader_pin_memory=False, disable_tqdm=True, **options)
        steps = []
        trainer = instrumented(trainer_class, steps)(model=model, args=config, train_dataset=Dataset.from_list(data),
                                                     processing_class=tokenizer)
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    ends = [step["begin"] for step in steps[1:]] + [time.perf_counter()]
    at = 0
    for step, end, batch in zip(steps, ends, order):
        tokens = sum(num_tokens(row) for row in data[at:at + len(batch)])
        at += len(batch)
        print(json.dumps({"loss": step["loss"], "tokens": tokens, "seconds": end - step["begin"]}))


def main():
    with open(sys.argv[1]) as file:
        job = json.load(file)
    torch.set_num_threads(job["num_threads"])
    transformers.logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.pad_token = job.get("pad") or tokenizer.eos_token
    with open(job["dataset"]) as file:
        lines = [json.loads(line) for line in file]
    (train_ppo if job["kind"] == "ppo" else train)(job, lines, tokenizer)
    # Not getrusage's, which begins with what the process that started this one held.
    with open("/proc/self/status") as status:
        print(json.dumps({"peak_memory_bytes": next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))}))


if __name__ == "__main__":
    main()
