#!/usr/bin/env python3
"""Makes the base model of `meteora demo`: a small Llama that can read an instruction and work on letters and digits.

It is trained on the operations listed here, alone and several in one prompt (the layout `meteora create-composite` writes, and
others). None of them is a task of the demo: those are what the demo's adapters have to teach. Large models treat a question
alike wherever it stands; a small one has to be asked to: hidden states of a question and its answer among others are drawn
towards those of the same question alone. Needs torch, transformers, tokenizers and safetensors, and a GPU (about five minutes on
a fast one).

    python3 scripts/make-demo-base.py meteora-cli/src/main/resources/org/meteora/cli/demo/base
"""
import argparse, json, math, os, random, time
import numpy as np

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
VOWELS = "AEIOU"
END, PAD = 0, 0
# words that instructions are made of, the demo's own among them: read here, given a meaning only there
PHRASE_WORDS = ("write read say give find take move put turn make show count name spell list drop keep swap the a word letters letter digits "
                "digit of in from every one two all first last order backwards reverse sort smallest largest vowels vowel consonants shift "
                "alphabet remove leave out second next translate into language sum how many are there what is by place number again twice "
                "without with and each row line text up down left right back front middle end start new old long short").split()


def word(rng, lo=3, hi=7):
    """Letters: half of the words can be pronounced, half are random."""
    n = rng.randint(lo, hi)
    if rng.random() < 0.5:
        return "".join(rng.choice(LETTERS) for _ in range(n))
    start = rng.random() < 0.3
    return "".join(rng.choice(VOWELS if (i + start) % 2 else "BCDFGHJKLMNPQRSTVWXZ") for i in range(n))


def digits(rng, lo=3, hi=7):
    return "".join(rng.choice("0123456789") for _ in range(rng.randint(lo, hi)))


def phrase(rng, lo=2, hi=5):
    return " ".join(rng.choice(PHRASE_WORDS) for _ in range(rng.randint(lo, hi)))


def vocabulary(seed, size=30):
    """A made-up language: word to word."""
    rng = random.Random(seed)
    result = {}
    while len(result) < size:
        result[word(rng, 3, 5)] = word(rng, 3, 5)
    return result


LANGUAGES = {"Borin": vocabulary(1), "Kesh": vocabulary(2), "Umbari": vocabulary(3)}


def operations():
    ops = {}
    wording = random.Random(9)

    def add(name, generate, answer, *forms):
        """An operation on one input: forms with {} for it, and instructions of random words, so that every word has to be read."""
        forms = list(forms)
        odd = [phrase(wording, 2, 4) + ": {}" for _ in range(6)]

        def make(rng):
            value = generate(rng)
            return rng.choice(forms if rng.random() < 0.6 else odd).format(value), answer(value)

        ops[name] = make

    add("copy", word, lambda w: w, "Write the word again: {}", "Copy this word: {}", "Say {}")
    add("first", word, lambda w: w[0], "Give the first letter: {}", "What is the first letter of {}?")
    add("last", word, lambda w: w[-1], "Give the last letter: {}", "What is the last letter of {}?")
    add("first_three", word, lambda w: w[:3], "Give the first three letters: {}", "Keep the front of the word: {}")
    add("last_two", word, lambda w: w[-2:], "Give the last two letters: {}", "Keep the end of the word: {}")
    add("drop_first", word, lambda w: w[1:], "Drop the first letter: {}", "Leave the front letter out: {}")
    add("drop_last", word, lambda w: w[:-1], "Drop the last letter: {}", "Leave the end letter out: {}")
    add("double", lambda r: word(r, 3, 5), lambda w: "".join(c + c for c in w), "Double every letter: {}", "Write each letter two times: {}")
    add("twice", lambda r: word(r, 3, 5), lambda w: w + w, "Write the word two times: {}", "Say the word twice: {}")
    add("swap_front", word, lambda w: w[1] + w[0] + w[2:], "Swap the first two letters: {}", "Turn the front pair of letters: {}")
    add("swap_back", word, lambda w: w[:-2] + w[-1] + w[-2], "Swap the last two letters: {}", "Turn the end pair of letters: {}")
    add("rotate_left", word, lambda w: w[1:] + w[0], "Move the first letter to the end: {}", "Rotate the letters left: {}")
    add("rotate_right", word, lambda w: w[-1] + w[:-1], "Move the last letter to the front: {}", "Rotate the letters right: {}")
    add("ends", word, lambda w: w[0] + w[-1], "Give the first and the last letter: {}", "What are the two end letters of {}?")
    add("middle", word, lambda w: w[1:-1], "Drop both end letters: {}", "Keep the middle of the word: {}")
    add("length", word, lambda w: str(len(w)), "How many letters are there: {}", "Count the letters: {}")
    add("stars", lambda r: word(r, 3, 5), lambda w: "*".join(w), "Put a star between the letters: {}", "Set stars in the word: {}")
    add("after", lambda r: r.choice(LETTERS[:-1]), lambda c: chr(ord(c) + 1), "Which letter comes after {}?", "Name the letter that follows {} in the alphabet")
    add("before", lambda r: r.choice(LETTERS[1:]), lambda c: chr(ord(c) - 1), "Which letter comes before {}?", "Name the letter in front of {} in the alphabet")
    add("is_vowel", lambda r: r.choice(LETTERS + VOWELS * 4), lambda c: "YES" if c in VOWELS else "NO", "Is {} a vowel?", "Tell if {} is one of the vowels")
    add("copy_digits", digits, lambda w: w, "Write the number again: {}", "Copy this number: {}")
    add("first_digit", digits, lambda w: w[0], "Give the first digit: {}", "What is the front digit of {}?")
    add("last_digit", digits, lambda w: w[-1], "Give the last digit: {}", "What is the end digit of {}?")
    add("plus_one", digits, lambda w: "".join(str((int(c) + 1) % 10) for c in w), "Add one to every digit: {}", "Make each digit one more: {}")
    add("digits_length", digits, lambda w: str(len(w)), "How many digits are there: {}", "Count the digits: {}")
    add("smallest", digits, lambda w: min(w), "Find the smallest digit: {}", "Which digit is the smallest: {}")
    add("has_digit", digits, lambda w: "YES" if "7" in w else "NO", "Is there a seven in {}?", "Tell if seven is in {}")
    add("odd", digits, lambda w: "YES" if int(w[-1]) % 2 else "NO", "Is {} odd?", "Tell if {} is an odd number")
    add("repeat", phrase, lambda w: w, "Repeat: {}", "Say after me: {}")
    add("first_word", phrase, lambda w: w.split()[0], "Give the first word: {}", "Which word comes first: {}")
    add("last_word", phrase, lambda w: w.split()[-1], "Give the last word: {}", "Which word comes last: {}")
    add("words", phrase, lambda w: str(len(w.split())), "How many words are there: {}", "Count the words: {}")
    for language, entries in LANGUAGES.items():
        add("to_" + language, lambda r, e=entries: r.choice(list(e)), lambda w, e=entries: e[w],
            "Say it in " + language + ": {}", "What is {} in " + language + "?")

    def which_follows(rng):
        w = "".join(rng.sample(LETTERS, rng.randint(3, 6)))
        i = rng.randrange(len(w) - 1)
        return f"Which letter follows {w[i]} in {w}?", w[i + 1]

    def replace(rng):
        w = word(rng)
        a, b = rng.choice(w), rng.choice(LETTERS)
        return rng.choice([f"Replace {a} with {b}: {w}", f"Put {b} in the place of {a}: {w}"]), w.replace(a, b)

    def contains(rng):
        w = word(rng)
        c = rng.choice(w) if rng.random() < 0.5 else rng.choice(LETTERS)
        return f"Is {c} in {w}?", "YES" if c in w else "NO"

    def how_often(rng):
        c = rng.choice(LETTERS)
        w = "".join(c if rng.random() < 0.35 else rng.choice(LETTERS) for _ in range(rng.randint(3, 7)))
        return rng.choice([f"How often is {c} in {w}?", f"Count the letter {c}: {w}"]), str(w.count(c))

    def larger(rng):
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        return f"Is {a} more than {b}?", "YES" if a > b else "NO"

    def at_place(rng):
        w = word(rng)
        i = rng.randrange(len(w))
        return f"Which letter is in place {i + 1}: {w}", w[i]

    ops.update(which_follows=which_follows, replace=replace, contains=contains, how_often=how_often, larger=larger, at_place=at_place)
    return ops


OPS = operations()


def prompt(text):
    return f"[INST] {text} [/INST]\n"


def composite(rng, makes=None, layout=None):
    """Several questions in one text: a list of (text, is an answer, number of the question or -1).

    Layouts: "examples", two worked examples and then the questions, as create-composite writes them; "sheet", without the
    examples; "chat", each answer behind its question.
    """
    makes = makes or [OPS[name] for name in rng.sample(list(OPS), rng.choice([2, 3, 3, 4]))]
    layout = layout or rng.choices(["examples", "sheet", "chat"], [6, 2, 2])[0]
    drawn = [make(rng) for make in makes]
    if layout == "chat":
        parts = []
        for i, (q, a) in enumerate(drawn):
            parts += [(prompt(q), False, i), (a, True, i), ("\n" if i + 1 < len(drawn) else "", True, -1)]
        return parts
    parts = []
    if layout == "examples":
        for example in (1, 2):
            shown = [make(rng) for make in makes]
            parts.append((f"\nExample {example}:\n\n" + "".join(prompt(q) + "\n" for q, _ in shown), False, -1))
            for i, (_, a) in enumerate(shown):
                parts += [(f"{i + 1}. ", True, -1), (a + "\n", True, -1)]
    parts.append(("\nAnswer the following questions in the same way, one numbered line for each:\n\n\n", False, -1))
    for i, (q, _) in enumerate(drawn):
        parts += [(prompt(q), False, i), ("\n\n" if i + 1 < len(drawn) else "\n", False, -1)]
    for i, (_, a) in enumerate(drawn):
        parts += [(f"{i + 1}. ", True, -1), (a, True, i), ("\n" if i + 1 < len(drawn) else "", True, -1)]
    return parts


def make_tokenizer(folder):
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    rng = random.Random(5)
    corpus = ["".join(part[0] for part in composite(rng, layout="examples")) for _ in range(1500)] + [" ".join(PHRASE_WORDS)] * 200
    tok = Tokenizer(models.BPE())
    # capitals, digits and line ends stand alone: what the tasks work on is one token a letter
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("[A-Z0-9\\n]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=640, special_tokens=["<|end|>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator(corpus, trainer)
    tok.add_tokens([AddedToken("[INST]", special=False), AddedToken("[/INST]", special=False)])
    os.makedirs(folder, exist_ok=True)
    tok.save(folder + "/tokenizer.json")
    return tok


def encoded(tok, text):
    return tok.encode(text, add_special_tokens=False).ids


class Rows:
    """A padded batch under construction: token ids and how much each counts in the loss (answers and the end in full)."""
    def __init__(self, count, length):
        self.ids, self.weight = np.zeros((count, length), np.int16), np.zeros((count, length), np.float16)

    def put(self, row, ids, is_answer):
        ids, is_answer = (ids + [END])[:self.ids.shape[1]], (is_answer + [True])[:self.ids.shape[1]]
        self.ids[row, :len(ids)] = ids
        self.weight[row, :len(ids)] = np.where(is_answer, 1, 0.05)


def alone(tok, rng, count=256, length=40):
    rows = Rows(count, length)
    for r in range(count):
        text, answer = OPS[rng.choice(list(OPS))](rng)
        q, a = encoded(tok, prompt(text)), encoded(tok, answer)
        rows.put(r, q + a, [False] * len(q) + [True] * len(a))
    return rows.ids, rows.weight, None


def together(tok, rng, count=80, length=288, pairs=176, width=40):
    """Composites; and, of some of their questions, the same question alone: `where` says at which place of the flattened
    composites each of its tokens stands (-1: nowhere), `late` marks the one from which the answer's first token is predicted."""
    rows, singles = Rows(count, length), Rows(pairs, width)
    where, late = np.full((pairs, width), -1, np.int32), np.zeros((pairs, width), bool)
    used = 0
    for r in range(count):
        ids, is_answer, place, last = [], [], {}, -1
        for text, answer, number in composite(rng):
            piece = encoded(tok, text)
            if number >= 0:
                place.setdefault(number, []).append((len(ids), piece, len(ids) - 1))
            ids += piece
            is_answer += [answer] * len(piece)
        rows.put(r, ids, is_answer)
        for (q_at, q, _), (a_at, a, before) in place.values():
            if used == pairs or a_at + len(a) >= length or len(q) + len(a) >= width or rng.random() < 0.2:
                continue
            singles.put(used, q + a, [False] * len(q) + [True] * len(a))
            n = len(q)
            where[used, :n - 1] = r * length + q_at + np.arange(n - 1)
            where[used, n - 1] = r * length + before
            where[used, n:n + len(a)] = r * length + a_at + np.arange(len(a))
            late[used, n - 1] = True
            used += 1
    return rows.ids, rows.weight, (singles.ids, singles.weight, where, late)


def batches(folder, seed, out):
    """A worker: endless batches, alternately of questions alone and of composites."""
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(folder + "/tokenizer.json")
    rng = random.Random(seed)
    while True:
        out.put(alone(tok, rng))
        out.put(together(tok, rng))


def config(args, vocab):
    from transformers import LlamaConfig
    return LlamaConfig(
        vocab_size=vocab, hidden_size=args.hidden, intermediate_size=args.intermediate, num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32, num_key_value_heads=args.kv_heads, max_position_embeddings=1024, rms_norm_eps=1e-5,
        rope_theta=10000.0, tie_word_embeddings=True, bos_token_id=END, eos_token_id=END, pad_token_id=PAD, attention_bias=False)


def exact(model, tok, makes, device, composite_of=None, count=200, seed=99):
    """Share of questions whose whole answer is the most likely one, token by token."""
    import torch
    rng = random.Random(seed)
    right = total = 0
    rows, spans = [], []
    for _ in range(count):
        if composite_of:
            parts = composite(rng, rng.sample(makes, composite_of), "examples")
        else:
            text, answer = rng.choice(makes)(rng)
            parts = [(prompt(text), False, 0), (answer, True, 0)]
        ids, span = [], []
        for i, (text, is_answer, number) in enumerate(parts):
            piece = encoded(tok, text)
            if is_answer and number >= 0:
                span.append((len(ids), len(ids) + len(piece) + (i + 1 == len(parts))))
            ids += piece
        rows.append(ids + [END])
        spans.append(span)
    length = max(map(len, rows))
    batch = torch.zeros((count, length), dtype=torch.long)
    for r, ids in enumerate(rows):
        batch[r, :len(ids)] = torch.tensor(ids)
    with torch.no_grad():
        guess = model(batch.to(device)).logits.argmax(-1).cpu()
    for r, span in enumerate(spans):
        for a, b in span:
            total += 1
            right += bool((guess[r, a - 1:b - 1] == batch[r, a:b]).all())
    return right / total


def likeness(alone, among, where, late):
    """Mean squared distance of a question's hidden states alone and among others, each scaled to a root mean square of 1: of all
    decoder layers but the last, whose state names the next token; the answer's beginning from the second on."""
    import torch
    at = where >= 0
    total = 0
    for layer in range(1, len(alone) - 1):
        mask = at if layer > 1 else at & ~late
        a, b = alone[layer][mask].float(), among[layer].flatten(0, 1)[where[mask]].float()
        a, b = (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) for h in (a, b))
        total = total + (a - b).pow(2).mean()
    return total / (len(alone) - 2)


def main():
    import torch, torch.multiprocessing as mp
    from transformers import LlamaForCausalLM
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--intermediate", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--likeness", type=float, default=0.5)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tok = make_tokenizer(args.folder)
    queue = mp.get_context("fork").Queue(16)
    workers = [mp.get_context("fork").Process(target=batches, args=(args.folder, 1000 + i, queue), daemon=True) for i in range(args.workers)]
    for w in workers:
        w.start()
    model = LlamaForCausalLM(config(args, tok.get_vocab_size())).to(device)
    for name, p in model.named_parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.04 if "embed" in name else 1 / math.sqrt(p.shape[1]) * (0.35 if ("o_proj" in name or "down" in name) else 1))
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() < 2]
    optimiser = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.98), fused=device == "cuda")
    start, step, shown = time.time(), 0, 0
    while (done := (time.time() - start) / args.seconds) < 1:
        rate = args.lr * min(1, (step + 1) / 500) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        ids, weight, paired = queue.get()

        def run(ids, weight):
            ids = torch.from_numpy(ids.astype(np.int64)).to(device)
            weight = torch.from_numpy(weight.astype(np.float32)).to(device)[:, 1:]
            with torch.autocast(device, torch.bfloat16):
                result = model(input_ids=ids, output_hidden_states=paired is not None)
            loss = torch.nn.functional.cross_entropy(result.logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(weight)
            return (loss * weight).sum() / weight.sum(), result.hidden_states

        loss, states = run(ids, weight)
        apart = torch.zeros(())
        if paired is not None:
            single_loss, single_states = run(*paired[:2])
            apart = likeness(single_states, states, torch.from_numpy(paired[2].astype(np.int64)).to(device), torch.from_numpy(paired[3]).to(device))
            loss = loss + 0.5 * single_loss + args.likeness * apart
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        if time.time() - start > shown:
            shown += args.seconds / 8
            print(f"step {step} {time.time() - start:.0f} s loss {loss.item():.4f} apart {apart.item():.4f} queue {queue.qsize()}", flush=True)
    for w in workers:
        w.terminate()
    model = model.float().eval().half().float()  # what the file will hold
    every = list(OPS.values())
    worst = sorted((exact(model, tok, [f], device), n) for n, f in OPS.items())
    print("single", round(sum(a for a, _ in worst) / len(worst), 4), "worst", [(n, round(a, 2)) for a, n in worst[:10]])
    print("composite of 3", exact(model, tok, every, device, 3), "of 2", exact(model, tok, every, device, 2))
    model.half().save_pretrained(args.folder, safe_serialization=True)
    json.dump({"eos_token_id": END, "pad_token_id": PAD, "bos_token_id": END, "do_sample": False}, open(args.folder + "/generation_config.json", "w"), indent=2)


if __name__ == "__main__":
    main()
