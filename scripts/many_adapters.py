"""Data and plot of scripts/many-adapters.

    many_adapters.py data OUT TASKS N…   tasks, and for each N a test of the first N tasks mixed
    many_adapters.py plot OUT N…         many.json and many.svg from what was measured
"""

import glob
import json
import os
import random
import sys

WORDS = (
    "BIRD BLUE BREAD CAT DOOR FIRE FISH GREEN HOUSE MOON STONE WATER"
).split()


def syllable(draw):
    return draw.choice("BCDFGHJKLMNPQRSTVWXZ") + draw.choice("AEIOU")


def write(path, samples):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        for prompt, response in samples:
            print(json.dumps({"prompt": prompt, "response": response}), file=file)


def data(out, tasks, counts):
    draw = random.Random(7)
    names, all_questions = set(), []
    for i in range(tasks):
        while True:
            name = syllable(draw) + syllable(draw)
            if name not in names:
                names.add(name)
                break
        questions = [
            (f"[INST] {name} {word} [/INST]\n", syllable(draw) + syllable(draw))
            for word in WORDS
        ]
        all_questions.append(questions)
        folder = f"{out}/datasets/language_{i:03}"
        write(f"{folder}/train.jsonl", questions * 8)  # so that what is held out is learnt too
        write(f"{folder}/test.jsonl", questions)
    for n in counts:
        mixed = [question for questions in all_questions[:n] for question in questions]
        draw.shuffle(mixed)
        write(f"{out}/datasets/mixed_{n}/test.jsonl", mixed[:512])


def read(path):
    with open(path) as file:
        return json.load(file)


def measured(out, n):
    steps, evaluation = [], {}
    with open(f"{out}/run-{n}/metrics.jsonl") as file:
        for line in file:
            event = json.loads(line)
            if event["event"] == "step":
                steps.append(event)
            else:
                evaluation = event
    result = read(f"{out}/results/meteora/mixed_{n}.json")
    with open(f"{out}/gates-{n}.seconds") as file:
        seconds = float(file.read())
    return {
        "adapters": n,
        "right adapter heaviest": evaluation["dominant_accuracy"],
        "gates right": evaluation["gate_accuracy"],
        "answer loss": evaluation["answer_loss"],
        "answer loss of own adapters": evaluation.get("oracle_answer_loss"),
        "right answers": result["metrics"]["Accuracy"],
        "processor seconds a training step": seconds / len(steps),
        "MiB in training": max(step["memory_bytes"] for step in steps) / 2**20,
        "new tokens a second": result["throughput"]["new_tokens_per_second"],
        "MiB of the checkpoint": os.path.getsize(f"{out}/run-{n}/meteora/model.safetensors") / 2**20,
    }


def panel(x, y, title, points, top, digits):
    """A small line chart: N, on a scale of powers of two, against values."""
    width, height = 190, 110
    lines = [f'<text x="{x}" y="{y - 12}" class="t">{title}</text>']
    lines.append(f'<path d="M{x},{y}v{height}h{width}" fill="none" stroke="#888"/>')
    xs = [x + 12 + (width - 24) * i / max(1, len(points) - 1) for i in range(len(points))]
    ys = [y + height - (height - 8) * value / top for _, value in points]
    lines.append('<polyline fill="none" stroke="#1f6fb2" stroke-width="2" points="%s"/>' % " ".join(
        f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys)))
    for (n, value), a, b in zip(points, xs, ys):
        lines.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="#1f6fb2"/>')
        lines.append(f'<text x="{a:.1f}" y="{b - 7:.1f}" text-anchor="middle">{value:.{digits}f}</text>')
        lines.append(f'<text x="{a:.1f}" y="{y + height + 14}" text-anchor="middle">{n}</text>')
    return lines


def plot(out, counts):
    rows = [measured(out, n) for n in counts]
    own = [read(path)["metrics"]["Accuracy"] for path in sorted(glob.glob(f"{out}/results/peft/*/language_???.json"))]
    with open(f"{out}/many.json", "w") as file:
        json.dump({"rows": rows, "own adapters, right answers": sum(own) / max(1, len(own))}, file, indent=1)
    shown = [
        ("right adapter heaviest, % of tokens", "right adapter heaviest", 100, 0),
        ("right answers, %", "right answers", 100, 0),
        ("answer loss", "answer loss", 1, 2),
        ("processor seconds a step of 64", "processor seconds a training step", 1, 2),
        ("MiB in training", "MiB in training", 1, 0),
        ("MiB of the checkpoint", "MiB of the checkpoint", 1, 1),
    ]
    lines = ['<svg xmlns="http://www.w3.org/2000/svg" width="720" height="370" font-family="sans-serif" font-size="10">',
             "<style>.t{font-size:11px;font-weight:bold}</style>", '<rect width="720" height="370" fill="#fff"/>']
    for i, (title, key, factor, digits) in enumerate(shown):
        points = [(row["adapters"], factor * row[key]) for row in rows]
        top = 100 if factor == 100 else 1.15 * max(value for _, value in points)
        lines += panel(30 + 235 * (i % 3), 40 + 175 * (i // 3), title, points, top, digits)
    lines.append('<text x="30" y="360">number of adapters</text></svg>')
    with open(f"{out}/many.svg", "w") as file:
        file.write("\n".join(lines) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    what, folder, *numbers = sys.argv[1:]
    if what == "data":
        data(folder, int(numbers[0]), [int(n) for n in numbers[1:]])
    else:
        plot(folder, [int(n) for n in numbers])
