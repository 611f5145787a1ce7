"""Evo-LeViT: Evo-ViT on the deep-narrow (LeViT) host, registered as ``evo_levit_*`` in timm."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    DropPath,
    get_act_layer,
    get_device_dtype,
    resample_abs_pos_embed,
    to_2tuple,
    to_ntuple,
    trunc_normal_,
)
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from timm.models.levit import Attention, LevitMlp, LinearNorm, NormLinear, Stem16, model_cfgs
from torch import Tensor, nn

from . import tokens as equations
from .checkpoint import add_saved_metadata, levit_from_official
from .fast.autograd import records_gradient
from .features import refuse_empty_training
from .host import EvoHost
from .options import Host, check_choice, check_options, refuse_old_keywords
from .scores import attention_scores, patch_scores
from .slow_fast import Observation, SlowFast, State

STRIDE = 16  # of the stem
HEADS = ("head", "head_dist")
TRAINING_HEADS = ("head_cls", "head_cls_dist")  # on the class token


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Return (B, L, H, D) for (B, L, H * D).

    ``unflatten`` would do, but torch's ONNX exporter takes the batch size that it was traced with for a constant.
    """
    return x.reshape(*x.shape[:2], num_heads, x.shape[2] // num_heads)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, scores: str | None) -> tuple[Tensor, Tensor | None]:
    """Compute LeViT's attention with the whole matrix.

    Values are wider than keys, so that PyTorch's fused attention would take its slow path; and with the
    matrix the class token's attention is free.

    Args:
        q: queries (B, Lq, H, Dk).
        k: keys (B, L, H, Dk).
        v: values (B, L, H, Dv).
        scores: what to return with the result; see ``attention_scores``.

    Returns:
        (B, Lq, H * Dv) and, with ``scores``, (B, H, L).
    """
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    attn = ((q * scale) @ k.transpose(-2, -1)).softmax(dim=-1)
    row = None if scores is None else attention_scores(attn, q, k, scale, scores)
    return (attn @ v).transpose(1, 2).flatten(2), row


class EvoLevitAttention(nn.Module):
    """LeViT's attention without attention biases; it can hand out token scores."""

    def __init__(
        self, dim: int, key_dim: int, num_heads: int, attn_ratio: float, act_layer: type[nn.Module],
        **dd: Any,
    ):  # fmt: skip
        super().__init__()
        self.num_heads, self.scale = num_heads, key_dim**-0.5
        self.widths = (key_dim, key_dim, int(attn_ratio * key_dim))
        self.qkv = LinearNorm(dim, num_heads * sum(self.widths), **dd)
        self.proj = nn.Sequential()
        self.proj.add_module("act", act_layer())
        width = num_heads * self.widths[2]
        self.proj.add_module("ln", LinearNorm(width, dim, bn_weight_init=0, **dd))

    def forward(self, x: Tensor, scores: str | None = None) -> tuple[Tensor, Tensor | None]:
        """Return (B, L, C) for (B, L, C) and, with ``scores``, (B, H, L)."""
        q, k, v = split_heads(self.qkv(x), self.num_heads).split(self.widths, dim=3)
        out, row = attend(q, k, v, self.scale, scores)
        return self.proj(out), row


class EvoLevitBlock(nn.Module):
    """Attention and MLP with residuals, handing on the token scores of the attention."""

    def __init__(
        self, dim: int, key_dim: int, num_heads: int, attn_ratio: float, mlp_ratio: float,
        act_layer: type[nn.Module], drop_path: float, **dd: Any,
    ):  # fmt: skip
        super().__init__()
        self.attn = EvoLevitAttention(dim, key_dim, num_heads, attn_ratio, act_layer, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.mlp = LevitMlp(dim, int(dim * mlp_ratio), act_layer=act_layer, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, scores: str | None = None) -> tuple[Tensor, Tensor | None]:
        """Return (B, L, C) for (B, L, C) and, with ``scores``, (B, H, L)."""
        out, row = self.attn(x, scores)
        x = x + self.drop_path1(out)
        return x + self.drop_path2(self.mlp(x)), row


class EvoLevitSubsample(nn.Module):
    """Attention from every second row and column of the grid to all of it, then an MLP.

    The class token stays a query of its own. A learned position embedding is added to the tokens
    before, at the resolution that is left. ``merge``: the queries are the averages of 2 x 2
    windows instead of each window's first token.
    """

    def __init__(
        self, in_dim: int, out_dim: int, key_dim: int, grid: tuple[int, int], merge: bool,
        act_layer: type[nn.Module], drop_path: float, **dd: Any,
    ):  # fmt: skip
        super().__init__()
        self.grid, self.merge = grid, merge
        self.num_heads, self.scale = in_dim // key_dim, key_dim**-0.5
        self.widths = (key_dim, 4 * key_dim)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid[0] * grid[1], in_dim, **dd))
        self.reset_parameters()
        self.kv = LinearNorm(in_dim, self.num_heads * sum(self.widths), **dd)
        self.q = LinearNorm(in_dim, self.num_heads * key_dim, **dd)
        self.proj = nn.Sequential()
        self.proj.add_module("act", act_layer())
        self.proj.add_module("ln", LinearNorm(self.num_heads * self.widths[1], out_dim, **dd))
        self.mlp = LevitMlp(out_dim, 2 * out_dim, act_layer=act_layer, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def reset_parameters(self) -> None:
        """Initialize the position embedding."""
        trunc_normal_(self.pos_embed, std=0.02)

    def shrink(self, x: Tensor) -> Tensor:
        """Return (B, 1 + ceil(H / 2) * ceil(W / 2), C) for (B, 1 + H * W, C)."""
        patches = x[..., 1:, :].reshape(x.shape[0], *self.grid, x.shape[2])
        if self.merge:  # windows at an odd edge average what they hold
            patches = F.avg_pool2d(patches.permute(0, 3, 1, 2), 2, ceil_mode=True)
            patches = patches.permute(0, 2, 3, 1)
        else:
            patches = patches[..., ::2, ::2, :]
        return torch.cat((x[..., :1, :], patches.flatten(1, 2)), dim=1)

    def forward(self, x: Tensor, scores: str | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of the smaller grid for (B, 1 + H * W, C) and, with ``scores``, (B, heads, 1 + H * W)."""
        x = x + self.pos_embed
        k, v = split_heads(self.kv(x), self.num_heads).split(self.widths, dim=3)
        q = split_heads(self.q(self.shrink(x)), self.num_heads)
        out, row = attend(q, k, v, self.scale, scores)
        x = self.proj(out)
        return x + self.drop_path(self.mlp(x)), row


class EvoLevitStage(nn.Module):
    """Blocks on one grid, after the sub-sampling that leads to it (None in the first stage)."""

    def __init__(self, downsample: nn.Module | None, blocks: list[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)


class EvoLevit(EvoHost, nn.Module):
    """LeViT with structure-preserving token selection and slow-fast updating.

    Against timm's Levit: a class token; position embeddings at the input and before each
    sub-sampling instead of attention biases; the options of ``evovit.options``; for Eq. 8
    ``set_training_outputs`` adds a second pair of heads, on the class token. All tokens stay in
    raster order, so that sub-sampling needs no order restored.

    Args (the sizes are timm's Levit's, one entry per stage):
        img_size: height and width in pixels, multiples of 16.
        variant: "paper" (the text: alpha 0.5, sub-sampled scores as they are) or "official" (the
            authors' code: alpha learned, sub-sampled scores rescaled to the sum they had before).
        keep_ratio: share of informative tokens, a number or one per block (1 before start_block).
        start_block: first selecting block, counted from 0 through all stages.
        alpha: alpha of Eq. 4, weight of the previous score; a number, one per attention
            (sub-sampling ones included, in order) or "learned".
        schedule: "stage" or "layer"; see EvoVisionTransformer.
        placeholders: "update" (Eqs. 5-7) or "keep".
        scores: "global" (Eq. 4), "class", "random" or "column_mean".
        subsample: queries of the sub-sampling attentions: "stride" (LeViT's) or "average" of each
            2 x 2 window; it decides how the scores are sub-sampled (supplement).
        tile: see EvoVisionTransformer.

    Raises:
        ValueError: for values out of range and combinations that make no sense, with the reason.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: Sequence[int] = (128, 256, 384),
        key_dim: int = 16,
        depth: Sequence[int] = (2, 3, 4),
        num_heads: int | Sequence[int] = (4, 6, 8),
        attn_ratio: float | Sequence[float] = 2.0,
        mlp_ratio: float | Sequence[float] = 2.0,
        act_layer: str = "hard_swish",
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        variant: str = "paper",
        keep_ratio: float | Sequence[float] = 0.5,
        start_block: int = 2,
        alpha: float | str | Sequence[float] | None = None,
        schedule: str | None = None,
        placeholders: str | None = None,
        scores: str = "global",
        subsample: str = "stride",
        tile: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_choice("subsample", subsample, ("stride", "average"))
        self.num_classes, self.in_chans = num_classes, in_chans
        self.embed_dim, self.drop_rate = tuple(embed_dim), drop_rate
        self.num_features = self.head_hidden_size = embed_dim[-1]
        self.grad_checkpointing = self.distilled_training = False
        self._set_pool(global_pool)
        host = Host(sum(depth), tuple(sum(depth[:i]) for i in range(len(depth))))
        checked = check_options(host, variant, keep_ratio, start_block, alpha, placeholders, scores, tile=tile)
        self.set_options(checked, schedule)
        self._set_grids(img_size)
        act = get_act_layer(act_layer)
        self.stem = Stem16(in_chans, embed_dim[0], act_layer=act, **dd)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim[0], **dd))
        rows, columns = self.grids[0]
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + rows * columns, embed_dim[0], **dd))
        trunc_normal_(self.pos_embed, std=0.02)
        self.stages, self.feature_info = nn.ModuleList(), []
        sizes = (to_ntuple(len(depth))(size) for size in (num_heads, attn_ratio, mlp_ratio))
        for i, (dim, count, heads, attention, mlp) in enumerate(zip(embed_dim, depth, *sizes, strict=True)):
            downsample = None
            if i > 0:
                downsample = EvoLevitSubsample(
                    embed_dim[i - 1], dim, key_dim, self.grids[i - 1], subsample == "average",
                    act, drop_path_rate, **dd,
                )  # fmt: skip
            blocks = [
                EvoLevitBlock(dim, key_dim, heads, attention, mlp, act, drop_path_rate, **dd) for _ in range(count)
            ]
            self.stages.append(EvoLevitStage(downsample, blocks))
            info = dict(num_chs=dim, reduction=STRIDE * 2**i, module=f"stages.{i}")
            self.feature_info.append(info)
        # One vector, so that all of it has a gradient under every schedule (DDP wants that).
        learned = torch.zeros(host.attentions, **dd)
        self.alpha_logits = nn.Parameter(learned) if checked.learned else None
        self.learning_alpha = checked.learned
        self._set_classifiers(**dd)

    training_parts = TRAINING_HEADS

    def _make_training_parts(self) -> dict[str, nn.Module]:
        return {head: self._classifier(**get_device_dtype(self)) for head in TRAINING_HEADS}

    @torch.no_grad()
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialize all weights and buffers, e.g. after ``to_empty``.

        Args:
            needs_reset: False does nothing, since every layer initializes itself when it is made.
        """
        if not needs_reset:
            return
        init_levit_layers(self)
        nn.init.zeros_(self.cls_token)
        trunc_normal_(self.pos_embed, std=0.02)
        if self.alpha_logits is not None:
            nn.init.zeros_(self.alpha_logits)

    def _set_pool(self, global_pool: str) -> None:
        if global_pool not in ("avg", ""):
            raise ValueError(
                f"global_pool={global_pool!r}: Evo-ViT predicts from the mean, so it is 'avg', or '' for all tokens"
            )
        if not global_pool and self.num_classes > 0:
            raise ValueError(
                "global_pool='' leaves all tokens and LeViT's heads classify one vector: use it with num_classes=0"
            )
        self.global_pool = global_pool

    def _set_grids(self, img_size: int | tuple[int, int]) -> None:
        """Note the grid (rows, columns) of each stage; refuse what can't be selected from."""
        size = to_2tuple(img_size)
        if any(side < STRIDE or side % STRIDE for side in size):
            raise ValueError(f"img_size={size}: both sides must be multiples of {STRIDE} pixels")
        host, grid, grids = self.options.host, tuple(side // STRIDE for side in size), []
        for first, end in pairwise((*host.stages, host.depth)):
            for block in range(first, end):
                self.options.kept(grid[0] * grid[1], block)
            grids.append(grid)
            grid = tuple(-(-side // 2) for side in grid)
        self.img_size, self.grids = size, tuple(grids)

    def _set_classifiers(self, **dd: Any) -> None:
        for head in HEADS + (TRAINING_HEADS if self.training_outputs else ()):
            setattr(self, head, self._classifier(**dd).train(self.training))

    def _classifier(self, **dd: Any) -> nn.Module:
        if self.num_classes <= 0:
            return nn.Identity()
        return NormLinear(self.num_features, self.num_classes, drop=self.drop_rate, **dd)

    def set_alpha_learning(self, enable: bool) -> None:
        """Set whether learned alphas count; until then they are the number they start from."""
        self.learning_alpha = enable and self.alpha_logits is not None

    def set_distilled_training(self, enable: bool = True) -> None:
        """Set whether the heads stay apart from their distillation twins in training."""
        self.distilled_training = enable

    def metadata(self) -> dict[str, Any]:
        """Return what EvoHost's method does, and whether learned alphas count."""
        return {**super().metadata(), "learning_alpha": self.learning_alpha}

    def accept_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Take over what EvoHost's method does, and whether learned alphas count."""
        super().accept_metadata(metadata)
        self.set_alpha_learning(metadata["learning_alpha"])

    def _alphas(self) -> Sequence[float | Tensor]:
        """Return the weight of the previous score of each attention; learned ones once they count."""
        if self.alpha_logits is None or not self.learning_alpha:
            return self.options.alphas
        return torch.sigmoid(self.alpha_logits).unbind()

    def _class_token(self) -> Tensor:
        """Return the class token (1, 1, C).

        Through it alphas that nothing selects by get a gradient of zero, since DDP waits for one of each parameter.
        """
        if self.alpha_logits is None or not records_gradient(self.alpha_logits):
            return self.cls_token
        return self.cls_token + 0.0 * torch.sigmoid(self.alpha_logits).sum()

    def _block(self, index: int, x: Tensor, observed: bool) -> tuple[Tensor, Tensor | None]:
        """Run block ``index`` on (B, L, C).

        Args:
            observed: ask for the scores in any case, not only where a later selection depends on them.

        Returns:
            (B, L, C) and, where the scores count, (B, H, L).
        """
        blocks = [block for stage in self.stages for block in stage.blocks]
        return self._run(blocks[index], x, observed or index in self.scoring)

    def _run(self, module: nn.Module, x: Tensor, scored: bool) -> tuple[Tensor, Tensor | None]:
        """Run a block or a sub-sampling attention, with scores if they are asked for."""
        kind = None
        if scored:
            kind = "column_mean" if self.options.scores == "column_mean" else "class"
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        return checkpoint(module, x, kind) if recompute else module(x, kind)

    def _run_stages(
        self, images: Tensor, observer: list[Observation] | None = None, stages: int | None = None
    ) -> Tensor:
        """Return the tokens (B, 1 + N, C) of the last grid, or those after the first ``stages``."""
        self.refuse_symbolic_tracing(images)
        refuse_empty_training(self, images)
        if tuple(images.shape[-2:]) != self.img_size:
            raise ValueError(
                f"images are {tuple(images.shape[-2:])}, the model was made for {self.img_size}: "
                "use img_size=... or set_input_size()"
            )
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = torch.cat((self._class_token().expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        state = State(x, self.new_scores(x))
        host, alphas = self.options.host, self._alphas()
        grid = None if observer is None else torch.arange(x.shape[1] - 1, device=x.device)
        bounds = list(pairwise((*host.stages, host.depth)))
        stages = len(self.stages) if stages is None else stages
        for i, (first, end) in enumerate(bounds[:stages]):
            if i > 0:
                if observer is not None:
                    grid = grid.view(self.grids[i - 1])[::2, ::2].flatten()
                alpha = alphas[host.attention_of(first) - 1]
                state = self._subsample(i, first, state, alpha, grid, observer)
            num_patches = state.tokens.shape[1] - 1
            slow_fast = SlowFast(
                self._block, self.options, self.groups, alphas, num_patches, grid=grid, observer=observer
            )
            state = slow_fast.run(state, first, end)
        return state.tokens

    def _subsample(
        self,
        stage: int,
        first: int,
        state: State,
        alpha: float | Tensor,
        grid: Tensor | None,
        observer: list[Observation] | None,
    ) -> State:
        """Return tokens and scores of the next grid; the scores evolve with this attention's (Eq. 4)."""
        selects = any(start >= first and self.options.keep_ratio[start] < 1 for start, _ in self.groups)
        scored = observer is not None or (selects and self.options.evolves)
        downsample = self.stages[stage].downsample
        x, row = self._run(downsample, state.tokens, scored)
        values = None
        if scored:
            keeps = not downsample.merge
            row = patch_scores(row, state.scores.sums_heads, detached=self.options.placeholders != "update")
            values = equations.subsample_scores(row, downsample.grid, keeps)
            before = state.scores.settle()
            if before is not None:
                previous = equations.subsample_scores(before, downsample.grid, keeps)
                values = equations.evolve_scores(previous, values, alpha)
                if self.options.variant == "official":
                    total = before.sum(1, keepdim=True)
                    values = values * (total / values.sum(1, keepdim=True))
        if observer is not None:
            observer.append(Observation(None, grid, None, False, values, x))
        return State(x, state.scores.with_values(values))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the class token and the last grid's patches of images in raster order (B, 1 + N, C)."""
        return self._run_stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Return the logits of tokens, the average of both heads on the mean of the patches.

        In training with ``set_distilled_training`` the two stay apart, as in timm's LeViT.
        """
        x = x[..., 1:, :].mean(dim=1) if self.global_pool == "avg" else x
        return x if pre_logits else self._join(self.head(x), self.head_dist(x))

    def _join(self, label: Tensor, teacher: Tensor) -> Any:
        apart = self.training and self.distilled_training
        return (label, teacher) if apart else (label + teacher) / 2

    def forward(self, x: Tensor) -> Any:
        """Return logits; with ``set_training_outputs`` in training (average, class token), Eq. 8."""
        x = self.forward_features(x)
        if not (self.training and self.training_outputs):
            return self.forward_head(x)
        token = x.select(1, 0)
        return self.forward_head(x), self._join(self.head_cls(token), self.head_cls_dist(token))

    def observe(self, images: Tensor) -> tuple[list[Observation], Tensor]:
        """Return what every attention did to images, for ``trace``, and the logits."""
        observed: list[Observation] = []
        x = self._run_stages(images, observed)
        return observed, self.forward_head(x)

    def forward_intermediates(
        self, x: Tensor, indices=None, norm=False, stop_early=False, output_fmt="NCHW",
        intermediates_only=False,
    ) -> Any:  # fmt: skip
        """Return what timm's method returns: the map of each stage (B, C, H, W); there is no norm to apply."""
        if output_fmt != "NCHW":
            raise ValueError(f"unsupported: output_fmt={output_fmt!r}")
        taken, deepest = feature_take_indices(len(self.stages), indices)
        observed: list[Observation] = []
        last = self._run_stages(x, observed, deepest + 1 if stop_early else None)
        host = self.options.host
        ends = [host.attention_of(end - 1) for _, end in pairwise((*host.stages, host.depth))]
        maps = [
            observed[ends[i]].tokens[..., 1:, :].transpose(-2, -1).unflatten(2, self.grids[i]).contiguous()
            for i in taken
        ]
        return maps if intermediates_only else (last, maps)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the authors' weights under our keys."""
        return levit_from_official(state_dict, [len(stage.blocks) for stage in self.stages])

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True) -> list[int]:
        """Prune as timm's method does; the heads go with the last stage, which they are sized for."""
        taken, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.set_training_outputs(False)
            self.reset_classifier(0, "")
        blocks = sum(len(stage.blocks) for stage in self.stages)
        if blocks <= self.options.start_block:  # nothing is left that selects by the alphas
            self.alpha_logits, self.learning_alpha = None, False
        return taken

    def no_weight_decay(self) -> set[str]:
        return {
            name for name, _ in self.named_parameters() if name.endswith(("pos_embed", "cls_token", "alpha_logits"))
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(
            stem=r"^(?:stem|cls_token|pos_embed|alpha_logits)",
            blocks=r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            ],
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        return self.head, self.head_dist

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self._set_pool(self.global_pool if global_pool is None else global_pool)
        self._set_classifiers(**get_device_dtype(self))

    def set_input_size(self, img_size: int | tuple[int, int] | None = None) -> None:
        """Change the image size; all position embeddings are resampled.

        Args:
            img_size: height and width in pixels, multiples of 16; None changes nothing.

        Raises:
            ValueError: for a size that the stem can't divide or that leaves too few patches.
        """
        if img_size is None:
            return
        before = self.grids
        self._set_grids(img_size)
        self.pos_embed = _resampled(self.pos_embed, before[0], self.grids[0])
        for stage, old, new in zip(self.stages[1:], before, self.grids, strict=False):
            downsample = stage.downsample  # it starts from the grid before
            downsample.grid = new
            downsample.pos_embed = _resampled(downsample.pos_embed, old, new)
        update_model_input_size(self, self.img_size)


def init_levit_layers(model: nn.Module) -> None:
    """Initialize all layers of a LeViT as their constructors do, buffers included.

    timm's LeViT just calls ``reset_parameters``, which lets residual branches start at one and
    classifiers at another scale.
    """
    for module in model.modules():
        if module is not model and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for module in model.modules():
        if isinstance(module, LevitMlp):
            nn.init.zeros_(module.ln2.bn.weight)
        elif isinstance(module, Attention | EvoLevitAttention):
            nn.init.zeros_(module.proj.ln.bn.weight)
        elif isinstance(module, NormLinear):
            trunc_normal_(module.linear.weight, std=0.02)
            nn.init.zeros_(module.linear.bias)


def _resampled(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> nn.Parameter:
    """Return position embeddings (1, 1 + N, C) for another grid; the class token keeps its own."""
    resampled = positions.detach()
    if old != new:
        resampled = resample_abs_pos_embed(resampled, new, old, num_prefix_tokens=1)
    return nn.Parameter(resampled, requires_grad=positions.requires_grad)


def resample_positions(state_dict: Mapping[str, Any], model: EvoLevit) -> dict[str, Any]:
    """Filter pretrained weights for timm: resample position embeddings to the model's grids."""
    state_dict = dict(state_dict.get("model", state_dict))
    stages = range(1, len(model.stages))
    # sub-sampling starts from the grid of the stage before
    steps = {"pos_embed": 0} | {f"stages.{i}.downsample.pos_embed": i - 1 for i in stages}
    for name, step in steps.items():
        if name in state_dict:
            source = source_grid(model, state_dict[name].shape[1] - 1, step)
            state_dict[name] = _resampled(state_dict[name], source, model.grids[step]).data
    return add_saved_metadata(state_dict, model)


def stage_grid(size: Sequence[int], stage: int) -> tuple[int, int]:
    """Return rows and columns of the tokens in a stage of LeViT, counted from 0, for an image size."""
    rows, columns = (side // STRIDE for side in size)
    for _ in range(stage):
        rows, columns = -(-rows // 2), -(-columns // 2)
    return rows, columns


def source_grid(model: nn.Module, tokens: int, stage: int) -> tuple[int, int]:
    """Return rows and columns of the tokens in a stage of the LeViT that pretrained weights come from.

    Where the weights' own configuration does not explain how many there are, they are of square
    images, as published files are.

    Raises:
        ValueError: if no grid explains the number.
    """
    source = getattr(model, "pretrained_model_args", {}).get("img_size")
    source = to_2tuple(source or model.pretrained_cfg["input_size"][-2:])
    side = round(tokens**0.5)
    for grid in (stage_grid(source, stage), stage_grid(model.img_size, stage), (side, side)):
        if grid[0] * grid[1] == tokens:
            return grid
    raise ValueError(
        f"the weights hold positions of {tokens} patches in stage {stage}, which is no grid of "
        f"{source[0]} x {source[1]} pixels: give the size of their images as "
        "pretrained_cfg_overlay=dict(input_size=(3, height, width))"
    )


CFG = dict(
    url="", num_classes=1000, input_size=(3, 224, 224), pool_size=None, crop_pct=0.875,
    interpolation="bicubic", fixed_input_size=True, mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD, first_conv="stem.conv1.linear",
    classifier=tuple(f"{head}.linear" for head in HEADS), license="mit",
)  # fmt: skip
SIZES = ("128s", "128", "192", "256", "384")
default_cfgs = generate_default_cfgs({f"evo_levit_{size}": CFG for size in SIZES})


def _create(size: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    refuse_old_keywords(kwargs)
    # "variant" is also the name of a parameter of build_model_with_cfg
    model_cls = partial(EvoLevit, variant=kwargs.pop("variant", "paper"))
    return build_model_with_cfg(
        model_cls,
        f"evo_levit_{size}",
        pretrained,
        pretrained_filter_fn=resample_positions,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", (0, 1, 2)), feature_cls="getter"),
        **{**model_cfgs[f"levit_{size}"], **kwargs},
    )


@register_model
def evo_levit_128s(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-128S at 224 px, or another ``img_size``."""
    return _create("128s", pretrained, kwargs)


@register_model
def evo_levit_128(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-128 at 224 px, or another ``img_size``."""
    return _create("128", pretrained, kwargs)


@register_model
def evo_levit_192(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-192 at 224 px, or another ``img_size``."""
    return _create("192", pretrained, kwargs)


@register_model
def evo_levit_256(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-256 at 224 px, or another ``img_size``."""
    return _create("256", pretrained, kwargs)


@register_model
def evo_levit_384(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-384 at 224 px, or another ``img_size``."""
    return _create("384", pretrained, kwargs)
