"""IA-RED2 (Pan et al. 2021, NeurIPS): interpreters that choose, image by image, which patches to keep.

Registered as ``ia_red2_deit_*``. The blocks form three groups; before each, an interpreter scores the
patches by multi-head products with the class token, and those at or below 0.5 are dropped.
``IARED2Task`` trains the interpreters by REINFORCE.

Two sources: the paper, and the model file of the authors' released interpretation tool, which has no training code.
From that file: the groups, LayerNorm without affine, six heads of width C / 6, the mean over heads of
sigmoid(q_class . k * scale), times the previous policy, the threshold, the class token always kept, and the penalty
of 1 for a wrong prediction. Chosen here: learning rate and lengths of the phases; fresh scores are about 0.73, so that
training starts from the dense model; inference gathers what each image keeps and pads to the longest in the
batch, masking the padding. The file also has weights of the groups' rewards (3, 5, 8) and, commented out, a bound on
the sampled probabilities; neither is used here.

Under a plain loss the interpreters get no gradient, since choosing has none: their parameters
require one only after ``set_training_outputs(True)``, which IARED2Task calls. ``keep_profile`` turns
the threshold into fixed counts: throughput without trained weights uses declared ones (``profiles`` of items.yaml).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from evovit.checkpoint import load_exactly
from evovit.task import register_task
from evovit.tokens import take_tokens

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .dropping import ClassTokenTransformer, FeatureMaps, kept_first
from .weights import complete_dense

THRESHOLD = 0.5
FRESH_LOGIT = 1.0  # sigmoid(1) = 0.73: kept by the threshold, dropped now and then by a sample
COUNTS_VARY = (
    "how many patches IA-RED2 keeps depends on the images: build the model with "
    "keep_profile=[0.8, 0.64, 0.512] (a share per group) to export or trace it, or to run it on "
    "the meta device"
)


class Interpreter(nn.Module):
    """Scores (B, N) in (0, 1) of the patches, by their products with the class token."""

    def __init__(self, dim: int, num_heads: int, **dd: Any):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} interpreter heads do not divide the width {dim}")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, **dd)
        self.query = nn.Linear(dim, dim, **dd)
        self.key = nn.Linear(dim, dim, **dd)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights; equal biases make a fresh interpreter keep everything, whatever the image."""
        for linear in (self.query, self.key):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            head_dim = linear.out_features // self.num_heads
            nn.init.constant_(linear.bias, (FRESH_LOGIT / self.scale / head_dim) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, N), in float32 at least, of tokens (B, 1 + N, C), class token first."""
        x = self.norm(x)
        # not x[:, 1:]: torch 2.7 then exports no batch without an upper limit
        query = self.query(x.narrow(1, 0, 1)).unflatten(2, (self.num_heads, -1))
        key = self.key(x.narrow(1, 1, x.shape[1] - 1)).unflatten(2, (self.num_heads, -1))
        logits = (query * key).to(torch.promote_types(x.dtype, torch.float32)).sum(-1)
        return torch.sigmoid(logits * self.scale).mean(-1)


class KeyMaskedAttention(Attention):
    """timm's Attention that can leave out keys; ``keys`` (B, L) is True for those that count."""

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, keys: Tensor | None = None):
        """(B, L, C) -> (B, L, C)."""
        mask = attn_mask if keys is None else keys[:, None, None, :]
        if mask is not None and not self.fused_attn:  # unfused, timm adds the mask to the logits
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -torch.inf)
        return super().forward(x, attn_mask=mask, is_causal=is_causal)


class MaskedBlock(Block):
    """timm's Block whose attention can leave out keys."""

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, keys: Tensor | None = None):
        """(B, L, C) -> (B, L, C)."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask, is_causal, keys)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class PolicyOutput(NamedTuple):
    """What REINFORCE needs of one group's interpreter; B images of N patches."""

    log_prob: Tensor  # (B,) of the sampled policy, sum over the patches present
    sampled: Tensor  # (B, N) which patches the sample keeps
    greedy: Tensor  # (B, N) which patches the threshold keeps
    sampled_logits: Tensor  # (B, num_classes), without gradient
    greedy_logits: Tensor


class InterpretedVisionTransformer(ClassTokenTransformer):
    """Vision Transformer with an interpreter before each group of blocks.

    Args (in addition to timm's):
        groups: blocks per group.
        interpreter_heads: heads of each interpreter.
        keep_profile: share of all patches that each group keeps, the best of each image, instead
            of all above the threshold; None: the threshold.

    Raises:
        ValueError: for groups that do not add up to the blocks, or a profile that rises or leaves nothing.
    """

    fresh_keys = ("interpreters.",)
    cost_varies = True  # from image to image

    def __init__(
        self,
        *args: Any,
        groups: Sequence[int] | None = None,
        interpreter_heads: int = 6,
        keep_profile: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, block_fn=MaskedBlock, attn_layer=KeyMaskedAttention, **kwargs)
        depth = len(self.blocks)
        self.groups = tuple(groups or [depth // 3, depth // 3, depth - 2 * (depth // 3)])
        if sum(self.groups) != depth or min(self.groups) < 1:
            raise ValueError(f"groups={self.groups} must be positive and make up {depth} blocks")
        if keep_profile is not None:
            falling = all(a >= b for a, b in zip((1.0, *keep_profile), keep_profile, strict=False))
            if len(keep_profile) != len(self.groups) or not falling or min(keep_profile) <= 0:
                raise ValueError(f"keep_profile={keep_profile} must hold a share per group, none above the last")
        self.keep_profile = keep_profile
        self.acting: int | None = None  # how many groups' interpreters act, from the first; None: all
        self.exploring = False  # in training: sample the last of them
        dd = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.interpreters = nn.ModuleList(Interpreter(self.embed_dim, interpreter_heads, **dd) for _ in self.groups)
        self.set_training_outputs(False)

    def set_training_outputs(self, enable: bool = True) -> None:
        """Set whether the interpreters' parameters require a gradient, which REINFORCE gives."""
        self.interpreters.requires_grad_(enable)

    def forward(self, x: Tensor, attn_mask=None, is_causal=False) -> Any:
        """Return logits (B, num_classes); while exploring in training a PolicyOutput."""
        if self.training and self.exploring:
            self.check_inputs(x, attn_mask, is_causal)
            return self.explore(x)
        return self.forward_head(self.forward_features(x, attn_mask, is_causal))

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return normed tokens of images: in training all, (B, 1 + N, C); after it the class token and what
        is kept, padded to the longest image, (B, 1 + n, C)."""
        return self.masked(images, maps) if self.training else self.gathered(images, maps)[0]

    def run_group(self, group: int, x: Tensor, keys: Tensor | None, maps: FeatureMaps | None = None) -> Tensor:
        """Run the blocks of a group on (B, L, C); keys (B, L) or None, where all count."""
        first = sum(self.groups[:group])
        end = first + self.groups[group]
        for index in range(first, end if maps is None else min(end, maps.end)):
            x = self.run_block(index, x, maps, keys, keys=keys)
        return x

    def acts(self, group: int) -> bool:
        """Return whether the group's interpreter decides; else the patches of the group before stay."""
        return self.acting is None or group < self.acting

    def choose(self, group: int, scores: Tensor, kept: Tensor) -> Tensor:
        """Return which patches (B, N) are kept by the scores (B, N) of a group, of those kept before."""
        if self.keep_profile is None:
            return (scores > THRESHOLD) & kept
        best = self._best(group, scores.masked_fill(~kept, -1.0), scores.shape[1])
        return torch.zeros_like(kept).scatter(1, best, True)

    def _best(self, group: int, scores: Tensor, total: int) -> Tensor:
        """Return positions (B, k), in raster order, of the best scores (B, n) by the profile's share."""
        count = max(1, int(self.keep_profile[group] * total))
        return scores.topk(count, dim=1, sorted=False).indices.sort(dim=1).values

    def gathered(self, images: Tensor, maps: FeatureMaps | None = None) -> tuple[Tensor, list[Tensor]]:
        """Run only kept tokens through the blocks; return normed tokens, and per group their counts (B,).

        Raises:
            NotImplementedError: without ``keep_profile``, where the number of tokens has to be
                known before the images are: in an export or a trace, or on the meta device.
        """
        x = self.embed(images, maps)
        counts: list[Tensor] = []
        patches = x.shape[1] - 1
        valid = torch.ones(x.shape[0], patches, dtype=torch.bool, device=x.device)
        keys = None
        for group, interpreter in enumerate(self.interpreters):
            if not self.acts(group):
                counts.append(counts[-1] if counts else valid.sum(1))
                x = self.run_group(group, x, keys, maps)
                continue
            scores, keys = interpreter(x), None
            if self.keep_profile is None:
                valid = self.choose(group, scores, valid)
                count = valid.sum(1)
                kept = kept_first(valid, count, COUNTS_VARY)
                valid = valid.gather(1, kept)
                if bool((count < kept.shape[1]).any()):
                    keys = with_class(valid)
            else:
                kept = self._best(group, scores, patches)
                count = kept.new_full((kept.shape[0],), kept.shape[1])  # not len(), which fixes an export's batch
            counts.append(count)
            x = take_tokens(x, kept)
            if maps is not None:
                maps.keep(kept)
            x = self.run_group(group, x, keys, maps)
        return self.norm(x), counts

    def masked(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return normed tokens (B, 1 + N, C), dropped ones left out as keys: fixed shapes."""
        x = self.embed(images, maps)
        kept = torch.ones(x.shape[0], x.shape[1] - 1, dtype=torch.bool, device=x.device)
        for group, interpreter in enumerate(self.interpreters):
            if self.acts(group):
                kept = self.choose(group, interpreter(x), kept)
            x = self.run_group(group, x, with_class(kept), maps)
        return self.norm(x)

    def explore(self, images: Tensor) -> PolicyOutput:
        """Sample the policy of the last acting group; only its interpreter gets a gradient."""
        last = self.acting - 1
        with torch.no_grad():
            x = self.embed(images)
            kept = torch.ones(x.shape[0], x.shape[1] - 1, dtype=torch.bool, device=x.device)
            for group in range(last):
                kept = self.choose(group, self.interpreters[group](x), kept)
                x = self.run_group(group, x, with_class(kept))
        scores = self.interpreters[last](x)
        sampled = torch.bernoulli(scores.detach()).bool() & kept
        greedy = self.choose(last, scores.detach(), kept)
        log_prob = torch.where(sampled, scores, 1 - scores).clamp_min(1e-6).log()
        logits = []
        with torch.no_grad():
            for policy in (sampled, greedy):
                rest = x
                for group in range(last, len(self.groups)):
                    rest = self.run_group(group, rest, with_class(policy))
                logits.append(self.forward_head(self.norm(rest)))
        return PolicyOutput((log_prob * kept).sum(1), sampled, greedy, *logits)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the authors' weights under our keys.

        Their agents have one layer for query, key and an unused value; their groups name all blocks once more.

        Raises:
            ValueError: for a block whose two copies differ.
        """
        renamed = {}
        for key, value in state_dict.items():
            if match := re.fullmatch(r"groups\.(\d+)\.agent\.qk\.(weight|bias)", key):
                group, name = match.groups()
                query, key_part, _ = value.chunk(3)
                renamed[f"interpreters.{group}.query.{name}"] = query
                renamed[f"interpreters.{group}.key.{name}"] = key_part
            elif match := re.fullmatch(r"groups\.(\d+)\.block_list\.(\d+)\.(.+)", key):
                block = sum(self.groups[: int(match[1])]) + int(match[2])
                twin = state_dict.get(f"blocks.{block}.{match[3]}")
                if twin is None or not torch.equal(value, twin):
                    raise ValueError(f"the state dict does not fit: {key} differs from blocks.{block}.{match[3]}")
            else:
                renamed[key] = value
        return renamed

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True) -> list[int]:
        """Remove what no block up to the last of ``indices`` needs, as timm's method."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        groups, rest = [], len(self.blocks)
        for count in self.groups:
            if rest > 0:
                groups.append(min(count, rest))
            rest -= count
        self.groups = tuple(groups)
        self.interpreters = self.interpreters[: len(groups)]
        return taken


def with_class(kept: Tensor, prefix: int = 1) -> Tensor:
    """Return keys (B, P + N) from kept patches (B, N): the P tokens before them always count."""
    return F.pad(kept, (prefix, 0), value=True)


def load_official(model: InterpretedVisionTransformer, weights: Mapping[str, Tensor]) -> None:
    """Load weights with the key names of the authors' interpretation tool.

    Raises:
        ValueError: listing every missing, unexpected or misshapen key, and for blocks that are there twice and
            differ; nothing is loaded then.
    """
    load_exactly(model, model.from_official(weights))


@register_task("ia_red2")
class IARED2Task(ClassificationTask):
    """Classification and policy learning, group by group (the curriculum).

    The training is cut into one part per group of blocks. In its first half the group's
    interpreter learns by REINFORCE while all else is frozen, from images that are not mixed, as a reward needs one
    right answer per image; in its second half the backbone learns to classify what the interpreters so far leave,
    with mixup and cutmix as DeiT does. Later interpreters do not act yet.

    Args (in addition to ClassificationTask's):
        tau: penalty for a wrong prediction; 1 in the authors' interpretation tool (``error_penalty=-1``).

    Raises:
        ValueError: for a model without interpreters, or one with a fixed keep_profile.
    """

    mixes_images = True  # in the fine-tuning halves

    def __init__(self, model: nn.Module, *args: Any, tau: float = 1.0, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        inner = unwrap_model(model)
        if not isinstance(inner, InterpretedVisionTransformer):
            raise ValueError(f"{type(inner).__name__} has no interpreters to train")
        if inner.keep_profile is not None:
            raise ValueError("keep_profile fixes what is kept: leave it out to train the policies")
        self.tau = tau
        inner.set_training_outputs(True)  # before the optimizer and DDP look for parameters

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any):
        """Wrap in DDP, which must not wait for gradients of frozen parameters."""
        ddp_kwargs = {"find_unused_parameters": True, **ddp_kwargs}
        return super().prepare_distributed(device_ids, **ddp_kwargs)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Choose what learns in ``epoch`` (from 0) of ``epochs``; call it also after a resume.

        Frozen parameters get no gradient at all, so the optimizer does not change them.
        """
        model = unwrap_model(self.trainable_module)
        half = 2 * len(model.groups) * epoch // epochs
        group = half // 2
        model.acting = group + 1
        if self.has_ema():
            unwrap_model(self.get_trainable_module(ema=True)).acting = group + 1
        model.exploring = half % 2 == 0
        self.mixes_images = not model.exploring
        for name, parameter in model.named_parameters():
            if model.exploring:
                learns = name.startswith(f"interpreters.{group}.")
            else:
                learns = not name.startswith("interpreters.")
            parameter.requires_grad_(learns)

    def unreached(self, epochs: int) -> list[str]:
        """Return a sentence if a training of ``epochs`` is too short for every group's two phases."""
        phases = 2 * len(unwrap_model(self.trainable_module).groups)
        reached = len({phases * epoch // epochs for epoch in range(epochs)})
        if reached == phases:
            return []
        return [f"A training of {epochs} epochs comes to {reached} of IA-RED2's {phases} phases."]

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss and the logits (B, num_classes) of images (B, 3, H, W); while the model explores,
        also the reward and the kept share."""
        output = self.trainable_module(input)
        if not isinstance(output, PolicyOutput):
            return {"loss": self.criterion(output, target), "output": output}
        labels = target.argmax(-1) if target.ndim > 1 else target
        sampled = self.reward(output.sampled, output.sampled_logits, labels)
        greedy = self.reward(output.greedy, output.greedy_logits, labels)
        return {
            "loss": -((sampled - greedy) * output.log_prob).mean(),
            "output": output.greedy_logits,
            "reward": greedy.mean(),
            "kept_share": output.greedy.float().mean(),
        }

    def reward(self, kept: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return 1 - (kept share)^2 (B,) where the prediction is right, else -tau."""
        share = kept.float().mean(1)
        right = logits.argmax(-1) == labels
        return torch.where(right, 1 - share.square(), -self.tau)


default_cfgs = generate_default_cfgs(
    {
        "ia_red2_deit_tiny_patch16_224": pretrained_cfg(224),
        "ia_red2_deit_small_patch16_224": pretrained_cfg(224),
        "ia_red2_deit_base_patch16_224": pretrained_cfg(224),
        "ia_red2_deit_base_patch16_384": pretrained_cfg(384),
    }
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], sizes: dict[str, Any]) -> nn.Module:
    return create_deit(InterpretedVisionTransformer, name, pretrained, kwargs, sizes, complete_dense)


@register_model
def ia_red2_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> InterpretedVisionTransformer:
    """DeiT-T with interpreters."""
    return _create("ia_red2_deit_tiny_patch16_224", pretrained, kwargs, TINY)


@register_model
def ia_red2_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> InterpretedVisionTransformer:
    """DeiT-S with interpreters."""
    return _create("ia_red2_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def ia_red2_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> InterpretedVisionTransformer:
    """DeiT-B with interpreters."""
    return _create("ia_red2_deit_base_patch16_224", pretrained, kwargs, BASE)


@register_model
def ia_red2_deit_base_patch16_384(pretrained: bool = False, **kwargs: Any) -> InterpretedVisionTransformer:
    """DeiT-B at 384 px with interpreters."""
    return _create("ia_red2_deit_base_patch16_384", pretrained, kwargs, BASE)
