"""Two small models to time, quickly; and what may happen to the second."""

import torch

from workflow.bench import modes, roofline, throughput

SIZE = {"img_size": 32, "embed_dim": 24, "num_classes": 10}


def spec(**changes) -> dict:
    models = [
        {"run": "deit", "name": "plain_deit_tiny_patch16_224", "kwargs": SIZE},
        {"run": "evo", "name": "evo_deit_tiny_patch16_224", "kwargs": SIZE},
    ]
    configuration = {"device": "cpu", "mode": "fused", "precision": "fp32", "batch_size": 2}
    configuration |= {"threads": 1, "rounds": 5, "channels_last": False, "cuda_graphs": 16}
    return {"kind": "throughput", "section": "deit", "models": models, **configuration, **changes}


def shorten(monkeypatch) -> None:
    """Make rounds few and short, and the products that the machine is known by small."""
    monkeypatch.setattr(throughput, "TIMING_S", 0.01)
    monkeypatch.setattr(throughput, "MOST_ROUNDS", 1)
    monkeypatch.setattr(roofline, "MATRIX", {"cpu": 64})
    monkeypatch.setattr(roofline, "COPIED_MIB", {"cpu": 1})


def breaking(monkeypatch, change):
    """The second model's timed passes give something else than its reference did."""
    make_run = modes.make_run

    def broken(module, images, *rest):
        run = make_run(module, images, *rest)
        return (lambda images: change(run, images)) if "Evo" in type(module).__name__ else run

    monkeypatch.setattr(modes, "make_run", broken)


def out_of_memory(*ignored):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
