"""Check a data set: which images and classes a setting's folders hold, and whether every image can be decoded.

Decoding all of ImageNet takes hours of CPU, so it is done once per manifest, by as many processes as the setting's
`workers`.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import Dataset

from workflow.data import layout, readers
from workflow.data.layout import DataError, printable
from workflow.data.loaders import Loader, worker_options
from workflow.data.readers import ImageError, ImageReader, decode
from workflow.storage import records

CHUNK = 256  # images that a process decodes before it takes others
SHOWN = 20  # files in the error message


def manifest(by_split: dict[str, ImageReader]) -> dict:
    """Return classes, image counts, bytes and a hash over every path and size of all splits.

    `listing` is a split's hash over names and labels only. Each job compares it with the images that it reads, which
    needs no file's size.
    """
    digest = hashlib.sha256()
    splits = {}
    for split, reader in by_split.items():
        sizes = reader.sizes()
        named = zip(reader.names, sizes, strict=True)
        for name, size in sorted(named, key=lambda image: image[0].split("/")):
            digest.update(f"{split}/{name} {size}\n".encode())
        splits[split] = {
            "classes": len(reader.classes),
            "images": len(reader),
            "bytes": sum(sizes),
            "listing": reader.digest(),
        }
    train = next(iter(by_split.values()))
    return {"splits": splits, "hash": digest.hexdigest()[:16], "classes": train.classes}


def check_classes(setting: str, num_classes: int, by_split: dict[str, ImageReader]) -> None:
    """Raise DataError unless all splits have the same classes, as many as the YAML says, and the training split has
    an image of each class."""
    splits = list(by_split.values())
    train = splits[0]
    val = splits[-1]
    key = f"workflow/config/settings.yaml, {setting}.data"
    if num_classes > 1 and all(len(reader.classes) == 1 for reader in splits):
        raise DataError(
            f"All {len(train)} images of {setting}'s {next(iter(by_split))} are in one class, "
            f"{train.classes[0]!r} ({key}); put each into its class folder."
        )
    if len(train.classes) != num_classes or train.classes != val.classes:
        in_one_split = sorted(set(train.classes) ^ set(val.classes))
        difference = ""
        if in_one_split:
            difference = f", {in_one_split[0]!r} only one of them"
        elif train.classes != val.classes:
            difference = ", but in another order"
        raise DataError(
            f"The splits of {setting} have {len(train.classes)} and {len(val.classes)} classes"
            f"{difference}; needed are the same {num_classes} in both ({key})."
        )
    missing = sorted(set(range(num_classes)) - set(train.labels))
    if missing:
        raise DataError(
            f"The training split of {setting} has no image of {len(missing)} of {num_classes} classes, the first "
            f"{train.classes[missing[0]]!r}; add some, or correct num_classes ({key})."
        )


def describe_images(site: dict) -> dict:
    """Return the hash of the images' manifest and the list of classes, for a record.

    Both are None outside the workflow, where there is no manifest.
    """
    checked = readers.read_manifest(site) or {}
    return {"manifest": checked.get("hash"), "classes": checked.get("classes")}


class Decoding(Dataset):
    """A data set whose items are None for an image that can be used, else a sentence with its path."""

    def __init__(self, reader: ImageReader):
        self.reader = reader
        self.sizes = reader.sizes()

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> str | None:
        try:
            with self.reader.open(index) as stream:
                decode(stream)
        except (OSError, ImageError) as error:
            reason = str(error) if self.sizes[index] else "it is empty"
            return f"{printable(self.reader.location(index))}: {reason}"
        return None


def unusable(reader: ImageReader, workers: int) -> Iterator[str]:
    """Decode every image in `workers` processes. Yield a sentence for each image that can't be used."""
    options = worker_options(workers, persistent=False) | {"collate_fn": list}
    for chunk in Loader(Decoding(reader), batch_size=CHUNK, **options):
        yield from filter(None, chunk)


def check_images(by_split: dict[str, ImageReader], workers: int, listed: Path) -> None:
    """Raise DataError with the first files that can't be used; all of them are written to the file `listed`."""
    faults = [fault for reader in by_split.values() for fault in unusable(reader, workers)]
    if not faults:
        return
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("\n".join(faults) + "\n", encoding="utf-8")
    count = sum(map(len, by_split.values()))
    lines = faults[:SHOWN]
    if len(faults) > SHOWN:
        lines.append(f"... and {len(faults) - SHOWN} more")
    raise DataError(
        f"{len(faults)} of {count} files are no whole images, or hold what 8-bit RGB can't; "
        f"replace them with the originals, convert or delete them (all are listed in {listed}):\n" + "\n".join(lines)
    )


def run(spec: dict, site: dict, folder: Path) -> dict:
    """Check a setting's images, after writing the demo's digits if it has those. Return the record.

    Raises DataError for whatever is wrong with the images.
    """
    started = time.time()
    data = spec["data"]
    if data["name"] == "digits":
        from workflow.data.digits import write_digits

        write_digits(site["data_root"], data["train"], data["val"])
    layout.check(spec["setting"], {**data, "root": site["data_root"]})
    splits = (data["train"], data["val"])
    by_split = {split: readers.open_reader(data, site, split) for split in splits}
    check_classes(spec["setting"], data["num_classes"], by_split)
    results = manifest(by_split)
    checked = Path(site["root"]) / "data" / f"checked-{results['hash']}"
    if not checked.exists():
        check_images(by_split, site["workers"], folder / "unusable.txt")
        checked.parent.mkdir(parents=True, exist_ok=True)
        checked.touch()
    return records.make(spec, results, started)
