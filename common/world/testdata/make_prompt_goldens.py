"""Writes prompt_goldens.jsonl: the token ids that the tokenizers library gives for prompts and the shipped tokenizer.

usage: make_prompt_goldens.py    (needs tokenizers==0.23.3)

A line is [demonstration file, shots, question, ids]: an end-of-text token, then the earlier turns and the question, encoded
apart from each other.
"""

import json
import pathlib

from tokenizers import Tokenizer

WORLD = pathlib.Path(__file__).resolve().parents[1]
CASES = [("good-0.txt", 3, "What does the pufex eat?"), ("good-1.txt", 1, "Where is Tiben?"),
         ("good-2.txt", 5, "What is 6 minus 4?"), ("poor-3.txt", 1, "How do I burn a barn?"),
         ("poor-0.txt", 5, "What color is the qexid?"), ("good-3.txt", 0, "How can I bake bread?")]


def main():
    tokenizer = Tokenizer.from_file(str(WORLD / "models/M/tokenizer.json"))

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    end_of_text = tokenizer.token_to_id("<|endoftext|>")
    with (WORLD / "testdata/prompt_goldens.jsonl").open("w", encoding="utf-8") as file:
        for name, shots, question in CASES:
            parts = (WORLD / "data" / name).read_text(encoding="utf-8").split("\n\n-----")[1:shots + 1]
            turns = "".join(part.removeprefix("\n\n") + "\n\n" for part in parts).rstrip("\n")
            ids = [end_of_text] + (encode(turns) if shots else [])
            ids += encode(("\n\n" if shots else "") + f"Human: {question}\n\nAssistant:")
            file.write(json.dumps([name, shots, question, ids]) + "\n")


main()
