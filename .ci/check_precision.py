"""On a trained run: the share of tokens kept by fp32 at the first selection that bf16 keeps too.

PYTHONPATH=. python .ci/check_precision.py results/demo/runs/evo_deit_tiny
"""

import json
import sys
from pathlib import Path

import torch

import evovit
from workflow.data import loaders
from workflow.runtime.distributed import DistributedContext
from workflow.train import factory

folder = Path(sys.argv[1])
record = json.loads((folder / "train.json").read_text())
spec = record["spec"]
model = factory.build_model(spec["model"]).eval()
model.load_state_dict(torch.load(folder / record["results"]["weights"]["path"], weights_only=True))
site = {"data_root": folder.parent.parent / "digits", "workers": 0}
config = factory.data_config(model)
context = DistributedContext(torch.device("cpu"))
loader = loaders.ImageSource(spec["data"], site, spec["recipe"], config, context).validation()
same = total = 0
for images, _ in loader:
    exact = evovit.trace(model, images).kept[0]
    with torch.autocast("cpu", torch.bfloat16):
        kept = evovit.trace(model, images).kept[0]
    same += (kept.unsqueeze(2) == exact.unsqueeze(1)).sum().item()
    total += exact.numel()
print(f"bf16 keeps {100 * same / total:.2f} % of the {total} tokens that fp32 keeps first")
assert same >= 0.97 * total, "bf16 selects other tokens than fp32: the bar is 97 %"
