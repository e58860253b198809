#!/usr/bin/env python3
"""Writes meteora-core/src/test/resources/merge/peft.safetensors: updates of one projection after PEFT's
add_weighted_adapter on the four adapters of configs/tiny, for every method. Needs: torch, transformers, peft.
Arguments: the project's root, the file to write."""
import sys

import peft.tuners.lora.model as lora_model
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

root, target = sys.argv[1:]
names = ["count_vowels", "reverse_word", "shift_letters", "sort_letters"]
weights = [0.4, 0.3, 0.2, -0.1]
module = "layers.1.self_attn.k_proj"

# a new adapter's first values are drawn before anything is dropped: seed after that
freeze = lora_model._freeze_adapter
lora_model._freeze_adapter = lambda *a: (freeze(*a), torch.manual_seed(7))[0]

out = {}
for method in ["linear", "cat", "svd", "ties", "ties_svd", "magnitude_prune", "dare_linear", "dare_ties"]:
    base = LlamaForCausalLM.from_pretrained(f"{root}/configs/tiny/base", torch_dtype=torch.float32)
    model = PeftModel.from_pretrained(base, f"{root}/configs/tiny/adapters/{names[0]}", adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(f"{root}/configs/tiny/adapters/{name}", adapter_name=name)
    model.add_weighted_adapter(names, weights, "merged", combination_type=method, density=0.6, svd_rank=3)
    layer = next(m for n, m in model.named_modules() if n.endswith(module))
    out[method] = layer.get_delta_weight("merged").detach().contiguous()
save_file(out, target, metadata={"format": "pt", "weights": str(weights), "density": "0.6", "svd_rank": "3", "seed": "7"})
