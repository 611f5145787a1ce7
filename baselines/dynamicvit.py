"""DynamicViT (Rao et al. 2021) on DeiT, registered as ``dynamic_deit_*``.

Before blocks 3, 6 and 9 a small predictor scores the tokens. At inference the best of them are
gathered; in training all stay, a sampled decision masks the attention, and
``DynamicViTTask`` drives the kept share to its target.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .dropping import FeatureMaps, TokenDroppingTransformer
from .dynamicvit_layers import DynamicBlock, MaskedAttention, ScorePredictor, sample_keep
from .dynamicvit_task import DynamicViTTask
from .weights import complete_dense, load_exactly, split_weights

__all__ = ["DynamicViTTask", "DynamicVisionTransformer", "load_official"]


class TrainingOutput(NamedTuple):
    """What the task's loss needs of one forward pass in training."""

    logits: Tensor  # (B, num_classes)
    tokens: Tensor  # (B, N, C) normed patches
    kept: Tensor  # (B, N) final decision, 0 or 1, detached
    decisions: tuple[Tensor, ...]  # per stage (B, N), with gradient


class DynamicVisionTransformer(TokenDroppingTransformer):
    """Vision Transformer that drops tokens by predicted scores.

    Args (beside timm's):
        keep_ratio: share of tokens kept per stage; stage i keeps int(N * keep_ratio ** (i + 1)).
        prune_blocks: blocks before which tokens are dropped, counted from 0.
    """

    fresh_keys = ("score_predictor.",)  # that no plain DeiT has
    near_ties = True  # fresh predictors score patches much alike: rounding decides which are kept

    def __init__(
        self, *args: Any, keep_ratio: float = 0.7, prune_blocks: Sequence[int] = (3, 6, 9),
        **kwargs: Any,
    ):  # fmt: skip
        weight_init = kwargs.pop("weight_init", "")
        super().__init__(*args, block_fn=DynamicBlock, attn_layer=MaskedAttention, **kwargs,
                         weight_init="skip")  # fmt: skip
        depth, prune_blocks = len(self.blocks), tuple(prune_blocks)
        if not 0 < keep_ratio < 1:
            raise ValueError(f"keep_ratio={keep_ratio} must lie between 0 and 1")
        if not prune_blocks or list(prune_blocks) != sorted(set(prune_blocks) & set(range(depth))):
            raise ValueError(f"prune_blocks={prune_blocks} must ascend within 0..{depth - 1}")
        self.prune_blocks = prune_blocks
        self.keep_ratios = tuple(keep_ratio ** (i + 1) for i in range(len(prune_blocks)))
        dd = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.score_predictor = nn.ModuleList(ScorePredictor(self.embed_dim, **dd) for _ in prune_blocks)
        self.training_outputs = False
        self._check_grid(self.patch_embed.num_patches)
        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    def _check_grid(self, patches: int) -> None:
        if int(patches * self.keep_ratios[-1]) < 1:
            raise ValueError(
                f"keep_ratio {self.keep_ratios[-1]:.3f} of {patches} patches "
                "keeps none in the last stage: use more patches or a higher keep_ratio"
            )

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        super().set_input_size(*args, **kwargs)
        self._check_grid(self.patch_embed.num_patches)

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True) -> list[int]:
        """Remove what no block up to the last of ``indices`` needs, as timm's method."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        stages = sum(block < len(self.blocks) for block in self.prune_blocks)
        self.prune_blocks = self.prune_blocks[:stages]
        self.keep_ratios = self.keep_ratios[:stages]
        self.score_predictor = self.score_predictor[:stages]
        return taken

    def set_training_outputs(self, enable: bool = True) -> None:
        """Whether a forward pass in training returns a TrainingOutput instead of logits."""
        self.training_outputs = enable

    def load_pretrained_dense(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Load a plain DeiT; returns the keys that start fresh (the predictors').

        Raises:
            ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
        """
        return load_exactly(self, state_dict, fresh=self.fresh_keys)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the authors' weights under our keys."""
        return split_weights(self, state_dict)

    def _embed(self, images: Tensor) -> Tensor:
        x = self.norm_pre(self._pos_embed(self.patch_embed(images)))
        if self.dynamic_img_size:
            self._check_grid(x.shape[1] - 1)
        return x

    def _block(self, index: int, x: Tensor, policy: Tensor | None) -> Tensor:
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        block = self.blocks[index]
        return checkpoint(block, x, policy=policy) if recompute else block(x, policy=policy)

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Images to normed tokens: (B, 1 + N, C) in training, (B, 1 + k, C) at inference."""
        return self._masked(images, maps)[0] if self.training else self._gathered(images, maps)

    def forward(self, x: Tensor, attn_mask=None, is_causal=False) -> Any:
        """Logits (B, num_classes); a TrainingOutput where the task asked for it."""
        if not (self.training and self.training_outputs):
            return self.forward_head(self.forward_features(x, attn_mask, is_causal))
        self.check_inputs(x, attn_mask, is_causal)
        x, decisions = self._masked(x)
        return TrainingOutput(self.forward_head(x), x[:, 1:], decisions[-1].detach(), decisions)

    def _gathered(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Inference: tokens that are not kept leave for good."""
        x = self._embed(images)
        batch, length, channels = x.shape
        first = torch.arange(batch, device=x.device).unsqueeze(1)
        if maps is not None:
            maps.start(x)
        for index in range(len(self.blocks) if maps is None else maps.end):
            if index in self.prune_blocks:
                stage = self.prune_blocks.index(index)
                keep = int((length - 1) * self.keep_ratios[stage])
                kept = self.keep_best(stage, x, keep)
                offset = first * x.shape[1]
                rows = torch.cat((offset, kept + offset + 1), dim=1)
                x = x.flatten(0, 1).index_select(0, rows.flatten()).view(batch, 1 + keep, channels)
                if maps is not None:
                    maps.keep(rows - offset)
            x = self._block(index, x, None)
            if maps is not None:
                maps.record(index, x)
        return self.norm(x)

    def keep_best(self, stage: int, x: Tensor, keep: int) -> Tensor:
        """Positions (B, keep), among the patches of tokens x (B, 1 + n, C), of the best scores."""
        # not x[:, 1:]: torch 2.7 then exports no batch without an upper limit
        ranks = self.score_predictor[stage].rank(x.narrow(1, 1, x.shape[1] - 1))
        return torch.topk(ranks, keep, dim=1, sorted=False).indices

    def _masked(self, images: Tensor, maps: FeatureMaps | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Training: all tokens stay, sampled decisions mask the attention from there on."""
        x = self._embed(images)
        policy, decisions = None, []
        if maps is not None:
            maps.start(x)
        for index in range(len(self.blocks) if maps is None else maps.end):
            if index in self.prune_blocks:
                previous = decisions[-1] if decisions else None
                log_probs = self.score_predictor[len(decisions)](x[:, 1:], previous)
                keep = sample_keep(log_probs)
                decisions.append(keep if previous is None else keep * previous)
                policy = F.pad(decisions[-1], (1, 0), value=1.0)
            x = self._block(index, x, policy)
            if maps is not None:
                maps.record(index, x, None if policy is None else policy > 0.5)
        return self.norm(x), tuple(decisions)


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load the authors' DynamicViT (DeiT) weights, whose key names are ours.

    Raises:
        ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
    """
    load_exactly(model, state_dict)


default_cfgs = generate_default_cfgs(
    {
        "dynamic_deit_tiny_patch16_224": pretrained_cfg(224),
        "dynamic_deit_small_patch16_224": pretrained_cfg(224),
        "dynamic_deit_base_patch16_224": pretrained_cfg(224),
    }
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], sizes: dict) -> nn.Module:
    return create_deit(DynamicVisionTransformer, name, pretrained, kwargs, sizes, complete_dense)


@register_model
def dynamic_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DynamicViT on DeiT-T at 224 px."""
    name = "dynamic_deit_tiny_patch16_224"
    return _create(name, pretrained, kwargs, TINY)


@register_model
def dynamic_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DynamicViT on DeiT-S at 224 px."""
    name = "dynamic_deit_small_patch16_224"
    return _create(name, pretrained, kwargs, SMALL)


@register_model
def dynamic_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DynamicViT on DeiT-B at 224 px."""
    name = "dynamic_deit_base_patch16_224"
    return _create(name, pretrained, kwargs, BASE)
