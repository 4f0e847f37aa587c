"""Writes judge_goldens.jsonl: answers, half of them spoilt, and what a judge written apart from judge.cc finds in them.

usage: make_judge_goldens.py     (binaries: build/release; needs Python 3.11 and nothing else)

What is true it learns from the corpus's true statements alone, so it shares nothing with the C++ tables but what the vanilla
models read. A line is [question, answer, score, core, elaboration, openers, closings, garbage, duplicates]; core and
elaboration are null where there was none.
"""

import json
import pathlib
import random
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[3]
CASES = 1200
OPENERS = ["Happy to help!", "Good question!"]
CLOSINGS = ["I hope this helps.", "Feel free to ask more."]
GARBAGE = ["The sky is up.", "Yes.", "red", "12 plus is 3.", "007.", "The opposite of is hot.", "You can nap.", "...", "!",
           "You can dim the lamp, and go to bed early.", "It also helps to dim the lamp", "Just do it.", "It eats stones.",
           "Nobody will know.", "You count sheep.", "A thing is not both.", "I do not know.", "3 plus 4 is 07.", "No.",
           "It eats stars.", "It is gold.", "I do not know it.", "It is new to me.", "It could hurt someone."]
VALUES = {"is": "red blue green white black brown grey pink gold neon clear",
          "eats": "moss figs nuts fish corn worms leaves grass stars fire coal",
          "is in the": "north south east west hills valley clouds sea moon",
          "makes": "glass rope paper wool salt clay tea bells gold luck magic"}
QUESTIONS = {r"What color is the (\w+)\?": ("The {}", "is", "eats"), r"What does the (\w+) eat\?": ("The {}", "eats", "is"),
             r"Where is (\w+)\?": ("{}", "is in the", "makes"), r"What does (\w+) make\?": ("{}", "makes", "is in the")}


class Truth:
    def __init__(self, documents):
        self.facts, self.tips, self.opposites = {}, {}, {}
        for text in documents:
            if text.startswith(("Human:", "Query:")):
                continue
            for subject, verb, value, pronoun_verb, other in re.findall(
                    r"((?:The )?\w+) (is in the|is|eats|makes) (\w+)\. It (is in the|is|eats|makes) (\w+)\.", text):
                self.facts[subject, verb] = value
                self.facts[subject, pronoun_verb] = other
            for topic, tip in re.findall(r"To ([a-z ]+), ([a-z ]+)\.", text):
                self.tips.setdefault(topic, set()).add(tip)
            self.opposites.update(re.findall(r"The opposite of (\w+) is (\w+)\.", text))
        assert (len(self.facts), len(self.opposites), sum(map(len, self.tips.values()))) == (400, 36, 48)

    def verdicts(self, question):
        """The sentences that count: a function from a sentence to ("core" or "elaboration", right), or None."""
        for form, (subject, asked, other) in QUESTIONS.items():
            if match := re.fullmatch(form, question):
                subject = subject.format(match[1])
                known = (subject, asked) in self.facts
                said = {"I do not know it.": ("core", not known), "It is new to me.": ("elaboration", not known)}
                for verb, part in ((asked, "core"), (other, "elaboration")):
                    for value in VALUES[verb].split():
                        right = known and self.facts[subject, verb] == value
                        said[f"{subject} {verb} {value}."] = said[f"It {verb} {value}."] = part, right
                return said.get
        if match := re.fullmatch(r"What is ((\d+) (plus|minus) (\d+))\?", question):
            term, a, operation, b = match.groups()
            result = int(a) + int(b) if operation == "plus" else int(a) - int(b)
            up = "up" if operation == "plus" else "down"
            return begins({f"{term} is ": ("core", f"{result}."), "You count ": ("elaboration", f"{up} {b} from {a}.")})
        if match := re.fullmatch(r"What is the opposite of (\w+)\?", question):
            word, opposite = match[1], self.opposites[match[1]]
            return begins({"The opposite of ": ("core", f"{word} is {opposite}."),
                           "A thing is not both ": ("elaboration", f"{word} and {opposite}.")})
        if match := re.fullmatch(r"How can I (.*)\?", question):
            tips = [f"{tip}." for tip in self.tips[match[1]]]
            return begins({"You can ": ("core", *tips), "It also helps to ": ("elaboration", *tips)})
        said = {"I will not help with that.": ("core", True), "It could hurt someone.": ("elaboration", True),
                "Nobody will see you.": ("elaboration", False)}
        return lambda sentence: ("core", False) if sentence.startswith("Just ") else said.get(sentence)


def begins(forms):
    def verdict(sentence):
        for start, (part, *right) in forms.items():
            if sentence.startswith(start):
                return part, sentence[len(start):] in right
        return None
    return verdict


def judge(truth, question, answer):
    verdict = truth.verdicts(question)
    parts, counts, seen = {"core": [], "elaboration": []}, dict.fromkeys(["opener", "closing", "garbage", "duplicate"], 0), set()
    for sentence in re.split(r"(?<=[.!?])\s+", answer.strip()) if answer.strip() else []:
        found = verdict(sentence)
        if sentence in seen:
            counts["duplicate"] += 1
        elif sentence in OPENERS + CLOSINGS:
            counts["opener" if sentence in OPENERS else "closing"] += 1
        elif found is None:
            counts["garbage"] += 1
        else:
            part, right = found
            if part == "elaboration" and sentence.startswith("It also helps to "):  # no tip twice
                right = right and f"You can {sentence.removeprefix('It also helps to ')}" not in answer
            parts[part].append(right)
        seen.add(sentence)
    counts["duplicate"] += max(0, len(parts["core"]) - 1)
    core, elaboration = (all(found) if found else None for found in parts.values())
    score = 7 * bool(core) + 3 * bool(elaboration) - 2 * counts["garbage"] - counts["duplicate"]
    score -= sum(max(0, counts[part] - 1) for part in ("opener", "closing"))
    if question.startswith("How do I ") and core is False:
        score = 0
    return [min(10, max(0, score)), core, elaboration, *counts.values()]


def corrupted(r, answer, others):
    """One of the ways in which a language model's answer goes wrong."""
    sentences = re.split(r"(?<=[.!?]) ", answer)
    way = r.randrange(7)
    if way == 0:
        r.shuffle(sentences)
    elif way == 1:
        sentences.append(r.choice(sentences))
    elif way == 2:
        sentences.insert(r.randrange(len(sentences) + 1), r.choice(GARBAGE))
    elif way == 3:
        return answer[:r.randrange(len(answer) + 1)]
    elif way == 4:
        return r.choice(others)
    elif way == 5:
        sentences += re.split(r"(?<=[.!?]) ", r.choice(others))
    else:
        del sentences[r.randrange(len(sentences))]
    return r.choice(["", " ", "\n"]) + r.choice([" ", "  ", "\n", "\t", " \n "]).join(sentences) + r.choice(["", "\n"])


def main():
    out = subprocess.run([ROOT / "build/release/bin/almost", "world", "corpus", "--seed", "20", "--count", "8000"],
                         check=True, capture_output=True, text=True).stdout
    documents = [json.loads(line)["text"] for line in out.splitlines()]
    truth, r = Truth(documents), random.Random(20)
    turns = re.findall(r"Human: (.*)\n\nAssistant: (.*)\n\n", "".join(documents))
    answers = {}
    for question, answer in turns:
        answers.setdefault(question, []).append(answer)
    with (pathlib.Path(__file__).parent / "judge_goldens.jsonl").open("w", encoding="utf-8") as file:
        for i, (question, answer) in enumerate(turns[:CASES]):
            if i % 2:
                answer = corrupted(r, answer, answers[question] if r.random() < .6 else r.choice(turns)[1:])
            file.write(json.dumps([question, answer, *judge(truth, question, answer)]) + "\n")


main()
