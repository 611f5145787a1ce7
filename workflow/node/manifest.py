"""The data job: what lies in a setting's folders, and whether every image can be decoded.

Decoding all of ImageNet takes hours of CPU, so it is done once per manifest, by as many processes
as the setting's `workers`.
"""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

from PIL import Image

from workflow import layout, records
from workflow.layout import DataError

TOGETHER = 256  # images that a process decodes before it takes others
SHOWN = 20


def manifest(root: str | Path, splits: tuple[str, ...]) -> dict:
    """Classes, image counts, bytes and a hash over every path and size below root/<split>/.

    Raises DataError for an empty class: the splits would number their classes differently.
    """
    digest, found = hashlib.sha256(), {}
    for split in splits:
        folder = Path(root) / split
        for label in layout.class_folders(folder):
            if not any(path.is_file() for path in (folder / label).iterdir()):
                raise DataError(f"{folder / label} is empty; restore its images.")
        paths = files(root, split)
        sizes = [path.stat().st_size for path in paths]
        for path, size in zip(paths, sizes, strict=True):
            digest.update(f"{split}/{path.relative_to(folder)} {size}\n".encode())
        found[split] = {
            "classes": len(layout.class_folders(folder)),
            "images": len(paths),
            "bytes": sum(sizes),
        }
    return {"splits": found, "hash": digest.hexdigest()[:16]}


def files(root: str | Path, split: str) -> list[Path]:
    return sorted(path for path in (Path(root) / split).rglob("*") if path.is_file())


def hash_of(site: dict) -> str | None:
    """The hash of the setting's manifest; None outside the workflow, where there is none."""
    path = Path(site["root"]) / "data.json"
    return records.read(path)["results"]["hash"] if path.exists() else None


def undecodable(paths: list[Path]) -> list[tuple[Path, str]]:
    """Those that are no whole image, each with the reason."""
    found = []
    for path in paths:
        try:
            with Image.open(path) as image:
                image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            reason = "it is empty" if not path.stat().st_size else str(error).partition(": ")[0]
            found.append((path, reason))
    return found


def decode(paths: list[Path], workers: int) -> Iterator[tuple[Path, str]]:
    """Decode every file; -> those that are no whole image."""
    parts = [paths[i : i + TOGETHER] for i in range(0, len(paths), TOGETHER)]
    if workers < 2 or len(parts) < 2:
        return chain.from_iterable(map(undecodable, parts))
    with ProcessPoolExecutor(workers) as pool:
        return chain.from_iterable(list(pool.map(undecodable, parts)))


def check_images(root: str, splits: tuple[str, ...], workers: int, listed: Path) -> None:
    """Raise DataError naming the files that are no whole images; `listed` takes all of them."""
    paths = [path for split in splits for path in files(root, split)]
    faults = [f"{path}: {reason}" for path, reason in decode(paths, workers)]
    if not faults:
        return
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("\n".join(faults) + "\n")
    more = f"\n... and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    raise DataError(
        f"{len(faults)} of {len(paths)} files below {root} are no whole images; replace them with "
        f"the originals or delete what is none (all are listed in {listed}):\n"
        + "\n".join(faults[:SHOWN])
        + more
    )


def run(spec: dict, site: dict, folder: Path) -> dict:
    """The data job: write the demo's digits, or look through the user's folders; -> record."""
    started = time.time()
    data = spec["data"]
    if data["name"] == "digits":
        from workflow.node.digits import write_digits

        write_digits(site["data_root"], data["train"], data["val"])
    layout.check(spec["setting"], {**data, "root": site["data_root"]})
    splits = (data["train"], data["val"])
    found = manifest(site["data_root"], splits)
    decoded = Path(site["root"]) / "data" / f"decoded-{found['hash']}"
    if not decoded.exists():
        check_images(site["data_root"], splits, site["workers"], folder / "undecodable.txt")
        decoded.parent.mkdir(parents=True, exist_ok=True)
        decoded.touch()
    return records.make(spec, found, started)
