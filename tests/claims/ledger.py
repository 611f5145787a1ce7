"""The ledger as tests look at it, and measurements made up for it."""

import dataclasses

import pandas as pd

from workflow.campaign import benchmarks
from workflow.campaign.config import Config
from workflow.paper import claims
from workflow.storage import records


def ledger(config: Config, root: str = "results") -> pd.DataFrame:
    return claims.make(config, root, partial=True).set_index("id")


def changed(config: Config, **entries) -> Config:
    """The configuration with other claims."""
    base = {"where": "here", "says": "{run} beside {than}"}
    return dataclasses.replace(config, claims={name: base | one for name, one in entries.items()})


def timer(config):
    """A function that writes a section's measurement: run -> (speed-up, half its interval)."""

    def write(section: str, setting: str = "imagenet", mode: str = "paper", suspect=(), doubts=None,
              lost=(), **speeds) -> None:  # fmt: skip
        point = benchmarks.throughput_configuration(config, setting, section) | {"mode": mode}
        spec = benchmarks.throughput_spec(config, setting, section, point, weights="assumed")
        methods = []
        for model in spec["models"]:
            ratio, half = speeds.get(model["run"], (1.0, 0.0))
            method = {"run": model["run"], "speedup": ratio, "macs_g": 3.0 / ratio, "suspect": []}
            method |= {"speedup_interval": [ratio - half, ratio + half], "rounds": [1.0] * 5}
            method["suspect"] = (doubts or {}).get(model["run"], [])
            method |= {"ceilings": {"macs": 1.5, "roofline": 1.6}, "profile": model.get("profile")}
            if model["run"] in lost:
                method |= {"speedup": None, "speedup_interval": None}
            methods.append(method)
        results = {"device": "a GPU", "methods": methods, "suspect": list(suspect)}
        path = benchmarks.throughput_path(config.settings[setting]["results"], section, point)
        # asked for as the setting's tables do, whose weights may be trained ones
        asked = benchmarks.throughput_spec(config, setting, section, point)
        records.write_json(path, records.make(asked, results, 0.0))

    return write
