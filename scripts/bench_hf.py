#!/usr/bin/env python3
"""What a PyTorch user gets on the same shapes as `meteora bench`, for tables side by side.

    bench_hf.py prefill   Hugging Face's Llama without adapters: prefill
    bench_hf.py decode    the same: one decode step behind a prompt
    bench_hf.py layer     one of its decoder layers, 4 x 4096 tokens, forward and backward: frozen, and masked MeteoRA trained in it
    bench_hf.py train     its whole training step, --batch 4 --tokens 2048, masked MeteoRA with 28 adapters, dropout, every layer recomputed, AdamW;
                          no loss of the gates. Several GPUs, the gradients summed: torchrun --nproc-per-node 2 bench_hf.py train
    bench_hf.py linear    one linear layer with 28 adapters in plain PyTorch: gathered, and masked over all ranks

Random weights in bfloat16, of Llama-3-8B's shapes or those of a config.json (--model-config); needs torch and transformers, and a
GPU for figures that mean anything: `--device cpu` with a tiny model shows that a command works. One line of JSON a measurement.
"""
import argparse, json, statistics, time
import torch
import torch.nn.functional as F


DEVICE = "cuda"


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def median(run, repeat):
    times = []
    for i in range(repeat + max(2, repeat // 3)):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[-repeat:])


def report(what, ms):
    print(json.dumps({"what": what, "ms": round(ms, 4)}), flush=True)


def llama(args):
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig.from_json_file(args.model_config) if args.model_config else \
             LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                         num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
                         rms_norm_eps=1e-5, rope_theta=500000.0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        return LlamaForCausalLM(config).eval()


def models(args):
    model = llama(args)
    for batch in args.batch:
        ids = torch.randint(0, model.config.vocab_size, (batch, args.tokens), device=DEVICE)
        if args.what in ("prefill", "all"):
            # logits of the last position only, as generation asks for them
            report(f"prefill {batch} x {args.tokens}, Hugging Face base model",
                   median(lambda: model(ids, use_cache=True, logits_to_keep=1), args.repeat))
        if args.what in ("decode", "all"):
            cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
            report(f"decode batch {batch}, Hugging Face base model",
                   median(lambda: model(ids[:, :1], past_key_values=cache, use_cache=True).logits.argmax(-1), args.repeat))


def linear(args):
    n, r, k = 28, 8, 2
    for size_in, size_out in ((4096, 4096), (4096, 14336), (14336, 4096)):
        for tokens in (1, 16, 512, 2048):
            normal = lambda *shape: torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) / shape[-1] ** 0.5
            w, g, a, b = normal(size_out, size_in), normal(n, size_in), normal(n * r, size_in), normal(size_out, n * r)
            a3, b3, x = a.view(n, r, size_in), b.t().reshape(n, r, size_out), normal(tokens, size_in) * size_in ** 0.5

            def route():
                top = F.linear(x, g).float().topk(k)
                return top.indices, torch.softmax(top.values, -1)

            def masked():
                index, weight = route()
                full = torch.zeros(tokens, n, device=DEVICE, dtype=torch.float32).scatter_(1, index, weight)
                z = F.linear(x, a) * (2 * full).repeat_interleave(r, 1).to(x.dtype)
                return F.linear(x, w) + F.linear(z, b)

            def gather():
                index, weight = route()
                z = torch.einsum("tkri,ti->tkr", a3[index], x) * (2 * weight)[..., None].to(x.dtype)
                return F.linear(x, w) + torch.einsum("tkr,tkro->to", z, b3[index])

            name = f"{size_in} -> {size_out}, {tokens} tokens, PyTorch "
            report(name + "base", median(lambda: F.linear(x, w), args.repeat))
            report(name + "masked", median(masked, args.repeat))
            if tokens <= 256:
                report(name + "gather", median(gather, args.repeat))


class Masked(torch.nn.Module):
    """A frozen linear with 28 adapters and a gate, all trained: one product over all ranks, masked by the routing weights."""
    def __init__(self, base, n=28, r=8, k=2, dropout=0.0):
        super().__init__()
        self.base, self.n, self.r, self.k, self.dropout = base, n, r, k, dropout
        size_out, size_in = base.weight.shape
        normal = lambda *shape: torch.nn.Parameter(torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) / shape[-1] ** 0.5)
        self.gate, self.a, self.b = normal(n, size_in), normal(n * r, size_in), normal(size_out, n * r)

    def forward(self, x):
        top = torch.softmax(F.linear(x, self.gate).float(), -1).topk(self.k)
        weights = torch.zeros(*x.shape[:-1], self.n, device=DEVICE, dtype=torch.float32).scatter(-1, top.indices,
                                                                            top.values / top.values.sum(-1, keepdim=True))
        z = F.linear(F.dropout(x, self.dropout, self.training), self.a) * (2 * weights).repeat_interleave(self.r, -1).to(x.dtype)
        return self.base(x) + F.linear(z, self.b)


def layer(args):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
    config = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=1, num_attention_heads=32,
                         num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500000.0)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        module, rotary = LlamaDecoderLayer(config, 0), LlamaRotaryEmbedding(config)
    module.requires_grad_(False)
    x = torch.randn(4, 4096, 4096, device=DEVICE, requires_grad=True)
    g = torch.randn_like(x)
    position = torch.arange(4096, device=DEVICE)[None]
    angles = rotary(x, position)

    def step():
        x.grad = None
        y = module(x, position_embeddings=angles, attention_mask=None)
        (y[0] if isinstance(y, tuple) else y).backward(g)

    report("layer 4 x 4096, forward and backward, Hugging Face frozen", median(step, args.repeat))
    for parent in (module.self_attn, module.mlp):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(parent, name, Masked(child))
    report("layer 4 x 4096, forward and backward, PyTorch masked", median(step, args.repeat))


def train(args):
    import os
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("LOCAL_RANK", 0))
    if DEVICE == "cuda":
        torch.cuda.set_device(rank)
    torch.manual_seed(rank)
    if ranks > 1:
        torch.distributed.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    model = llama(args).requires_grad_(False).train()
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(parent, name, Masked(child, n=args.adapters, dropout=0.1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    batch, tokens = args.batch[0], args.tokens
    ids = torch.randint(0, model.config.vocab_size, (batch, tokens), device=DEVICE)

    def step():
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        if ranks > 1:
            for p in trained:
                torch.distributed.all_reduce(p.grad)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    ms = median(step, args.repeat)
    if rank == 0:
        each = f"each of {ranks} GPUs" if DEVICE == "cuda" else f"the CPU, {ranks} processes"
        report(f"training step {batch} x {tokens} on {each}, PyTorch masked, {args.adapters} adapters", ms)
        if DEVICE == "cuda":
            print(json.dumps({"what": "memory, MiB", "reserved": torch.cuda.max_memory_reserved() >> 20,
                              "allocated": torch.cuda.max_memory_allocated() >> 20}), flush=True)
    if ranks > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prefill", "decode", "linear", "layer", "train", "all"))
    parser.add_argument("--batch", type=int, nargs="+", help="1 and 4; of train 4")
    parser.add_argument("--tokens", type=int, help="512; of train 2048")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--adapters", type=int, default=28, help="of train")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model-config", help="config.json with other shapes, of prefill, decode and train")
    args = parser.parse_args()
    DEVICE = args.device
    args.batch = args.batch or ([4] if args.what == "train" else [1, 4])
    args.tokens = args.tokens or (2048 if args.what == "train" else 512)
    if args.what == "train":
        train(args)
        raise SystemExit
    if args.what in ("layer", "all"):
        layer(args)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        if args.what == "layer":
            raise SystemExit
    with torch.inference_mode():
        if args.what in ("linear", "all"):
            linear(args)
        if args.what != "linear":
            models(args)
