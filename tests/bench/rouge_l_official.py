#!/usr/bin/env python3
"""One pair at a time with the rouge_score package, as a yardstick for rouge_l_bench.cc, on the same texts.

    pip install rouge_score==0.1.2
    rouge_l_official.py [PROMPTS]     1,000 unless said otherwise
"""

import sys
import time

from rouge_score.rouge_scorer import RougeScorer


def texts():
    state = 1

    def below(bound):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % bound

    while True:
        words = 6 + below(20)
        ranks = []
        for _ in range(words):
            bound = 2 ** below(15)
            ranks.append(below(min(bound, 20000)))
        yield "W" + " w".join(map(str, ranks)) + "?"


def main():
    num_prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    source = texts()
    prompts = [next(source) for _ in range(num_prompts)]
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    begin = time.perf_counter()
    near = pairs = 0
    for i, prompt in enumerate(prompts):
        for other in prompts[:i]:
            pairs += 1
            if scorer.score(other, prompt)["rougeL"].fmeasure >= 0.5:
                near += 1
                break
    seconds = time.perf_counter() - begin
    print(f"{num_prompts} prompts, {near} with one before at F1 >= 0.5, {pairs} pairs decided in {seconds:.2f} s: "
          f"{seconds / pairs * 1e6:.1f} us a pair")


if __name__ == "__main__":
    main()
