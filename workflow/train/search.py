"""A search before a training: a trained model and one spec -> a record of what was found.

Its weights, slimmed and tuned, are what the run's training starts from. The search itself is the
method's own class, named by the recipe (`search.task`, as baselines.psvit_search.TopDownSearch).
"""

import time
from pathlib import Path

import torch
from timm.data import resolve_model_data_config

from workflow.campaign import specs
from workflow.data import check, layout, loaders
from workflow.runtime import device
from workflow.storage import provenance, records
from workflow.storage.journal import Journal
from workflow.train import checkpoints, factory, macs


def begin(spec: dict, site: dict, where: torch.device):
    """The search before its first layer, on a random sample of the training images."""
    recipe = spec["recipe"]
    model = factory.build_started(spec, site).to(where)
    config = resolve_model_data_config(model)
    config["input_size"] = (3, *factory.image_size(model))
    images = loaders.sample(spec["data"], site, recipe, config, recipe["images"], spec["seed"], where)
    cls = factory.task_class(recipe["task"])
    return factory.make_task(spec, cls, model, images, seed=spec["seed"], **recipe["task_args"])


def run(spec: dict, site: dict, folder: Path) -> dict:
    """Search layer by layer, going on after the last one in the checkpoint; -> record."""
    started = time.time()
    torch.set_num_threads(spec["recipe"]["threads"])
    layout.check(spec["setting"], {**spec["data"], "root": site["data_root"]})
    where = device.choose(site["device"])
    journal = Journal(folder / "journal.jsonl")
    images = check.of_images(site)
    saved = checkpoints.Checkpoints(
        folder / "checkpoints",
        specs.spec_hash(spec),
        lambda text: journal.write("note", text=text),
        images=images,
    )
    search = begin(spec, site, where)
    code = provenance.extended([], from_layer=0)
    if state := saved.load():
        made_by = state.get("code", [{**provenance.UNREPORTED, "from_layer": 0}])
        policy = site.get("other_code", provenance.WARN)
        if warning := provenance.check_resumed(spec, made_by, policy):
            journal.write("note", text=warning)
        search.load_state_dict(state["search"])
        code = provenance.extended(made_by, from_layer=len(search.found))
    journal.write("start", layer=len(search.found), code=provenance.running())
    while not search.done:
        found = search.next_layer()
        metrics = {"patches": len(found.patches), "error": found.error}
        journal.write("layer", layer=1 + found.layer, layers=search.model.depth, metrics=metrics)
        saved.save(len(search.found), {"search": search.state_dict(), "code": code})
    size = tuple(search.images.shape[1:])
    results = {
        **search.summary(),
        "images": len(search.images),
        "macs_g": macs.count(search.model, size) / 1e9,
        "weights": checkpoints.save_weights(folder, search.model, spec, images["classes"]),
    }
    journal.write("end")
    seen = {"device": device.describe(where), **check.of_images(site)}
    return records.make(spec, results, started, code, **seen)
