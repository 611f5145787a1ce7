"""What a record of training costs says of a row: whether a step fits into memory."""

from workflow.storage import provenance


def columns(row: dict, record: dict | None) -> dict:
    """Whether a training step at the row's batch size fits into memory, and how much it needs."""
    step = record and step_at(record, row["run"], row["batch_size"])
    if not step:
        return {}
    fits, needed = step
    said = describe_steps(record)
    if row["batch_size"] not in record["spec"]["batch_sizes"]:
        measured = ", ".join(map(str, record["spec"]["batch_sizes"]))
        said += f", on the line through batches of {measured}"
    gib = None if needed is None else needed / 2**30
    return {"out_of_memory": not fits, "memory_gib": gib, "run": row["run"], "said": [said],
            "flags": provenance.flags(record)}  # fmt: skip


def step_at(record: dict, run: str, batch_size: int) -> tuple[bool, int | None] | None:
    """Whether a run's training step fits into memory at a batch size, and how many bytes it needs
    where that is known; None if the record says nothing of that size."""
    method = next(one for one in record["results"]["methods"] if one["run"] == run)
    for size in (*method["sizes"], *method.get("extrapolated", [])):
        if size["batch_size"] == batch_size:
            out = size.get("out_of_memory", False) or size.get("over_limit", False)
            return not out, size.get("bytes")
    return None


def describe_steps(record: dict) -> str:
    """What bytes a record of training steps counts, and where."""
    results, spec = record["results"], record["spec"]
    said = f"memory: {results['bytes_are']}, a step in {spec['precision']} on {results['device']}"
    return said + (f", held to {spec['memory_gib']} GiB" if spec["memory_gib"] else "")
