"""The data job: what lies in a setting's folders, and whether every image can be decoded.

Decoding all of ImageNet takes hours of CPU, so it is done once per manifest, by as many processes
as the setting's `workers`.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from workflow import layout, records
from workflow.layout import DataError
from workflow.node import sources
from workflow.node.data import in_processes
from workflow.node.sources import UNREADABLE, Folder, Listed

Listing = Folder | Listed
TOGETHER = 256  # images that a process decodes before it takes others
SHOWN = 20


def manifest(listings: dict[str, Listing]) -> dict:
    """Classes, image counts, bytes and a hash over every path and size of all splits."""
    digest, found = hashlib.sha256(), {}
    for split, listing in listings.items():
        for name, size in zip(listing.names, listing.sizes, strict=True):
            digest.update(f"{split}/{name} {size}\n".encode())
        found[split] = {
            "classes": len(listing.classes),
            "images": len(listing.names),
            "bytes": sum(listing.sizes),
        }
    return {"splits": found, "hash": digest.hexdigest()[:16]}


def check_classes(setting: str, num_classes: int, listings: dict[str, Listing]) -> None:
    """Raise DataError unless all splits have the same classes, as many as the YAML says."""
    train, val = listings.values()
    if len(train.classes) != num_classes or train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise DataError(
            f"The splits of {setting} have {len(train.classes)} and {len(val.classes)} classes"
            f"{f', {odd[0]!r} only one of them' if odd else ''}; needed are the same {num_classes} "
            f"in both (workflow/config/settings.yaml, {setting}.data)."
        )


def hash_of(site: dict) -> str | None:
    """The hash of the setting's manifest; None outside the workflow, where there is none."""
    path = Path(site["root"]) / "data.json"
    return records.read(path)["results"]["hash"] if path.exists() else None


class Decoding(Dataset):
    """Of each of a listing's files None, or why it is no whole image."""

    def __init__(self, listing: Listing):
        self.listing = listing

    def __len__(self) -> int:
        return len(self.listing.names)

    def __getitem__(self, index: int) -> str | None:
        try:
            with self.listing.open(index) as stream, Image.open(stream) as image:
                image.convert("RGB")
        except UNREADABLE as error:
            empty = not self.listing.sizes[index]
            reason = "it is empty" if empty else str(error).partition(": ")[0]
            return f"{self.listing.place(index)}: {reason}"
        return None


def undecodable(listing: Listing, workers: int) -> Iterator[str]:
    """Decode every file, by so many processes; -> those that are no whole image."""
    options = in_processes(workers, stay=False) | {"collate_fn": list}
    loader = DataLoader(Decoding(listing), batch_size=TOGETHER, **options)
    return (reason for reasons in loader for reason in reasons if reason)


def check_images(listings: dict[str, Listing], workers: int, listed: Path) -> None:
    """Raise DataError naming the files that are no whole images; `listed` takes all of them."""
    faults = [fault for one in listings.values() for fault in undecodable(one, workers)]
    if not faults:
        return
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("\n".join(faults) + "\n")
    count = sum(len(one.names) for one in listings.values())
    more = f"\n... and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    raise DataError(
        f"{len(faults)} of {count} files are no whole images; replace them with the originals or "
        f"delete what is none (all are listed in {listed}):\n" + "\n".join(faults[:SHOWN]) + more
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
    listings = {split: sources.listing(data, site["data_root"], split) for split in splits}
    check_classes(spec["setting"], data["num_classes"], listings)
    found = manifest(listings)
    decoded = Path(site["root"]) / "data" / f"decoded-{found['hash']}"
    if not decoded.exists():
        check_images(listings, site["workers"], folder / "undecodable.txt")
        decoded.parent.mkdir(parents=True, exist_ok=True)
        decoded.touch()
    return records.make(spec, found, started)
