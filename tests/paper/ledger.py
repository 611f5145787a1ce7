"""The ledger and tables as tests look at them, and measurements made up for them."""

import pandas as pd

from workflow.campaign import benchmarks
from workflow.campaign.config import Config
from workflow.paper import claims, tables
from workflow.paper.claims import Claim
from workflow.paper.results import Records
from workflow.storage import records, warnings


def ledger(config: Config, root: str = "results", own: list[Claim] | None = None) -> pd.DataFrame:
    """Return the ledger of all claims, or of one's own, from whatever records exist."""
    return claims.make(config, root, partial=True, claims=own).set_index("id")


def compile_table(table: str, reader: Records) -> pd.DataFrame:
    """Return a table as its CSV has it, but for the rounding."""
    return tables.frame_of(table, tables.rows_of(table, reader), reader.config)


def claim(id: str, check, **arguments) -> Claim:
    return Claim(id, "here", "a sentence", check, **arguments)


def timer(config):
    """Return a function that writes a group's measurement: run -> (speed-up, half its interval).

    `warned` are the warnings of the whole measurement, `of_runs` those of single runs; `lost` ran out of memory.
    """

    def write(group: str, setting="imagenet", mode="paper", warned=(), of_runs=None, lost=(), **speeds) -> None:
        configuration = benchmarks.throughput_configuration(config, setting, group) | {"mode": mode}
        spec = benchmarks.throughput_spec(config, setting, group, configuration, weights="assumed")
        methods = []
        for model in spec["models"]:
            ratio, half = speeds.get(model["run"], (1.0, 0.0))
            own = warnings.to_json((of_runs or {}).get(model["run"], []))
            method = {"run": model["run"], "speedup": ratio, "macs_g": 3.0 / ratio, "warnings": own}
            method |= {"speedup_interval": [ratio - half, ratio + half], "rounds": [1.0] * 5}
            method |= {"ceilings": {"macs": 1.5, "roofline": 1.6}, "profile": model.get("profile")}
            if model["run"] in lost:
                method |= {"speedup": None, "speedup_interval": None}
            methods.append(method)
        results = {"device": "a GPU", "methods": methods, "warnings": warnings.to_json(list(warned))}
        path = benchmarks.throughput_path(config.settings[setting]["results"], group, configuration)
        # asked for as the setting's tables do, whose weights may be trained ones
        asked = benchmarks.throughput_spec(config, setting, group, configuration)
        records.write_json(path, records.make(asked, results, 0.0))

    return write
