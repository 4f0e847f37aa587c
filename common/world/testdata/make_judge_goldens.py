"""Writes judge_goldens.jsonl: answers and what the Python reference's judge found in them.

usage: make_judge_goldens.py FOLDER   (the folder that holds the reference's world.py, version 3)
Needs Python 3.11 and nothing else; Random(20) and that version make the file byte for byte.

A line is [question, answer, score, core, full, explanation, openers, closings, rude, rambles, garbage, duplicates];
core and explanation are null where there was none.
"""

import json
import pathlib
import random
import sys

CASES = 1200
WHITE_SPACE = [" ", "  ", "\n", "\t", " \n "]
GARBAGE = ["The sky is up.", "Yes.", "red", "12 plus is 3.", "007.", "The opposite of is hot.", "You can nap.",
           "You can dim the lamp, dim the lamp, and go to bed early.", "You can dim the lamp and sip hot soup.",
           "sip hot soup, close the windows, light the stove..", "They go AT NIGHT?", "Nobody will know.", "...", "!",
           "It eats stones.", "You count sheep.", "A thing is not both.", "I do not know.", "By the way, hello",
           "3 plus 4 is 07.", "HOT.", "The opposite of hot is COLD.", "No idea.", "No.", "Go to bed early."]


def corrupted(r, world, question, answer):
    """One of the ways in which a language model's answer goes wrong."""
    sentences = answer.replace("!", "!|").replace(".", ".|").split("|")
    sentences = [s.strip() for s in sentences if s.strip()]
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
        other = world.question(r, question["kind"] if r.random() < .6 else None)
        return world.answer(r, other, r.randrange(4))
    elif way == 5:
        sentences += world.answer(r, question, r.randrange(4)).split(". ")
    else:
        del sentences[r.randrange(len(sentences))]
    return r.choice(["", " ", "\n"]) + r.choice(WHITE_SPACE).join(sentences) + r.choice(["", "\n"])


def main():
    sys.path.insert(0, sys.argv[1])
    from world import World

    world, r = World(0), random.Random(20)
    out = pathlib.Path(__file__).parent / "judge_goldens.jsonl"
    with out.open("w", encoding="utf-8") as file:
        for i in range(CASES):
            question = world.question(r)
            answer = world.answer(r, question, i % 4, "ideal" if r.random() < .1 else None)
            if i % 2:
                answer = corrupted(r, world, question, answer)
            d = world.judge(question, answer, detail=True)
            json.dump([question["text"], answer, d["score"], d["core"], bool(d["full"]), d["expl"], d["opener"],
                       d["closing"], d["rude"], d["ramble"], d["garbage"], d["dup"]], file)
            file.write("\n")


main()
