"""What the report says below a table, a figure or the ledger of claims."""

from pathlib import Path

from workflow.campaign import targets
from workflow.campaign.config import Config


def caption(config: Config, root: str, output: str) -> str:
    """What the item in this file shows, its command, and the runs behind it."""
    item, setting = Path(output).name.partition(".")[0], config.setting_of(root)
    made = (
        f"{config.items['captions'].get(item, f'{item}.')} Made in the setting {setting} by ``snakemake "
        f"--profile {targets.profile(config, setting)} {output}``"
    )
    if ".partial." in output:
        return f"{made}, from the records that were there."
    found = targets.item_records(config, root, item)
    trained, timed, steps = (
        [Path(path).parent.name for path in found if f"/{kind}/" in path] for kind in ("runs", "throughput", "training")
    )
    models = [config.items["analyses"][name]["run"] for name in config.analyses(item)]
    data = config.settings[setting]["data"]["name"]
    seen = f" Looked into for it: {', '.join(models)}, trained on {data}." if models else ""
    cost = f" Training steps measured for it: {', '.join(steps)}." if steps else ""
    return (
        f"{made}. Trained for it: {', '.join([*trained, *models]) or 'nothing'}. Timed for it: "
        f"{', '.join(timed) or 'nothing'}.{cost}{seen}"
    )
