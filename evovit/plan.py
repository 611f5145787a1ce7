"""The switches of Evo-ViT: checked once at construction, then turned into a static plan."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

SCHEDULES = ("layer", "stage")
VARIANTS = ("paper", "official")
PLACEHOLDERS = ("update", "keep", "drop")
SCORES = ("global", "class", "random", "last_class", "column_mean")


class Switches(NamedTuple):
    """Resolved options; tuples have one entry per block (block 0 first)."""

    variant: str
    keep_ratio: tuple[float, ...]  # share of the patches that is kept; 1 before start_block
    start_block: int
    tradeoff: tuple[float, ...]  # weight of the previous score in Eq. 4
    placeholders: str
    scores: str
    blocks_per_stage: int
    pool_placeholders: bool

    @property
    def evolves(self) -> bool:
        """Whether scores come from the blocks themselves, carried from one to the next."""
        return self.scores in ("global", "class", "column_mean")


def resolve(
    depth: int,
    variant: str,
    keep_ratio: float | Sequence[float],
    start_block: int,
    tradeoff: float | str | Sequence[float] | None,
    placeholders: str | None,
    scores: str,
    blocks_per_stage: int,
    pool_placeholders: bool,
) -> Switches:
    """Check the switches and fill in what depends on others.

    Raises:
        ValueError: for a value out of range or a combination that makes no sense, with the reason.
    """
    _one_of("variant", variant, VARIANTS)
    _one_of("scores", scores, SCORES)
    placeholders = placeholders or ("update" if variant == "paper" else "keep")
    _one_of("placeholders", placeholders, PLACEHOLDERS)
    if not 1 <= start_block < depth:
        raise ValueError(
            f"start_block={start_block}: a selecting block uses the score of the block before it, "
            f"so it must lie in 1..{depth - 1} (blocks are counted from 0)"
        )
    if blocks_per_stage < 1:
        raise ValueError(f"blocks_per_stage={blocks_per_stage} must be at least 1")
    if variant == "official" and placeholders == "update":
        raise ValueError(
            "placeholders='update' with variant='official': the authors' DeiT code has no "
            "representative token, use variant='paper'"
        )
    if placeholders == "drop" and not pool_placeholders:
        raise ValueError("pool_placeholders=False with placeholders='drop': none are left to pool")
    ratios = _keep_ratios(keep_ratio, depth, start_block, placeholders)
    alphas = _tradeoffs(tradeoff, depth, start_block, variant, scores)
    return Switches(
        variant,
        ratios,
        start_block,
        alphas,
        placeholders,
        scores,
        blocks_per_stage,
        pool_placeholders,
    )


def segments(switches: Switches, schedule: str) -> tuple[tuple[int, int], ...]:
    """Runs [first, end) of blocks that share one selection, made at ``first``.

    Layer-wise each block is its own segment; stage-wise a segment is a stage.

    Raises:
        ValueError: for an unknown schedule, or stage-wise with unequal ratios inside a stage.
    """
    _one_of("schedule", schedule, SCHEDULES)
    depth, step = len(switches.keep_ratio), 1 if schedule == "layer" else switches.blocks_per_stage
    starts = range(switches.start_block, depth, step)
    runs = tuple((first, min(first + step, depth)) for first in starts)
    for first, end in runs:
        if len(set(switches.keep_ratio[first:end])) > 1:
            raise ValueError(
                f"schedule='stage' selects once for blocks {first}-{end - 1}, "
                f"but their keep ratios differ: {switches.keep_ratio[first:end]}"
            )
    return runs


def scoring_blocks(switches: Switches, runs: Sequence[tuple[int, int]]) -> frozenset[int]:
    """Blocks whose attention some later selection depends on; the others skip the class row."""
    selecting = [first for first, _ in runs if switches.keep_ratio[first] < 1]
    if not switches.evolves or not selecting:
        return frozenset()
    needed = set()
    for first, end in ((0, switches.start_block), *runs):
        for block in range(first, end):
            # A trade-off of 0 further down the same run forgets what was scored before it.
            forgotten = any(switches.tradeoff[later] == 0 for later in range(block + 1, end))
            if block < selecting[-1] and not forgotten:
                needed.add(block)
    return frozenset(needed)


def kept_count(num_patches: int, ratio: float) -> int:
    """k = int(N * ratio) informative tokens of N patches.

    Raises:
        ValueError: if a ratio below 1 would leave no informative or no placeholder token.
    """
    k = int(num_patches * ratio)
    if ratio < 1 and not 1 <= k < num_patches:
        raise ValueError(
            f"keep_ratio={ratio} of {num_patches} patches keeps {k}: at least one token must be "
            "informative and one a placeholder (use keep_ratio=1 for the dense model)"
        )
    return k


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def _per_block(name: str, value: Sequence[float], depth: int) -> tuple[float, ...]:
    if len(value) != depth:
        raise ValueError(f"{name} has {len(value)} entries for {depth} blocks")
    return tuple(float(entry) for entry in value)


def _keep_ratios(
    value: float | Sequence[float], depth: int, start: int, placeholders: str
) -> tuple[float, ...]:
    if isinstance(value, int | float):
        value = [1.0] * start + [value] * (depth - start)
    ratios = _per_block("keep_ratio", value, depth)
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(f"keep_ratio={ratios} must lie in (0, 1]")
    if any(ratio < 1 for ratio in ratios[:start]):
        raise ValueError(f"keep_ratio below 1 before start_block={start}: {ratios[:start]}")
    if placeholders == "drop" and any(b > a for a, b in pairwise(ratios)):
        raise ValueError(f"placeholders='drop' can't bring tokens back, so {ratios} can't increase")
    return ratios


def _tradeoffs(
    value: float | str | Sequence[float] | None, depth: int, start: int, variant: str, scores: str
) -> tuple[float, ...]:
    if value is not None and scores != "global":
        raise ValueError(
            f"tradeoff={value} mixes the global class attention, not scores={scores!r}"
        )
    if isinstance(value, str):
        raise ValueError(
            f"tradeoff={value!r}: only Evo-LeViT learns it, DeiT's blocks have a number"
        )
    if scores != "global":
        return (0.0,) * depth
    value = 0.5 if value is None else value
    if isinstance(value, int | float):
        # The authors' code has no memory before the first selecting block; the text has.
        value = [0.0 if variant == "official" and i < start else value for i in range(depth)]
    alphas = _per_block("tradeoff", value, depth)
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"tradeoff={alphas} must lie in [0, 1]")
    return alphas
