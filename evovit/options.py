"""The options of Evo-ViT, checked once when a model is built, and what follows from them."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any, NamedTuple

SCHEDULES = ("layer", "stage")
VARIANTS = ("paper", "official")
PLACEHOLDERS = ("update", "keep", "drop")
NO_SIGN = str.maketrans("", "", "-_ ")
LEAST_BEGINNING = 3  # characters: `r` is not the beginning of what was meant
ALIKE_AT_FIRST = 0.8  # likeness of two beginnings from which on one is meant: many short ones are alike
SCORES = ("global", "class", "random", "last_class", "column_mean")


class Host(NamedTuple):
    """What the options need to know of the model that selects; blocks are counted from 0."""

    depth: int  # blocks
    stages: tuple[int, ...] = (0,)  # first block of each stage of the host's own
    prefix: int = 1  # tokens before the patches: the class token and the registers

    @property
    def subsamples(self) -> bool:
        """Whether the grid shrinks between the host's stages (the deep-narrow hosts)."""
        return len(self.stages) > 1

    @property
    def attentions(self) -> int:
        """Number of attention modules: one in each block, and one that sub-samples before each later stage."""
        return self.depth + len(self.stages) - 1

    def attention_of(self, block: int) -> int:
        """Return the index of a block's attention among all of them."""
        return block + sum(first <= block for first in self.stages[1:])


class Options(NamedTuple):
    """The options in force."""

    host: Host
    variant: str
    keep_ratio: tuple[float, ...]  # of each block the share of the patches that is kept; 1 before start_block
    start_block: int
    alphas: tuple[float, ...]  # of each attention the weight of the previous score in Eq. 4
    learned: bool  # the alphas are parameters, and these are their values until they count
    placeholders: str
    scores: str
    stage_starts: tuple[int, ...]  # blocks that select stage-wise
    pool_placeholders: bool
    tile: int  # a block runs on a multiple of this number of tokens, companions included
    evolves: bool  # scores come from the blocks themselves, carried from one to the next
    sums_heads: bool  # scores are sums over the heads, not means

    def kept(self, num_patches: int, block: int) -> int:
        """Return k = int(N * ratio), the number of informative tokens among N patches in a block.

        With a ``tile`` k is smaller by what makes the number of tokens that the block runs on a multiple of it.

        Raises:
            ValueError: if a ratio below 1 would leave no informative or no placeholder token.
        """
        ratio = self.keep_ratio[block]
        k = int(num_patches * ratio)
        if ratio == 1:
            return k
        representatives = 1 if self.placeholders == "update" else 0
        companions = self.host.prefix + representatives
        k -= (k + companions) % self.tile
        if not 1 <= k < num_patches:
            tiles = f", in tiles of {self.tile}," if self.tile > 1 else ""
            raise ValueError(
                f"keep_ratio={ratio} of {num_patches} patches{tiles} keeps {k}: at least one token "
                "must be informative and one a placeholder (use keep_ratio=1 for the dense model)"
            )
        return k


def check_options(
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
) -> Options:
    """Check a model's keywords, which ``EvoVisionTransformer`` describes, and fill in what depends on others.

    Args:
        host: the model.
        blocks_per_stage: of a flat host; None for the others, which have stages of their own.

    Raises:
        ValueError: for a value out of range or a combination that makes no sense, with the reason.
    """
    check_choice("variant", variant, VARIANTS)
    check_choice("scores", scores, SCORES)
    authors_deit = variant == "official" and not host.subsamples
    if placeholders is None:
        placeholders = "keep" if authors_deit else "update"
    check_choice("placeholders", placeholders, PLACEHOLDERS)
    if not 1 <= start_block < host.depth:
        raise ValueError(
            f"start_block={start_block}: a selecting block uses the score of the block before it, "
            f"so it must lie in 1..{host.depth - 1} (blocks are counted from 0)"
        )
    if blocks_per_stage is not None and blocks_per_stage < 1:
        raise ValueError(f"blocks_per_stage={blocks_per_stage} must be at least 1")
    if tile < 1:
        raise ValueError(f"tile={tile} must be at least 1")
    if authors_deit and placeholders == "update":
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
    if blocks_per_stage is None:
        starts: Sequence[int] = sorted({start_block, *(first for first in host.stages if first > start_block)})
    else:
        starts = range(start_block, host.depth, blocks_per_stage)
    return Options(
        host=host,
        variant=variant,
        keep_ratio=_keep_ratios(keep_ratio, host.depth, start_block, placeholders),
        start_block=start_block,
        alphas=_alphas(alpha, host, start_block, variant, scores),
        learned=_learns(alpha, host, variant, placeholders, scores),
        placeholders=placeholders,
        scores=scores,
        stage_starts=tuple(starts),
        pool_placeholders=pool_placeholders,
        tile=tile,
        evolves=scores in ("global", "class", "column_mean"),
        sums_heads=authors_deit,
    )


def refuse_old_keywords(keywords: Mapping[str, Any]) -> None:
    """Refuse a model's keyword that has another name now.

    Raises:
        ValueError: naming the new keyword.
    """
    if "tradeoff" in keywords:
        raise ValueError(f"the keyword tradeoff is called alpha now: write alpha={keywords['tradeoff']!r}")


def selection_groups(options: Options, schedule: str) -> tuple[tuple[int, int], ...]:
    """Return the groups [first, end) of blocks that share one selection, made at ``first``.

    Layer-wise each block is a group; stage-wise a group is a stage.

    Raises:
        ValueError: for an unknown schedule, or stage-wise with unequal ratios inside a stage.
    """
    check_choice("schedule", schedule, SCHEDULES)
    depth = options.host.depth
    layers = range(options.start_block, depth)
    starts = layers if schedule == "layer" else options.stage_starts
    groups = tuple(pairwise((*starts, depth)))
    for first, end in groups:
        if len(set(options.keep_ratio[first:end])) > 1:
            raise ValueError(
                f"schedule='stage' selects once for blocks {first}-{end - 1}, "
                f"but their keep ratios differ: {options.keep_ratio[first:end]}"
            )
    return groups


def scoring_blocks(options: Options, groups: Sequence[tuple[int, int]]) -> frozenset[int]:
    """Return the blocks whose attention a later selection depends on; the others skip the class attention."""
    selecting = [first for first, _ in groups if options.keep_ratio[first] < 1]
    if not options.evolves or not selecting:
        return frozenset()
    needed = set()
    for first, end in ((0, options.start_block), *groups):
        for block in range(first, end):
            # An alpha of 0 in a later block of the same group forgets what was scored before it.
            later = (options.host.attention_of(other) for other in range(block + 1, end))
            forgotten = any(options.alphas[attention] == 0 for attention in later)
            if block < selecting[-1] and not forgotten:
                needed.add(block)
    return frozenset(needed)


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a value that is not allowed.

    Raises:
        ValueError: with all values that are, and the nearest one where it was mistyped.
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}{did_you_mean(value, allowed)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that refuses a name: the known one that is most like it, or nothing.

    One that differs only by capitals and hyphens comes first: Top-K is topk. Then comes a name that begins like it:
    vit_tinyy is vit_tiny_patch16_224 rather than gcvit_tiny.
    """
    name, known = str(name), list(known)
    written = {other.casefold().translate(NO_SIGN): other for other in known}
    same = written.get(name.casefold().translate(NO_SIGN))
    if same is not None:
        return f"; did you mean {same!r}?"
    beginnings = {other[: len(name)]: other for other in reversed(known)} if len(name) >= LEAST_BEGINNING else {}
    close = [beginnings[text] for text in difflib.get_close_matches(name, beginnings, n=1, cutoff=ALIKE_AT_FIRST)]
    close += difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def is_number(value: Any) -> bool:
    """Return whether the value is a real number of Python or NumPy."""
    return isinstance(value, Real)


def check_ratios(option: str, value: Any) -> float | tuple[float, ...]:
    """Return a share of patches as a float, or a list of shares as a tuple.

    Raises:
        ValueError: for what is neither, or lies outside (0, 1], with the value as it was given.
    """
    if is_number(value):
        value = float(value)
    elif isinstance(value, Iterable) and not isinstance(value, str):
        value = tuple(value)
    ratios = value if isinstance(value, tuple) else (value,)
    if not all(map(is_number, ratios)):
        raise ValueError(f"{option}={value!r} must be a number in (0, 1], or a list of such numbers")
    if not all(0 < ratio <= 1 for ratio in ratios):
        shown = f"{value:g}" if isinstance(value, float) else value
        raise ValueError(f"{option}={shown} must lie in (0, 1]; 1 keeps every patch")
    return value if isinstance(value, float) else tuple(map(float, ratios))


def _check_length(name: str, value: Sequence[float], count: int, of: str) -> tuple[float, ...]:
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} {of}")
    return tuple(float(entry) for entry in value)


def _keep_ratios(value: float | Sequence[float], depth: int, start: int, placeholders: str) -> tuple[float, ...]:
    checked = check_ratios("keep_ratio", value)
    if isinstance(checked, float):
        checked = (*[1.0] * start, *[checked] * (depth - start))
    ratios = _check_length("keep_ratio", checked, depth, "blocks")
    if any(ratio < 1 for ratio in ratios[:start]):
        raise ValueError(f"keep_ratio below 1 before start_block={start}: {ratios[:start]}")
    if placeholders == "drop" and any(later > ratio for ratio, later in pairwise(ratios)):
        raise ValueError(f"placeholders='drop' can't bring tokens back, so {ratios} can't increase")
    return ratios


def _learns(
    value: float | str | Sequence[float] | None, host: Host, variant: str, placeholders: str, scores: str
) -> bool:
    """Return whether the alphas are parameters: because it was asked for, or because the authors' LeViT has it."""
    possible = host.subsamples and placeholders == "update" and scores == "global"
    if not isinstance(value, str):
        return value is None and possible and variant == "official"
    if value != "learned":
        raise ValueError(f"alpha={value!r} is neither a number nor 'learned'")
    if not host.subsamples:
        raise ValueError("alpha='learned': only Evo-LeViT learns it, DeiT's is a number")
    if not possible:
        raise ValueError(
            f"alpha='learned' with placeholders={placeholders!r}, scores={scores!r}: only "
            "the weights of Eq. 5, made of global scores, pass a gradient to alpha"
        )
    return True


def _alphas(
    value: float | str | Sequence[float] | None, host: Host, start: int, variant: str, scores: str
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
        value = [0.0] * forgetful + [value] * (host.attentions - forgetful)
    alphas = _check_length("alpha", value, host.attentions, "attentions")
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"alpha={alphas} must lie in [0, 1]")
    return alphas
