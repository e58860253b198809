#!/usr/bin/env python3
"""Loads adapters that `meteora train-lora` wrote with Python's PEFT, and computes logits with them.

usage: scripts/check_peft.py BASE OUT.safetensors ADAPTER...

For each adapter: every tensor of its file must arrive in the model, none may be missing, and the
logits must differ from the base model's. OUT gets, for each adapter's name, the logits of 32 fixed
tokens, shape (1, 32, vocabulary), float32. meteora-train's PeftTest compares meteora's with them.
Needs torch, transformers, peft and safetensors.
"""
import os
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file


def main(base, out, folders):
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.tensor([[(7 * i + 3) % plain.config.vocab_size for i in range(32)]])
    with torch.no_grad():
        expected = {"base": plain(ids).logits}
    for folder in folders:
        name = os.path.basename(os.path.normpath(folder))
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = peft.PeftModel.from_pretrained(model, folder).eval()
        loaded = peft.get_peft_model_state_dict(model)
        file = load_file(os.path.join(folder, "adapter_model.safetensors"))
        assert loaded.keys() == file.keys(), sorted(loaded.keys() ^ file.keys())
        for key, tensor in file.items():
            assert torch.equal(loaded[key].float(), tensor.float()), key
        with torch.no_grad():
            expected[name] = model(ids).logits
        change = (expected[name] - expected["base"]).abs().max().item()
        assert change > 1e-2, change
        print(f"{name}: {len(file)} tensors loaded, logits differ from the base model's by up to {change:.3f}")
    save_file({k: v.contiguous() for k, v in expected.items()}, out)
    print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}: wrote {out}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
