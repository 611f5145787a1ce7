"""Run the search that comes before a training, as PS-ViT's for its patches.

The search itself is the method's own class, which the recipe names (`search.task`). It starts from a trained model; its
weights, slimmed and tuned, are what the run's training starts from.
"""

import time
from pathlib import Path

import torch

from workflow.campaign import specs
from workflow.data import check, layout, loaders
from workflow.runtime import device as devices
from workflow.runtime.distributed import DistributedContext
from workflow.storage import provenance, records
from workflow.storage.journal import Journal
from workflow.train import checkpoints, factory, macs


def begin(spec: dict, site: dict, device: torch.device):
    """Build the search, before its first layer, with a random sample of the training images."""
    recipe = spec["recipe"]
    model = factory.build_started(spec, site).to(device)
    context = DistributedContext(device)
    source = loaders.ImageSource(spec["data"], site, recipe, factory.data_config(model), context)
    images = source.sample(recipe["images"], spec["seed"])
    cls = factory.task_class(recipe["task"])
    return factory.make_task(spec, cls, model, images, seed=spec["seed"], **recipe["task_args"])


def run(spec: dict, site: dict, folder: Path) -> dict:
    """Search layer by layer, from the last layer in the checkpoint. Return the record."""
    started = time.time()
    torch.set_num_threads(spec["recipe"]["threads"])
    layout.check(spec["setting"], {**spec["data"], "root": site["data_root"]})
    device = devices.choose(site["device"])
    journal = Journal(folder / "journal.jsonl")
    images = check.describe_images(site)
    saved = checkpoints.Checkpoints(
        folder / "checkpoints",
        specs.spec_hash(spec),
        lambda text: journal.write("note", text=text),
        images=images,
    )
    search = begin(spec, site, device)
    code = provenance.extended([], from_layer=0)
    state = saved.load()
    if state:
        warning = provenance.check_resumed(spec, state["code"], site.get("other_code", provenance.WARN))
        if warning:
            journal.write("note", text=warning)
        search.load_state_dict(state["search"])
        code = provenance.extended(state["code"], from_layer=len(search.layers))
    journal.write("start", layer=len(search.layers), code=provenance.running())
    while not search.done:
        layer = search.next_layer()
        metrics = {"patches": len(layer.patches), "error": layer.error}
        journal.write("layer", layer=1 + layer.layer, layers=search.model.depth, metrics=metrics)
        saved.save(len(search.layers), {"search": search.state_dict(), "code": code})
    results = {
        **search.summary(),
        "images": len(search.images),
        "macs_g": macs.count(search.model, tuple(search.images.shape[1:])) / 1e9,
        "weights": checkpoints.save_weights(folder, search.model, spec, images["classes"]),
    }
    journal.write("end")
    return records.make(spec, results, started, code, device=devices.describe(device), **images)
