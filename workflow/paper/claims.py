"""The paper's claims, and the ledger of what records make of them.

A claim is an entry of `all_claims`: where the paper says it, what it says in our words, and a check. A check is a
function below that returns a verdict with its reason; no verdict is written by hand:

- a printed number is confirmed where our whole interval is within the tolerance of it, refuted where none of it is;
- an order is confirmed or refuted where our whole interval is beyond the tolerance on one side;
- in between it is too close to tell: the less is known, the less is decided.

A verdict holds at the scale at which its number was measured: ImageNet, other images with a reduced model, or this
machine. On other images than ImageNet, a printed gain of accuracy is judged by its sign alone. A claim that was not run
says why: it was not measured, the measurement has warnings, or it is about the memory of the paper's GPUs.

The ledger reads the rows of all tables, and what items.yaml names under `claims`.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from workflow.campaign.config import FILES, Config, ConfigError
from workflow.paper import printed, results, sheet
from workflow.paper.estimates import BATCH, Estimate, Measured, Printed, common_scale, dense_of, margin, union

CONFIRMED, REFUTED, CLOSE, NOT_RUN = "confirmed", "refuted", "too close", "not run"
IMAGENET = results.IMAGES[printed.DATA]
ROUNDING = 1e-9  # of sums of decimal fractions
NOT_MEASURED = "not measured"
UNPRINTED = "the paper prints no number"
OTHER_DEVICE = f"the printed percentage is of a V100 in mode paper at batch {BATCH}"
WITH_WARNINGS = "a measurement with warnings decides no percentage"
MORE = "more rounds, seeds or images would tell"
BY_SIGN = "judged by its sign: the printed number is of ImageNet"
SLIP = "the printed numbers themselves do not say so"
End = tuple[str, int | None]  # a curve, and its point; None: the mean over the points
UNITS = {"top1": "points", "top1_gap": "points", "speedup": "points", "throughput": "% images/s"}  # of margins


@dataclass(frozen=True)
class Sources:
    """What checks ask: the measured and the printed numbers."""

    config: Config
    measured: Measured
    printed: Printed


@dataclass(frozen=True)
class Outcome:
    """The result of a check: the verdict with its reasons, the number behind it, and what the paper states."""

    verdict: str
    reasons: list[str] = field(default_factory=list)
    estimate: Estimate | None = None
    stated: str | None = None
    unit: str = ""
    tolerance: float | None = None


class Claim:
    """One row of the ledger: `check` is a function below, called with `arguments`."""

    def __init__(self, id: str, where: str, text: str, check: Callable[..., Outcome], **arguments):
        self.id, self.where, self.text, self.check, self.arguments = id, where, text, check, arguments

    def judge(self, sources: Sources) -> Outcome:
        """Return the outcome. Raises ConfigError, with the claim's name, where it can't be judged at all."""
        try:
            return self.check(sources, **self.arguments)
        except ConfigError as error:
            raise ConfigError(f"{Path(__file__).name}, {self.id}: {error}") from None


# -- checks ---------------------------------------------------------------------------------


def speedup(
    sources: Sources,
    run: str,
    over: str | None = None,
    printed: float | tuple[float, float] | None = None,
    at_least: bool = False,
    tolerance: float = 0.0,
) -> Outcome:
    """Check by how many per cent a run is faster than another, or than its dense model.

    Without `printed`, the printed tables give the number. With `at_least`, more confirms it, too.
    """
    over = over or dense_of(sources.config, run)
    estimate = sources.measured.speedup(run, over)
    stated = state(printed, at_least) or state(sources.printed.speedup(run, over), at_least)
    outcome = judge_number(estimate, stated, "% images/s", tolerance)
    if estimate is None or estimate.excluded:
        return outcome
    if estimate.warnings:
        outcome = replace(outcome, verdict=CLOSE, reasons=[WITH_WARNINGS])
    return outcome if estimate.as_printed else replace(outcome, reasons=[*outcome.reasons, OTHER_DEVICE])


def top1_gap(
    sources: Sources,
    run: str,
    over: str | None = None,
    printed: float | tuple[float, float] | None = None,
    implied: float | None = None,
    at_least: bool = False,
    tolerance: float = 0.0,
) -> Outcome:
    """Check how many points of top-1 a run is above another, or above its dense model.

    The arguments are those of `speedup`; `implied` is a number that the sentence does not print but implies.
    """
    over = over or dense_of(sources.config, run)
    estimate = sources.measured.accuracy_gap(run, over)
    stated = state(printed, at_least) or state(implied, at_least, implied=True)
    stated = stated or state(sources.printed.accuracy_gap(run, over), at_least)
    scale = estimate.scale if estimate else None
    is_reduced = scale is not None and not scale.is_the_papers
    if is_reduced and stated is not None and stated.low > 0 and not at_least:
        outcome = judge_order(estimate, None, "points", 0.0)
        return replace(outcome, stated=stated.text, reasons=[*outcome.reasons, BY_SIGN])
    return judge_number(estimate, stated, "points", tolerance)


def macs_saved(sources: Sources, run: str, implied: float, tolerance: float = 0.0) -> Outcome:
    """Check that a run needs at least `implied` per cent fewer operations than its dense model."""
    estimate = sources.measured.macs_saved(run, dense_of(sources.config, run))
    return judge_number(estimate, state(implied, at_least=True, implied=True), "% MACs", tolerance)


def order(sources: Sources, better: str, than: str, by: str, tolerance: float = 0.0) -> Outcome:
    """Check that a run is better than another by more than the tolerance; `by` as in `margin`."""
    stated = margin(sources.printed, by, better, than)
    return judge_order(margin(sources.measured, by, better, than), stated, UNITS[by], tolerance)


def best_of(sources: Sources, run: str, others: Iterable[str], by: str, tolerance: float = 0.0) -> Outcome:
    """Check that a run is better than each of the others by more than the tolerance."""
    pairs = {other: (run, other) for other in others if other != run}
    stated = extreme(sources.printed, by, pairs, min)
    return judge_order(extreme(sources.measured, by, pairs, min), stated, UNITS[by], tolerance)


def saturates(sources: Sources, run: str, of: list[str], tolerance: float = 0.0) -> Outcome:
    """Check that no run that comes after `run` in `of` is more accurate by more than the tolerance."""
    after = of[of.index(run) + 1 :] if run in of else []
    pairs = {other: (other, run) for other in after}
    estimate = extreme(sources.measured, "top1", pairs, max)
    stated = extreme(sources.printed, "top1", pairs, max)
    return judge_number(
        estimate, Stated(-math.inf, 0.0, f"{stated.value:.1f}" if stated else None), "points", tolerance
    )


def memory_fits(sources: Sources, run: str, over: str, batch_size: int) -> Outcome:
    """Check that a training step of `run` fits into the V100's memory and a step of `over` does not."""
    estimate = sources.measured.memory(run, over, batch_size)
    reasons = undecided(estimate)
    if reasons:
        verdict = NOT_RUN
    else:
        verdict = CONFIRMED if estimate.value > 0 else REFUTED
    return Outcome(verdict, reasons, estimate, "fits; out of memory")


def curves(
    sources: Sources,
    analysis: str,
    higher: End,
    lower: End,
    tolerance: float = 0.0,
) -> Outcome:
    """Check that one curve of an analysis (items.yaml) is above another by more than the tolerance.

    Points count from 1. They are layers, or in by_next_epoch a run's snapshots (runs.yaml).
    """
    return judge_order(sources.measured.curves(analysis, higher, lower), None, "", tolerance)


def picture(sources: Sources, figure: str) -> Outcome:
    """Leave a claim without a number to people who read the figure."""
    return Outcome(NOT_RUN, [f"a picture, no number: look at {figure}"])


# -- what checks share ----------------------------------------------------------------------


@dataclass(frozen=True)
class Stated:
    """The range in which a number should lie, and how the ledger shows it."""

    low: float
    high: float
    text: str | None = None


def state(
    number: float | tuple[float, float] | Estimate | None, at_least: bool = False, implied: bool = False
) -> Stated | None:
    """Return the range that a number, a range or a table of the paper states; None for None."""
    if number is None:
        return None
    if isinstance(number, Estimate):
        low = high = number.value
        text = f"{low:.1f}"
    elif isinstance(number, tuple):
        low, high = number
        text = f"{low:g} to {high:g}"
    else:
        low = high = number
        text = f"{low:g}"
    if at_least:
        high = math.inf
        text = f"at least {text}"
    return Stated(low, high, f"{text} (implied)" if implied else text)


def undecided(estimate: Estimate | None) -> list[str]:
    """Return why an estimate decides nothing at all."""
    return [NOT_MEASURED] if estimate is None else list(estimate.excluded)


def judge_number(estimate: Estimate | None, stated: Stated | None, unit: str, tolerance: float) -> Outcome:
    """Return the verdict on a number that the paper states, or why there is none."""
    reasons = undecided(estimate)
    if not reasons and stated is None:
        reasons = [UNPRINTED]
    verdict = NOT_RUN if reasons else near(estimate, stated, tolerance)
    if verdict == CLOSE:
        reasons.append(MORE)
    return Outcome(verdict, reasons, estimate, stated.text if stated else None, unit, tolerance)


def judge_order(estimate: Estimate | None, stated: Estimate | None, unit: str, tolerance: float) -> Outcome:
    """Return the verdict on a margin that should be above the tolerance, or why there is none."""
    reasons = undecided(estimate)
    verdict = NOT_RUN if reasons else ahead(estimate, tolerance)
    if verdict == CLOSE:
        reasons.append(MORE)
    if stated is not None and stated.value <= 0:
        reasons.append(SLIP)
    return Outcome(verdict, reasons, estimate, f"{stated.value:.1f}" if stated else None, unit, tolerance)


def near(estimate: Estimate, stated: Stated, tolerance: float) -> str:
    """Return the verdict: whether the whole interval is within the tolerance of the stated range, or none of it.

    If a part of the interval were enough, the least certain measurement would confirm the most.
    """
    low, high = stated.low - tolerance - ROUNDING, stated.high + tolerance + ROUNDING
    if estimate.high < low or estimate.low > high:
        return REFUTED
    return CONFIRMED if low <= estimate.low and estimate.high <= high else CLOSE


def ahead(estimate: Estimate, tolerance: float) -> str:
    """Return the verdict: whether the whole interval is beyond the tolerance, and on which side."""
    if estimate.low > tolerance + ROUNDING:
        return CONFIRMED
    return REFUTED if estimate.high < -tolerance - ROUNDING else CLOSE


def extreme(source: Measured | Printed, by: str, pairs: dict[str, tuple[str, str]], choose) -> Estimate | None:
    """Return the smallest or the largest (`choose`: min, max) of several margins, by the name of what is compared.

    Its interval covers all of them: the nearest margin may be certain where a less well measured one is not. Raises
    ConfigError where there is nothing to compare.
    """
    if not pairs:
        raise ConfigError("it compares a run with nothing; name other runs.")
    margins = {name: margin(source, by, *pair) for name, pair in pairs.items()}
    estimates = list(margins.values())
    if None in estimates:
        return None
    if len(estimates) == 1:
        return estimates[0]
    nearest = choose(margins, key=lambda name: margins[name].value)
    return replace(
        margins[nearest],
        low=choose(estimate.low for estimate in estimates),
        high=choose(estimate.high for estimate in estimates),
        n=union(*(estimate.n for estimate in estimates)),
        records=union(*(estimate.records for estimate in estimates)),
        scale=common_scale(estimate.scale for estimate in estimates),
        excluded=union(*(estimate.excluded for estimate in estimates)),
        warnings=union(*(estimate.warnings for estimate in estimates)),
        notes=(f"nearest: {nearest}", *margins[nearest].notes),
    )


# -- the claims -----------------------------------------------------------------------------

DEITS = ("evo_deit_tiny", "evo_deit_small", "evo_deit_base", "evo_deit_base_384")
LEVITS = ("evo_levit_128s", "evo_levit_128", "evo_levit_192", "evo_levit_256", "evo_levit_384")
LARGE_LEVITS = ("evo_levit_256_384px", "evo_levit_384_384px")
BASELINES = {
    "beats_rivals_on_deit_tiny": ("evo_deit_tiny", ("ps_deit_tiny", "dynamic_deit_tiny", "svite_deit_tiny")),
    "beats_rivals_on_deit_small": (
        "evo_deit_small",
        ("ps_deit_small", "dynamic_deit_small", "svite_deit_small", "ia_red2_deit_small"),
    ),
    "beats_rivals_on_deit_base": (
        "evo_deit_base",
        ("ps_deit_base", "dynamic_deit_base", "svite_deit_base", "ia_red2_deit_base"),
    ),
    "beats_ia_red2_at_384px": ("evo_deit_base_384", ("ia_red2_deit_base_384",)),
}
FAST = "deit_tiny-fast_updating"  # the paper's choice in all sweeps
GLOBAL = "deit_tiny-global_attention"
CONTROL = "deit_tiny-matched"  # Tables 3 and 4 show it, but it reduces no tokens
KEEPS_ALL = "evo_deit_tiny-keep1"  # a control, too, which the paper does not have
YARDSTICKS = {
    "top1": "top-1 accuracy",
    "throughput": "throughput",
    "speedup": "speed-up over its dense model",
    "top1_gap": "accuracy kept of its dense model's",
}


def all_claims(config: Config) -> list[Claim]:
    """Return the paper's claims in its order, in our words; models are called as the tables call them."""
    return [
        *claims_of_table_1(config),
        *claims_of_table_2(config),
        *claims_of_tables_3_and_4(config),
        *claims_of_figures(),
        *claims_of_the_supplement(config),
    ]


def claims_of_table_1(config: Config) -> Iterator[Claim]:
    """Yield what abstract, introduction and Table 1 claim."""
    name, dense = functools.partial(printed.label, config), functools.partial(dense_of, config)
    main = "Abstract; Main Results; Table 1"
    run = "evo_deit_small"
    text = f"{name(run)} processes over 60 % more images/s than {name(dense(run))}."
    yield Claim("speed_of_deit_small", main, text, speedup, run=run, printed=60, at_least=True, tolerance=3)
    text = f"It costs no more than 0.4 points of top-1 ({name(run)} beside {name(dense(run))})."
    yield Claim("accuracy_of_deit_small", main, text, top1_gap, run=run, at_least=True, tolerance=0.3)
    for run in DEITS:
        text = f"{name(run)}: 40 to 60 % more images/s."
        yield Claim(f"speed_on_deit.{run}", "Introduction", text, speedup, run=run, printed=(40, 60), tolerance=3)
    for run in (*DEITS, "evo_deit_small_384"):
        text = f"{name(run)} is faster than {name(dense(run))} by the printed percentage."
        where = "Table 1; Table 1 of the supplement"
        yield Claim(f"speed_as_printed.{run}", where, text, speedup, run=run, tolerance=3)
    for run in (*LEVITS, *LARGE_LEVITS):
        text = f"{name(run)} is faster than {name(dense(run))} by what their printed images/s say."
        yield Claim(f"speed_as_printed_on_levit.{run}", "Table 2", text, speedup, run=run, tolerance=3)
    for run in ("evo_deit_tiny", "evo_deit_base", "evo_deit_base_384"):
        text = f"{name(run)} keeps the accuracy of {name(dense(run))} but for the printed gap."
        where = "Abstract: comparable performance; Table 1"
        yield Claim(f"accuracy_as_printed.{run}", where, text, top1_gap, run=run, at_least=True, tolerance=0.3)
    for group, (run, baselines) in BASELINES.items():
        for baseline in baselines:
            for by in ("top1", "throughput"):
                id = f"{group}.{baseline}.{by}" if len(baselines) > 1 else f"{group}.{by}"
                text = f"{name(run)} outperforms {name(baseline)} in {YARDSTICKS[by]}."
                yield Claim(id, main, text, order, better=run, than=baseline, by=by, tolerance=0.2)
    for run in ("evo_deit_tiny", "evo_deit_small", "evo_deit_base"):
        text = (
            f"Half of the tokens in 8 of 12 layers updated fast: {name(run)} saves at least that share of operations, "
            "a third."
        )
        where = "Preliminaries: computational complexity"
        yield Claim(f"saves_macs.{run}", where, text, macs_saved, run=run, implied=33.3, tolerance=0.5)


def claims_of_table_2(config: Config) -> Iterator[Claim]:
    """Yield what abstract, main results and Table 2 claim of LeViT."""
    name, dense = functools.partial(printed.label, config), functools.partial(dense_of, config)
    for run in (*LEVITS, *LARGE_LEVITS):
        where = "Abstract; Main Results; Table 2"
        text = f"{name(run)} is faster than {name(dense(run))}."
        yield Claim(f"accelerates_levit.{run}", where, text, order, better=run, than=dense(run), by="throughput")
    for run in (*LEVITS, *LARGE_LEVITS):
        where = "Main Results; Table 2"
        text = f"{name(run)} keeps the accuracy of {name(dense(run))} but for the printed gap."
        yield Claim(f"accuracy_on_levit.{run}", where, text, top1_gap, run=run, at_least=True, tolerance=0.3)
    for run in LEVITS:
        id = f"levit_loses_more_than_deit.{run}"
        where = "Main Results: comparisons with state-of-the-art models"
        text = f"Evo-ViT costs LeViT more accuracy than DeiT: {name('evo_deit_small')} keeps more than {name(run)}."
        yield Claim(id, where, text, order, better="evo_deit_small", than=run, by="top1_gap", tolerance=0.2)
    for size in (256, 384):
        run, other = f"evo_levit_{size}_384px", f"evo_levit_{size}"
        for by in ("speedup", "top1_gap"):
            id = f"large_images_gain_more_on_levit_{size}.{by}"
            where = "Main Results: dense input; Table 2"
            text = (
                f"At 384 px Evo-ViT gains more speed and loses less accuracy: {name(run)} beside {name(other)}, in "
                f"{YARDSTICKS[by]}."
            )
            yield Claim(id, where, text, order, better=run, than=other, by=by, tolerance=0.2)


def claims_of_tables_3_and_4(config: Config) -> Iterator[Claim]:
    """Yield what the ablation claims: each module (Table 3), selection strategies (Table 4), keeping ratios."""
    name = functools.partial(printed.label, config)
    modules, strategies = "Ablation: each module; Table 3", "Ablation: token selection strategies; Table 4"

    def compare(id: str, text: str, better: str, than: str, by: str, tolerance: float = 0.0, where=modules) -> Claim:
        text = text.format(name(better), name(than))
        return Claim(id, where, text, order, better=better, than=than, by=by, tolerance=tolerance)

    levit_global, levit_fast = "levit_128s-global_attention", "levit_128s-fast_updating"
    preserving, levit_preserving = "deit_tiny-structure_preservation", "levit_128s-structure_preservation"
    text = "Keeping placeholders is more accurate than dropping them: {} beside {}."
    yield compare("preserving_the_structure_helps", text, preserving, "deit_tiny-naive_selection", "top1", 0.2)
    text = "Global class attention selects better than a layer's own: {} beside {}."
    yield compare("global_attention_helps_deit", text, GLOBAL, preserving, "top1", 0.2)
    yield compare("global_attention_helps_levit", text, levit_global, levit_preserving, "top1", 0.2)
    text = f"On DeiT fast updating changes the accuracy little: {name(FAST)} beside {name(GLOBAL)}."
    yield Claim("fast_updating_changes_deit_little", modules, text, top1_gap, run=FAST, over=GLOBAL, tolerance=0.3)
    text = "On LeViT fast updating helps: {} is more accurate than {}."
    yield compare("fast_updating_helps_levit", text, levit_fast, levit_global, "top1", 0.2)
    text = "Fast updating costs some throughput: {} is faster than {}."
    yield compare("fast_updating_costs_time_on_deit", text, GLOBAL, FAST, "throughput", where="Table 3")
    yield compare("fast_updating_costs_time_on_levit", text, levit_global, levit_fast, "throughput", where="Table 3")
    text = "Layer-to-stage accelerates further: {} is faster than {}."
    yield compare("layer_to_stage_is_faster_on_deit", text, "evo_deit_tiny", FAST, "throughput")
    yield compare("layer_to_stage_is_faster_on_levit", text, "evo_levit_128s", levit_fast, "throughput")
    for family, run, fast in (("deit", "evo_deit_tiny", FAST), ("levit", "evo_levit_128s", levit_fast)):
        id = f"layer_to_stage_keeps_accuracy_on_{family}"
        text = f"Layer-to-stage keeps the accuracy: {name(run)} beside {name(fast)}."
        yield Claim(id, modules, text, top1_gap, run=run, over=fast, at_least=True, tolerance=0.3)
    others = [run for run in runs_of(config, "table4") if run != CONTROL]
    for by in ("top1", "throughput"):
        id = f"global_attention_is_the_best_strategy.{by}"
        text = (
            f"Global class attention outperforms all other strategies, selecting or sub-sampling, in {YARDSTICKS[by]}."
        )
        yield Claim(id, strategies, text, best_of, run=GLOBAL, others=others, by=by, tolerance=0.2)
    id, last = "last_class_attention_is_worse", "deit_tiny-last_class_attention"
    text = "Selecting by the last layer's class attention everywhere costs much accuracy: {} beside {}."
    yield compare(id, text, GLOBAL, last, "top1", 0.5, where=strategies)
    # Figure 6: the same sum of placeholder tokens, spread over the layers in five ways
    where = "Ablation: keeping ratios; Figure 6"
    text = "A keeping ratio that is the same in all layers is more accurate than the others."
    run, others = "deit_small-keep_consistent", runs_of(config, "figure6")
    yield Claim("a_consistent_ratio_is_best", where, text, best_of, run=run, others=others, by="top1", tolerance=0.2)


def runs_of(config: Config, item: str) -> list[str]:
    """Return the runs of a table's or a figure's rows, each once. Raises ConfigError where there is no such item."""
    if item not in config.items["tables"] and item not in config.items["figures"]:
        raise ConfigError(f"{FILES['items']} has no {item}, whose rows a claim compares; restore it or drop the claim.")
    return list(dict.fromkeys(row["run"] for row in config.rows(item)))


def claims_of_figures() -> Iterator[Claim]:
    """Yield what Figures 2, 4 and 5 claim: by the curves of analyses, or for people to judge in a picture."""
    sees = "an interpretability method sees the reason for the prediction."

    def compare(id: str, text: str, higher: End, lower: End, tolerance: float) -> Claim:
        """Return a claim on the analysis that was named last."""
        return Claim(id, where, text, curves, analysis=analysis, higher=higher, lower=lower, tolerance=tolerance)

    # the correlation over the patches with their relevance, and with other images' relevance: by chance
    where, analysis = "Introduction; Figure 2", "class_attention"
    text = f"In the tenth layer class attention lies where {sees}"
    yield compare("deep_class_attention_agrees_with_relevance", text, ("class", 10), ("class_others", 10), 0.05)
    text = f"In the fifth layer, too, class attention lies mainly where {sees}"
    yield compare("shallow_class_attention_agrees_with_relevance", text, ("class", 5), ("class_others", 5), 0.05)
    where = "Methodology; Figure 2"
    text = f"In the tenth layer global class attention lies where {sees}"
    yield compare("global_attention_agrees_with_relevance", text, ("global", 10), ("global_others", 10), 0.05)
    where = "Introduction; Figure 2"
    text = (
        "Class attention is scattered in shallow layers and sparse in deep ones (evenness over the patches, fifth "
        "layer beside tenth)."
    )
    yield compare("class_attention_grows_sparse", text, ("evenness", 5), ("evenness", 10), 0.02)

    where, analysis = "Methodology; Figure 4a", "cka"
    text = "Informative tokens resemble the final class token more than placeholders do (CKA, over the layers)."
    id = "informative_tokens_resemble_the_class_token"
    yield compare(id, text, ("informative", None), ("placeholder", None), 0.02)
    text = (
        "Tokens of shallow layers are far from the final class token: their CKA with it is higher in the tenth layer "
        "than in the second."
    )
    yield compare("tokens_approach_the_class_token", text, ("all", 10), ("all", 2), 0.02)
    where = "Supplement; Figure 4a"
    text = (
        "In the last two layers informative tokens grow less like the final class token (CKA, tenth layer beside last)."
    )
    yield compare("informative_tokens_turn_away_at_last", text, ("informative", 10), ("informative", 12), 0.02)

    where, analysis = "Supplement; Figure 4b", "query_correlation"
    text = (
        "From the third layer on the queries of an image's patches grow more alike (correlation with their mean, last "
        "layer beside third)."
    )
    yield compare("queries_grow_alike", text, ("mean", 12), ("mean", 3), 0.02)
    text = "From the third layer on that correlation varies less over the patches (third layer beside last)."
    yield compare("queries_vary_less", text, ("variance", 3), ("variance", 12), 0.01)
    text = "In the first two layers queries are more alike than in the third (second layer beside third)."
    yield compare("first_queries_are_more_alike", text, ("mean", 2), ("mean", 3), 0.02)
    text = (
        "In the first two layers that correlation varies less over the patches than in the third (third layer beside "
        "second)."
    )
    yield compare("first_queries_vary_less", text, ("variance", 3), ("variance", 2), 0.01)

    where, analysis = "Training Strategies; Ablation: visualization; Figure 5", "selection"
    text = "Selection is consistent across layers: of what a layer keeps, the last one keeps more than by chance."
    yield compare("selection_is_consistent_across_layers", text, ("by_last", None), ("by_chance", None), 0.05)
    text = (
        "Selection settles as training goes on: what the fifth layer keeps after a third of it changes less until the "
        "end than its first choice did until then."
    )
    yield compare("selection_settles", text, ("by_next_epoch", 2), ("by_next_epoch", 1), 0.02)
    where = "Ablation: visualization; Figure 5"
    text = "Parts of objects that shallow layers miss are picked up in deep ones."
    yield Claim("missed_tokens_are_retrieved", where, text, picture, figure="figure5")
    text = "Selection keeps objects rather than background."
    yield Claim("selection_finds_objects", where, text, picture, figure="figure5")


def claims_of_the_supplement(config: Config) -> Iterator[Claim]:
    """Yield what the supplement claims: hyper-parameters (Figure 1) and images of 384 px (Table 1)."""
    name = functools.partial(printed.label, config)
    ratios, start, alpha, epoch = (f"Supplement: hyper-parameters, Figure 1{letter}" for letter in "abcd")
    # the printed 72.0 at 0.5 and 72.4 at 0.9 are what the paper calls saturated
    text = f"Keeping more than half of the tokens gains little: the accuracy saturates at {name(FAST)}."
    kept = [run for run in runs_of(config, "figureS1a") if run != KEEPS_ALL]
    yield Claim("accuracy_saturates_above_half", ratios, text, saturates, run=FAST, of=kept, tolerance=0.5)
    run, dense = "deit_tiny-keep0.9", "deit_tiny"
    text = (
        f"With a keeping ratio of 0.9 the accuracy is 0.2 above the dense model's ({name(run)} beside {name(dense)})."
    )
    id = "keeping_nine_tenths_beats_dense"
    yield Claim(id, ratios, text, top1_gap, run=run, over=dense, printed=0.2, tolerance=0.3)
    for run in ("deit_tiny-start6", "deit_tiny-start7", "deit_tiny-start8"):
        id = f"stable_from_the_fifth_layer.{run}"
        text = f"From the fifth layer on, where selection starts matters little: {name(run)} beside {name(FAST)}."
        yield Claim(id, start, text, top1_gap, run=run, over=FAST, implied=0, tolerance=0.3)
    # the first layer has no class attention before it to select by
    for run in ("deit_tiny-start2", "deit_tiny-start3"):
        id = f"selection_in_the_first_layers_degrades.{run}"
        text = f"Selection in the first three layers costs accuracy: {name(FAST)} is better than {name(run)}."
        yield Claim(id, start, text, order, better=FAST, than=run, by="top1", tolerance=0.2)
    text = f"Alpha 0.5 ({name(FAST)}) is more accurate than the others."
    others = runs_of(config, "figureS1c")
    yield Claim("alpha_of_half_is_best", alpha, text, best_of, run=FAST, others=others, by="top1", tolerance=0.1)
    for run in ("deit_tiny-from200", "deit_tiny-from250"):
        id = f"late_selection_drops_sharply.{run}"
        text = (
            f"Selection that starts in the last 100 of 300 epochs costs much accuracy: {name(FAST)} beside {name(run)}."
        )
        yield Claim(id, epoch, text, order, better=FAST, than=run, by="top1", tolerance=0.5)
    for size in ("small", "base"):
        run, other = f"evo_deit_{size}_384", f"evo_deit_{size}"
        where = "Conclusions; Table 1 of the supplement"
        text = f"At 384 px Evo-ViT gains more speed than at 224: {name(run)} beside {name(other)}."
        id = f"large_images_gain_more_on_deit_{size}"
        yield Claim(id, where, text, order, better=run, than=other, by="speedup")
    where = "Supplement: dense input, Table 1"
    for size, batch_size in (("small", 128), ("base", 64)):
        run, dense = f"evo_deit_{size}_384", f"deit_{size}_384"
        text = (
            f"With {batch_size} images of 384 px per GPU training {name(dense)} runs out of memory, {name(run)} does "
            "not."
        )
        id = f"fits_where_deit_{size}_does_not"
        yield Claim(id, where, text, memory_fits, run=run, over=dense, batch_size=batch_size)
    run, other = "evo_deit_small_384", "evo_deit_base_384"
    text = f"{name(run)}, trained with larger batches, is as accurate as {name(other)}."
    yield Claim("small_is_as_accurate_as_base_at_384px", where, text, top1_gap, run=run, over=other, tolerance=0.3)


# -- the ledger -----------------------------------------------------------------------------


def make(config: Config, root: str, partial: bool, claims: list[Claim] | None = None) -> pd.DataFrame:
    """Return the ledger of these claims, or of all."""
    sources = Sources(config, Measured(config, root, partial), Printed(config))
    chosen = all_claims(config) if claims is None else claims
    return pd.DataFrame(row_of(claim, claim.judge(sources)) for claim in chosen)


def row_of(claim: Claim, outcome: Outcome) -> dict:
    """Return a line of the ledger."""
    estimate, number, low, high = outcome.estimate, None, None, None
    if estimate is not None and estimate.text:
        number = estimate.text
    elif estimate is not None:
        digits = 2 if outcome.unit else 3  # correlations and shares have no unit, and are below 1
        number, low, high = f"{estimate.value:.{digits}f}", estimate.low, estimate.high
    return {
        "id": claim.id,
        "where": claim.where,
        "claim": claim.text,
        "printed": outcome.stated,
        "ours": number,
        "ours_low": low,
        "ours_high": high,
        "unit": outcome.unit,
        "n": "; ".join(estimate.n) if estimate else None,
        "tolerance": outcome.tolerance,
        "verdict": outcome.verdict,
        "scale": str(estimate.scale) if estimate and estimate.scale else None,
        "runs": ", ".join(estimate.records) if estimate else None,
        "note": "; ".join([*outcome.reasons, *(estimate.notes if estimate else ())]) or None,
    }


def sheet_of(frame: pd.DataFrame) -> sheet.Sheet:
    """Return the ledger for people; below it the notes, each once."""
    notes = list(dict.fromkeys(frame["note"].dropna()))
    lines = []
    for _, row in frame.iterrows():
        ours, verdict = ours_cell(row), row["verdict"]
        stated, n, scale, runs = ("-" if pd.isna(row[key]) else row[key] for key in ("printed", "n", "scale", "runs"))
        tolerance = "-" if pd.isna(row["tolerance"]) else f"{row['tolerance']:g}"
        note = "" if pd.isna(row["note"]) else str(notes.index(row["note"]) + 1)
        cells = [row["where"], row["claim"], stated, ours, row["unit"], tolerance, n, verdict, scale, runs, note]
        lines.append(cells)
    head = ["where", "claim", "printed", "ours", "unit", "tolerance", "n", "verdict", "scale", "runs", "notes"]
    return sheet.Sheet(head, lines, left=2, lead=count(frame), notes=notes)


def brief_of(frame: pd.DataFrame) -> sheet.Sheet:
    """Return what a terminal shows of the ledger's CSV: the claims that have a verdict."""
    lines = []
    for _, row in frame[frame["verdict"] != NOT_RUN].iterrows():
        stated, unit = ("-" if pd.isna(row[key]) else str(row[key]) for key in ("printed", "unit"))
        lines.append([row["verdict"], row["scale"], row["claim"], stated, ours_cell(row), unit])
    head = ["verdict", "scale", "claim", "printed", "ours", "unit"]
    remarks = ["why the others were not run is in the CSV, column `note`"]
    return sheet.Sheet(head, lines, left=3, lead=count(frame), remarks=remarks)


def ours_cell(row: pd.Series) -> str:
    """Show our number and, where it has one, its 95 % interval."""
    if pd.isna(row["ours"]):
        return "-"
    text = str(row["ours"])
    if pd.notna(row["ours_low"]) and row["ours_low"] != row["ours_high"]:
        digits = 3 if pd.isna(row["unit"]) or row["unit"] == "" else 1
        text += f" ({row['ours_low']:.{digits}f} to {row['ours_high']:.{digits}f})"
    return text


def count(frame: pd.DataFrame) -> str:
    """Say how many claims there are, and how many have each verdict at each scale."""
    judged = frame[frame["verdict"] != NOT_RUN]
    texts = [f"{len(frame)} claims."]
    for scale in dict.fromkeys([IMAGENET, *judged["scale"]]):
        verdicts = judged["verdict"][judged["scale"] == scale]
        counts = [f"{(verdicts == verdict).sum()} {verdict}" for verdict in (CONFIRMED, REFUTED, CLOSE)]
        texts.append(f"On {scale}: {', '.join(counts) if len(verdicts) else 'none judged'}.")
    return " ".join([*texts, f"Not run: {len(frame) - len(judged)}."])
