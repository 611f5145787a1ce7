"""Running the deep-narrow host: stages on shrinking grids, with sub-sampling between them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from . import tokens as tk
from .backward import records_gradient
from .evolve import Evolution, Observation, State, evolve
from .features import refuse_empty_training
from .host import EvoHost


class PyramidHost(EvoHost):
    """Mixed into a model with ``stem``, ``stages``, ``cls_token``, ``pos_embed`` and ``grids``."""

    def set_alpha_learning(self, enable: bool) -> None:
        """Whether learned alphas count; until then they are the number they start from."""
        self.learning_alpha = enable and self.alpha_logits is not None

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether the heads stay apart from their distillation twins in training."""
        self.distilled_training = enable

    def metadata(self) -> dict[str, Any]:
        """See EvoHost; and whether learned alphas count."""
        return {**super().metadata(), "learning_alpha": self.learning_alpha}

    def accept_metadata(self, metadata: Mapping[str, Any]) -> None:
        """See EvoHost."""
        super().accept_metadata(metadata)
        self.set_alpha_learning(metadata["learning_alpha"])

    def _alphas(self) -> Sequence[float | Tensor]:
        """Weight of the previous score per attention; learned ones once they are to be."""
        if self.alpha_logits is None or not self.learning_alpha:
            return self.switches.alphas
        return torch.sigmoid(self.alpha_logits).unbind()

    def _class_token(self) -> Tensor:
        """(1, 1, C). Through it alphas that nothing selects by get a gradient, of zero: DDP
        wants one for each parameter."""
        if self.alpha_logits is None or not records_gradient(self.alpha_logits):
            return self.cls_token
        return self.cls_token + 0.0 * torch.sigmoid(self.alpha_logits).sum()

    def _scores(self, row: Tensor) -> Tensor:
        """Mean over the heads; only Eq. 5's weights let a gradient through."""
        return tk.patch_scores(row, False, self.switches.placeholders == "update")

    def _kind(self, wanted: bool) -> str | None:
        kind = "column_mean" if self.switches.scores == "column_mean" else "class"
        return kind if wanted else None

    def _block(self, index: int, x: Tensor, observed: bool) -> tuple[Tensor, Tensor | None]:
        """Block ``index`` on (B, L, C); with the patches' scores (B, L - 1) where they count."""
        kind = self._kind(observed or index in self.scoring)
        x, row = self._run(self._blocks[index], x, kind)
        return x, None if row is None else self._scores(row)

    def _run(self, module: nn.Module, x: Tensor, kind: str | None) -> tuple[Tensor, Tensor | None]:
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        return checkpoint(module, x, kind) if recompute else module(x, kind)

    @property
    def _blocks(self) -> list[nn.Module]:
        return [block for stage in self.stages for block in stage.blocks]

    def _evolve(self, images: Tensor, observer: list[Observation] | None = None, stages: int | None = None) -> Tensor:
        """Images to tokens (B, 1 + N, C) of the last grid, or that of the first ``stages``."""
        self.refuse_symbolic_tracing(images)
        refuse_empty_training(self, images)
        if tuple(images.shape[-2:]) != self.img_size:
            raise ValueError(
                f"images are {tuple(images.shape[-2:])}, the model was made for {self.img_size}: "
                "use img_size=... or set_input_size()"
            )
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = torch.cat((self._class_token().expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        state, host, alphas = State(x), self.switches.host, self._alphas()
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
            this = Evolution(self._block, self.switches, self.runs, alphas, num_patches,
                             grid=grid, observer=observer)  # fmt: skip
            state = evolve(this, state, first, end)
        return state.tokens

    def _subsample(
        self, stage: int, first: int, state: State, alpha: float | Tensor, grid: Tensor | None,
        observer: list[Observation] | None,
    ) -> State:  # fmt: skip
        """Tokens and scores of the next grid; the scores evolve with this attention's (Eq. 4)."""
        selects = any(run[0] >= first and self.switches.keep_ratio[run[0]] < 1 for run in self.runs)
        wanted = observer is not None or (selects and self.switches.evolves)
        downsample = self.stages[stage].downsample
        x, row = self._run(downsample, state.tokens, self._kind(wanted))
        scores = None
        if wanted:
            keeps = not downsample.merge
            scores = tk.subsample_scores(self._scores(row), downsample.grid, keeps)
            if state.scores is not None:
                previous = tk.subsample_scores(state.scores, downsample.grid, keeps)
                scores = tk.evolve_scores(previous, scores, alpha)
                if self.switches.variant == "official":
                    total = state.scores.sum(1, keepdim=True)
                    scores = scores * (total / scores.sum(1, keepdim=True))
        if observer is not None:
            observer.append(Observation(None, grid, None, False, scores, x))
        return State(x, scores)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the class token and the last grid's patches in raster order (B, 1 + N, C)."""
        return self._evolve(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Tokens to logits, the average of both heads on the mean of the patches.

        In training with ``set_distilled_training`` the two stay apart, as in timm's LeViT.
        """
        x = x[..., 1:, :].mean(dim=1) if self.global_pool == "avg" else x
        return x if pre_logits else self._join(self.head(x), self.head_dist(x))

    def _join(self, label: Tensor, teacher: Tensor) -> Any:
        apart = self.training and self.distilled_training
        return (label, teacher) if apart else (label + teacher) / 2

    def forward(self, x: Tensor) -> Any:
        """Logits; with ``set_training_outputs`` in training (average, class token), Eq. 8."""
        x = self.forward_features(x)
        if not (self.training and self.training_outputs):
            return self.forward_head(x)
        token = x.select(1, 0)
        return self.forward_head(x), self._join(self.head_cls(token), self.head_cls_dist(token))

    def observe(self, images: Tensor) -> tuple[list[Observation], Tensor]:
        """What every attention did to images, for ``trace``; and the logits."""
        observed: list[Observation] = []
        x = self._evolve(images, observed)
        return observed, self.forward_head(x)

    def forward_intermediates(
        self, x: Tensor, indices=None, norm=False, stop_early=False, output_fmt="NCHW",
        intermediates_only=False,
    ) -> Any:  # fmt: skip
        """timm's method: the map of each stage (B, C, H, W); there is no norm to apply."""
        if output_fmt != "NCHW":
            raise ValueError(f"unsupported: output_fmt={output_fmt!r}")
        taken, deepest = feature_take_indices(len(self.stages), indices)
        observed: list[Observation] = []
        last = self._evolve(x, observed, deepest + 1 if stop_early else None)
        host = self.switches.host
        ends = [host.attention_of(end - 1) for _, end in pairwise((*host.stages, host.depth))]
        maps = [
            observed[ends[i]].tokens[..., 1:, :].transpose(-2, -1).unflatten(2, self.grids[i]).contiguous()
            for i in taken
        ]
        return maps if intermediates_only else (last, maps)
