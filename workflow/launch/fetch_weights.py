"""Fetch weights from timm's hub on the login node, since compute nodes are often offline."""

import json
import sys
import time
from pathlib import Path

from huggingface_hub import HfFileMetadata, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError

from workflow import command_line
from workflow.launch.progress import Log
from workflow.storage import provenance, records

FILES = ("model.safetensors", "pytorch_model.bin")  # the first that the repository has; LeViT's have only the second


class FetchError(RuntimeError):
    """The weights did not come, or are not the ones they should be; the message says what to do."""


def fetch(spec: dict, folder: Path) -> dict:
    """Download the weights of timm/<spec["timm"]>. Return {"path", "sha256", "repository", "revision"}.

    The path is relative to the folder above the record's. Raises FetchError unless the file has the
    sha256 that the hub names, and the spec's if it names one.
    """
    repository = f"timm/{spec['timm']}"
    try:
        file, known = find_file(repository)
        path = hf_hub_download(repository, file, revision=known.commit_hash, local_dir=folder / spec["timm"])
    except Exception as error:  # the hub's client lets through what its HTTP library raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FetchError(
            f"{repository} could not be fetched ({reason}). Try again where there is a network, or "
            f"download {' or '.join(FILES)} yourself and name it in workflow/config/settings.yaml instead of "
            f"`timm: {spec['timm']}`: {{file: <path>, sha256: <what sha256sum says>}}."
        ) from error
    sha256 = records.sha256(path)
    for expected, source in ((known.etag, "the hub"), (spec.get("sha256"), "settings.yaml")):
        if expected not in (None, sha256):
            Path(path).unlink()
            raise FetchError(f"{path} has the sha256 {sha256}, but {source} says {expected}; it is removed.")
    return {
        "path": f"weights/{spec['timm']}/{file}",
        "sha256": sha256,
        "repository": repository,
        "revision": known.commit_hash,
    }


def find_file(repository: str) -> tuple[str, HfFileMetadata]:
    """Return the first of FILES that the repository has, and what the hub says of it."""
    for file in FILES[:-1]:
        try:
            return file, get_hf_file_metadata(hf_hub_url(repository, file))
        except EntryNotFoundError:
            continue
    return FILES[-1], get_hf_file_metadata(hf_hub_url(repository, FILES[-1]))


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the record")
    parser.add_argument("--log", type=Path, required=True)
    arguments = parser.parse_args()
    started = time.time()
    provenance.running()  # noted now, whatever is committed while the weights arrive
    with Log(arguments.log, str(arguments.output.with_suffix(""))) as log:
        try:
            spec = json.loads(arguments.spec.read_text())
            log.say(f"Fetching timm/{spec['timm']} from the hub.")
            results = fetch(spec, arguments.output.parent)
            records.write_json(arguments.output, records.make(spec, results, started))
        except (FetchError, OSError) as error:
            log.say(f"ERROR: {error}")
            sys.exit(1)


if __name__ == "__main__":
    command_line.run(main)
