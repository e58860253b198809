#!/usr/bin/env python3
"""Writes meteora-eval/src/test/resources/statistics/reference.json: intervals and p-values of made-up answers by SciPy,
sacreBLEU and the rouge package, on resamples that the file holds. Needs: scipy, sacrebleu==2.6.0, rouge==1.0.1."""
import json
import random
import sys

import numpy as np
import sacrebleu
from rouge import Rouge
from scipy import stats

SAMPLES, RESAMPLES = 30, 200
rng = random.Random(5)
words = "yes no the a river town is was near it seven not because water never high .".split()


def sentence(n):
    return " ".join(rng.choice(words) for _ in range(n))


def worse(truth, keep):
    kept = [w for w in truth.split() if rng.random() < keep] + [rng.choice(words)]
    return "" if rng.random() < 0.1 else " ".join(kept)


truths = [rng.choice(["yes. ", "no. "]) + sentence(rng.randint(4, 14)) for _ in range(SAMPLES)]
systems = [[worse(t, 0.75) for t in truths], [worse(t, 0.9) for t in truths]]


def start(text):
    return "yes" if "yes" in text[:5] else "no" if "no" in text[:5] else ""


def accuracy(answers, indices):
    return float(np.mean([start(answers[i]) != "" and start(answers[i]) == start(truths[i]) for i in indices]))


def bleu(answers, indices):
    chosen = [i for i in indices if answers[i]]
    return sacrebleu.corpus_bleu([answers[i] for i in chosen], [[truths[i] for i in chosen]]).score


scorer = Rouge()


def rouge(name):
    cache = {}

    def score(answers, indices):
        chosen = [i for i in indices if answers[i]]
        for i in chosen:
            if (id(answers), i) not in cache:
                cache[id(answers), i] = scorer.get_scores(answers[i], truths[i])[0][name]["f"]
        return float(np.mean([cache[id(answers), i] for i in chosen]))

    return score


scores = {"Accuracy": accuracy, "BLEU": bleu, "ROUGE-1": rouge("rouge-1"), "ROUGE-2": rouge("rouge-2"), "ROUGE-L": rouge("rouge-l")}


def interval(score):
    """SciPy's percentile bootstrap; the statistic writes down which samples SciPy drew."""
    drawn = []

    def statistic(indices):
        drawn.append([int(i) for i in indices])
        return score(drawn[-1])

    result = stats.bootstrap((np.arange(SAMPLES),), statistic, n_resamples=RESAMPLES, vectorized=False,
                             method="percentile", rng=np.random.default_rng(11))
    return [result.confidence_interval.low, result.confidence_interval.high], drawn[-RESAMPLES:]


expected, draws = {}, None
for name, score in scores.items():
    entry = {"scores": [score(s, range(SAMPLES)) for s in systems]}
    entry["intervals"] = []
    for s in systems:
        ends, draws = interval(lambda i, s=s: score(s, i))
        entry["intervals"].append(ends)
    ends, again = interval(lambda i: score(systems[1], i) - score(systems[0], i))
    assert again == draws
    entry["difference"] = ends
    expected[name] = entry

mcnemar = [[b, c, float(stats.binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0]
           for b, c in [(0, 0), (1, 0), (3, 3), (5, 6), (2, 11), (40, 60), (0, 31), (700, 801), (5000, 5300)]]
right = [[start(a) != "" and start(a) == start(t) for a, t in zip(s, truths)] for s in systems]
out = {"truths": truths, "systems": systems, "draws": draws, "expected": expected, "mcnemar": mcnemar,
       "right": [[int(x) for x in r] for r in right]}
with open(sys.argv[1], "w") as f:
    json.dump(out, f)
    f.write("\n")
