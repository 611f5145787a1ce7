"""The switches of Evo-ViT: checked once at construction, then turned into a static plan."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

SCHEDULES = ("layer", "stage")
VARIANTS = ("paper", "official")
PLACEHOLDERS = ("update", "keep", "drop")
SCORES = ("global", "class", "random", "last_class", "column_mean")


def refuse_old_keywords(keywords: Mapping[str, Any]) -> None:
    """Refuse a model's keyword that has another name now.

    Raises:
        ValueError: naming the new keyword.
    """
    if "tradeoff" in keywords:
        raise ValueError(f"the keyword tradeoff is called alpha now: write alpha={keywords['tradeoff']!r}")


class Host(NamedTuple):
    """What the switches need to know of the model that selects; blocks are counted from 0."""

    depth: int  # blocks
    stages: tuple[int, ...] = (0,)  # first block of each stage of the host's own

    @property
    def subsamples(self) -> bool:
        """Whether the grid shrinks between the host's stages (the deep-narrow hosts)."""
        return len(self.stages) > 1

    @property
    def attentions(self) -> int:
        """Attention modules: one per block, and one that sub-samples before each later stage."""
        return self.depth + len(self.stages) - 1

    def attention_of(self, block: int) -> int:
        """Index of a block's attention among all of them."""
        return block + sum(first <= block for first in self.stages[1:])


class Switches(NamedTuple):
    """Resolved options; ``keep_ratio`` has one entry per block (block 0 first)."""

    host: Host
    variant: str
    keep_ratio: tuple[float, ...]  # share of the patches that is kept; 1 before start_block
    start_block: int
    alphas: tuple[float, ...]  # per attention: weight of the previous score in Eq. 4
    learned: bool  # the alphas are parameters, and these are their values until then
    placeholders: str
    scores: str
    stage_starts: tuple[int, ...]  # blocks that select stage-wise
    pool_placeholders: bool
    tile: int  # a selection leaves a multiple of so many tokens, companions included
    evolves: bool  # scores come from the blocks themselves, carried from one to the next

    def kept(self, num_patches: int, block: int) -> int:
        """Informative tokens of N patches in a block.

        Raises:
            ValueError: if a ratio below 1 would leave no informative or no placeholder token.
        """
        companions = 2 if self.placeholders == "update" else 1  # class and representative token
        return kept_count(num_patches, self.keep_ratio[block], self.tile, companions)


def resolve(
    host: Host,
    variant: str,
    keep_ratio: float | Sequence[float],
    start_block: int,
    alpha: float | str | Sequence[float] | None,
    placeholders: str | None,
    scores: str,
    blocks_per_stage: int | None = None,
    pool_placeholders: bool = True,
    tile: int = 1,
) -> Switches:
    """Check the switches and fill in what depends on others.

    Args:
        blocks_per_stage: of a flat host; the others have stages of their own (None).

    Raises:
        ValueError: for a value out of range or a combination that makes no sense, with the reason.
    """
    _one_of("variant", variant, VARIANTS)
    _one_of("scores", scores, SCORES)
    tokenless = variant == "official" and not host.subsamples
    placeholders = placeholders or ("keep" if tokenless else "update")
    _one_of("placeholders", placeholders, PLACEHOLDERS)
    if not 1 <= start_block < host.depth:
        raise ValueError(
            f"start_block={start_block}: a selecting block uses the score of the block before it, "
            f"so it must lie in 1..{host.depth - 1} (blocks are counted from 0)"
        )
    if blocks_per_stage is not None and blocks_per_stage < 1:
        raise ValueError(f"blocks_per_stage={blocks_per_stage} must be at least 1")
    if tile < 1:
        raise ValueError(f"tile={tile} must be at least 1")
    if tokenless and placeholders == "update":
        raise ValueError(
            "placeholders='update' with variant='official': the authors' DeiT code has no "
            "representative token, use variant='paper'"
        )
    if placeholders == "drop" and not pool_placeholders:
        raise ValueError("pool_placeholders=False with placeholders='drop': none are left to pool")
    if host.subsamples and placeholders == "drop":
        raise ValueError("placeholders='drop' leaves no grid to sub-sample between the stages; use 'keep'")
    if host.subsamples and scores == "last_class":
        raise ValueError(
            "scores='last_class': the last block's attention has no score for the patches that "
            "sub-sampling leaves out before it"
        )
    starts = tuple(
        range(start_block, host.depth, blocks_per_stage)
        if blocks_per_stage
        else sorted({start_block, *(first for first in host.stages if first > start_block)})
    )
    return Switches(
        host=host,
        variant=variant,
        keep_ratio=_keep_ratios(keep_ratio, host.depth, start_block, placeholders),
        start_block=start_block,
        alphas=_alphas(alpha, host, start_block, variant, scores),
        learned=_learns(alpha, host, variant, placeholders, scores),
        placeholders=placeholders,
        scores=scores,
        stage_starts=starts,
        pool_placeholders=pool_placeholders,
        tile=tile,
        evolves=scores in ("global", "class", "column_mean"),
    )


def segments(switches: Switches, schedule: str) -> tuple[tuple[int, int], ...]:
    """Runs [first, end) of blocks that share one selection, made at ``first``.

    Layer-wise each block is its own segment; stage-wise a segment is a stage.

    Raises:
        ValueError: for an unknown schedule, or stage-wise with unequal ratios inside a stage.
    """
    _one_of("schedule", schedule, SCHEDULES)
    depth = switches.host.depth
    layers = range(switches.start_block, depth)
    starts = layers if schedule == "layer" else switches.stage_starts
    runs = tuple(pairwise((*starts, depth)))
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
            # An alpha of 0 further down the same run forgets what was scored before it.
            later = (switches.host.attention_of(other) for other in range(block + 1, end))
            forgotten = any(switches.alphas[attention] == 0 for attention in later)
            if block < selecting[-1] and not forgotten:
                needed.add(block)
    return frozenset(needed)


def kept_count(num_patches: int, ratio: float, tile: int = 1, companions: int = 0) -> int:
    """k = int(N * ratio) informative tokens of N patches; with a ``tile`` as many fewer as make
    k + companions, the tokens that a block then runs on, a multiple of it.

    Raises:
        ValueError: if a ratio below 1 would leave no informative or no placeholder token.
    """
    k = int(num_patches * ratio)
    if ratio == 1:
        return k
    k -= (k + companions) % tile
    if not 1 <= k < num_patches:
        tiles = f", in tiles of {tile}," if tile > 1 else ""
        raise ValueError(
            f"keep_ratio={ratio} of {num_patches} patches{tiles} keeps {k}: at least one token "
            "must be informative and one a placeholder (use keep_ratio=1 for the dense model)"
        )
    return k


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def _per_entry(name: str, value: Sequence[float], count: int, of: str) -> tuple[float, ...]:
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} {of}")
    return tuple(float(entry) for entry in value)


def _keep_ratios(value: float | Sequence[float], depth: int, start: int, placeholders: str) -> tuple[float, ...]:
    if isinstance(value, int | float):
        value = [1.0] * start + [value] * (depth - start)
    ratios = _per_entry("keep_ratio", value, depth, "blocks")
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(f"keep_ratio={ratios} must lie in (0, 1]")
    if any(ratio < 1 for ratio in ratios[:start]):
        raise ValueError(f"keep_ratio below 1 before start_block={start}: {ratios[:start]}")
    if placeholders == "drop" and any(b > a for a, b in pairwise(ratios)):
        raise ValueError(f"placeholders='drop' can't bring tokens back, so {ratios} can't increase")
    return ratios


def _learns(
    value: float | str | Sequence[float] | None,
    host: Host,
    variant: str,
    placeholders: str,
    scores: str,
) -> bool:
    """Whether the alphas are parameters: asked for, or as the authors' LeViT code has it."""
    possible = host.subsamples and placeholders == "update" and scores == "global"
    if isinstance(value, str):
        if value != "learned":
            raise ValueError(f"alpha={value!r} is neither a number nor 'learned'")
        if not host.subsamples:
            raise ValueError("alpha='learned': only Evo-LeViT learns it, DeiT's is a number")
        if not possible:
            raise ValueError(
                f"alpha='learned' with placeholders={placeholders!r}, scores={scores!r}: only "
                "the weights of Eq. 5, made of global scores, pass a gradient to the alpha"
            )
        return True
    return value is None and possible and variant == "official"


def _alphas(
    value: float | str | Sequence[float] | None,
    host: Host,
    start: int,
    variant: str,
    scores: str,
) -> tuple[float, ...]:
    if value is not None and scores != "global":
        raise ValueError(f"alpha={value} mixes the global class attention, not scores={scores!r}")
    if scores != "global":
        return (0.0,) * host.attentions
    if value is None or isinstance(value, str):
        value = 0.5
    if isinstance(value, int | float):
        # The authors' DeiT code has no memory before the first selecting block; the text has.
        forgetful = start if variant == "official" and not host.subsamples else 0
        value = [0.0 if i < forgetful else value for i in range(host.attentions)]
    alphas = _per_entry("alpha", value, host.attentions, "attentions")
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"alpha={alphas} must lie in [0, 1]")
    return alphas
