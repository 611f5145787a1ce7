"""DynamicViT (Rao et al. 2021, NeurIPS) on DeiT, registered as ``dynamic_deit_*``.

Before blocks 3, 6 and 9 a small predictor scores the tokens. At inference the best of them are
gathered. In training all tokens stay, a sampled decision masks the attention, and ``DynamicViTTask``
drives the kept share to its target.
"""

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
from evovit.options import is_number
from evovit.task import register_task
from evovit.tokens import take_tokens

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .dropping import ClassTokenTransformer, FeatureMaps, check_reduction_blocks
from .weights import SplitsWeights, complete_dense, split_weights

NEVER_TRAINED = ("cls_token", "pos_embed")  # parameters that the authors' optimizer leaves out


class ScorePredictor(SplitsWeights):
    """Log-probabilities of keeping and of dropping each token, from local and global features.

    The authors' first layer of ``out_conv`` reads both halves of the features. The global half is
    the same for all tokens of an image, so a layer of its own multiplies it once.
    """

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        norm = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.in_conv = nn.Sequential(norm, nn.Linear(dim, dim, **dd), nn.GELU())
        self.half = dim // 2
        self.out_local = nn.Linear(dim // 2, dim // 2, bias=False, **dd)
        self.out_global = nn.Linear(dim - dim // 2, dim // 2, **dd)
        self.out_conv = nn.Sequential(  # numbered as the authors' layers
            nn.Identity(),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4, **dd),
            nn.GELU(),
            nn.Linear(dim // 4, 2, **dd),
        )

    def forward(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        """Return log-probabilities (B, n, 2) of patches (B, n, C).

        Args:
            policy: 1 for the patches that are still kept, 0 for the others (B, n); None: all are.
        """
        return self.logits(x, policy).log_softmax(dim=-1)

    def rank(self, x: Tensor) -> Tensor:
        """Return numbers (B, n), in float32 at least, in the order of the scores of patches (B, n, C).

        The scores of a fresh predictor differ by less than float32 resolves in a log-probability, so
        that rounding, which differs between devices and exported models, would decide.
        """
        keep, drop = self.logits(x).to(torch.promote_types(x.dtype, torch.float32)).unbind(-1)
        return keep - drop

    def logits(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        """Return the logits (B, n, 2) of the two probabilities, from the arguments of ``forward``."""
        x = self.in_conv(x)
        local, shared = x[..., : self.half], x[..., self.half :]
        if policy is None:
            shared = shared.mean(dim=1)
        else:
            mask = policy.unsqueeze(-1)
            # of an image with few tokens the samples may drop all: their mean is then 0, not NaN
            shared = (shared * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(0.5)
        x = self.out_local(local) + self.out_global(shared).unsqueeze(1)
        return self.out_conv(x)

    @staticmethod
    def split(state_dict: dict[str, Tensor], prefix: str) -> None:
        """Replace the weight of the authors' first layer by those of the two halves."""
        if f"{prefix}out_conv.0.weight" in state_dict:
            weight = state_dict.pop(f"{prefix}out_conv.0.weight")
            local, shared = weight.tensor_split((weight.shape[1] // 2,), dim=1)
            state_dict[f"{prefix}out_local.weight"] = local
            state_dict[f"{prefix}out_global.weight"] = shared
        if f"{prefix}out_conv.0.bias" in state_dict:
            state_dict[f"{prefix}out_global.bias"] = state_dict.pop(f"{prefix}out_conv.0.bias")

    @staticmethod
    def join(state_dict: dict[str, Tensor], prefix: str) -> None:
        """Replace the weights of the two halves by that of the authors' first layer."""
        halves = [state_dict.pop(f"{prefix}{name}.weight") for name in ("out_local", "out_global")]
        state_dict[f"{prefix}out_conv.0.weight"] = torch.cat(halves, dim=1)
        state_dict[f"{prefix}out_conv.0.bias"] = state_dict.pop(f"{prefix}out_global.bias")


def sample_keep(log_probs: Tensor) -> Tensor:
    """Sample decisions (B, n) from (B, n, 2): Gumbel-softmax (tau 1), hard, straight-through."""
    soft = (log_probs + sample_gumbel(log_probs)).softmax(dim=-1)[..., 0]
    return (soft > 0.5).to(soft.dtype) - soft.detach() + soft


def sample_gumbel(like: Tensor) -> Tensor:
    """Sample standard Gumbel noise in the shape of ``like``, from torch's global generator."""
    return -torch.empty_like(like).exponential_().log()


class MaskedAttention(Attention):
    """timm's Attention; ``policy`` masks keys with a softmax that lets its gradient through."""

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, policy: Tensor | None = None):
        """(B, L, C) -> (B, L, C); policy (B, L): 1 for kept tokens, 0 for the others."""
        if policy is None:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        attn = masked_softmax((q * self.scale) @ k.transpose(-2, -1), policy)
        out = (self.attn_drop(attn.to(v.dtype)) @ v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(out)))


def masked_softmax(logits: Tensor, policy: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the softmax of (B, H, L, L) over kept keys and each token itself, in float32.

    Self-attention is always allowed, so that no row is empty. The maximum is taken over all keys,
    dropped ones too: it only guards the exponential.
    """
    length = logits.shape[-1]
    itself = torch.eye(length, dtype=policy.dtype, device=policy.device)
    allowed = policy[:, None, None, :]
    allowed = allowed + (1 - allowed) * itself
    logits = logits - logits.amax(dim=-1, keepdim=True)
    weights = logits.float().exp() * allowed.float()
    return (weights + eps / length) / (weights.sum(dim=-1, keepdim=True) + eps)


class DynamicBlock(Block):
    """timm's Block with a ``policy`` for its attention."""

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, policy: Tensor | None = None):
        """(B, L, C) -> (B, L, C); policy (B, L) or None."""
        if policy is None:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), policy=policy)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class TrainingOutput(NamedTuple):
    """What the task's loss needs of one forward pass in training."""

    logits: Tensor  # (B, num_classes)
    tokens: Tensor  # (B, N, C) normed patches
    kept: Tensor  # (B, N) final decision, 0 or 1, detached
    decisions: tuple[Tensor, ...]  # per stage (B, N), with gradient


class DynamicVisionTransformer(ClassTokenTransformer):
    """Vision Transformer that drops tokens by predicted scores.

    Args (in addition to timm's):
        keep_ratio: share of tokens kept per stage; stage i keeps int(N * keep_ratio ** (i + 1)).
        reduction_blocks: blocks before which tokens are dropped, counted from 0; None: those at a quarter, half and
            three quarters of the depth.

    Raises:
        ValueError: for a ratio outside (0, 1) or one that keeps no patch, for blocks that do not ascend, and for
            ``prune_blocks``, the old name of ``reduction_blocks``.
    """

    fresh_keys = ("score_predictor.",)
    near_ties = True  # fresh predictors score patches much alike: rounding decides which are kept

    def __init__(
        self, *args: Any, keep_ratio: float = 0.7, reduction_blocks: Sequence[int] | None = None, **kwargs: Any
    ):
        if "prune_blocks" in kwargs:
            raise ValueError(
                "the keyword prune_blocks is called reduction_blocks now: write "
                f"reduction_blocks={kwargs['prune_blocks']!r}"
            )
        weight_init = kwargs.pop("weight_init", "")
        layers = dict(block_fn=DynamicBlock, attn_layer=MaskedAttention)
        super().__init__(*args, **layers, **kwargs, weight_init="skip")
        if not is_number(keep_ratio) or not 0 < keep_ratio < 1:
            raise ValueError(f"keep_ratio={keep_ratio!r} must be a number between 0 and 1")
        self.reduction_blocks = reduction_blocks = check_reduction_blocks(reduction_blocks, len(self.blocks))
        self.keep_ratios = tuple(keep_ratio ** (i + 1) for i in range(len(reduction_blocks)))
        dd = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.score_predictor = nn.ModuleList(ScorePredictor(self.embed_dim, **dd) for _ in reduction_blocks)
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

    def set_training_outputs(self, enable: bool = True) -> None:
        """Set whether a forward pass in training returns a TrainingOutput instead of logits."""
        self.training_outputs = enable

    def forward(self, x: Tensor, attn_mask=None, is_causal=False) -> Any:
        """Return logits (B, num_classes); a TrainingOutput in training if the task asked for it."""
        if not (self.training and self.training_outputs):
            return self.forward_head(self.forward_features(x, attn_mask, is_causal))
        self.check_inputs(x, attn_mask, is_causal)
        x, decisions = self.masked(x)
        return TrainingOutput(self.forward_head(x), x[:, 1:], decisions[-1].detach(), decisions)

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return the normed tokens of images: (B, 1 + N, C) in training, (B, 1 + k, C) at inference."""
        return self.masked(images, maps)[0] if self.training else self.gathered(images, maps)

    def embed(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return the tokens (B, 1 + N, C) of images (B, 3, H, W) before the first block."""
        x = super().embed(images, maps)
        if self.dynamic_img_size:
            self._check_grid(x.shape[1] - 1)
        return x

    def gathered(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return the normed tokens (B, 1 + k, C) at inference: dropped tokens leave for good."""
        x = self.embed(images, maps)
        patches = x.shape[1] - 1
        for index in range(len(self.blocks) if maps is None else maps.end):
            if index in self.reduction_blocks:
                stage = self.reduction_blocks.index(index)
                kept = self.keep_best(stage, x, int(patches * self.keep_ratios[stage]))
                x = take_tokens(x, kept)
                if maps is not None:
                    maps.keep(kept)
            x = self.run_block(index, x, maps)
        return self.norm(x)

    def keep_best(self, stage: int, x: Tensor, keep: int) -> Tensor:
        """Return positions (B, keep), among the patches of tokens x (B, 1 + n, C), of the best scores."""
        # not x[:, 1:]: torch 2.7 then exports no batch without an upper limit
        ranks = self.score_predictor[stage].rank(x.narrow(1, 1, x.shape[1] - 1))
        return torch.topk(ranks, keep, dim=1, sorted=False).indices

    def masked(self, images: Tensor, maps: FeatureMaps | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the normed tokens (B, 1 + N, C) in training, and the decisions (B, N) of each stage.

        All tokens stay; each sampled decision masks the attention from its block on.
        """
        x = self.embed(images, maps)
        policy = None
        valid = None
        decisions: list[Tensor] = []
        for index in range(len(self.blocks) if maps is None else maps.end):
            if index in self.reduction_blocks:
                previous = decisions[-1] if decisions else None
                log_probs = self.score_predictor[len(decisions)](x[:, 1:], previous)
                keep = sample_keep(log_probs)
                decisions.append(keep if previous is None else keep * previous)
                policy = F.pad(decisions[-1], (1, 0), value=1.0)
                valid = policy > 0.5
            x = self.run_block(index, x, maps, valid, policy=policy)
        return self.norm(x), tuple(decisions)

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Change the image size, as timm's method.

        Raises:
            ValueError: for a grid so small that the last stage would keep no patch.
        """
        super().set_input_size(*args, **kwargs)
        self._check_grid(self.patch_embed.num_patches)

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True) -> list[int]:
        """Remove what no block up to the last of ``indices`` needs, as timm's method."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        stages = sum(block < len(self.blocks) for block in self.reduction_blocks)
        self.reduction_blocks = self.reduction_blocks[:stages]
        self.keep_ratios = self.keep_ratios[:stages]
        self.score_predictor = self.score_predictor[:stages]
        return taken

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the authors' weights under our keys."""
        return split_weights(self, state_dict)


def load_official(model: DynamicVisionTransformer, state_dict: Mapping[str, Tensor]) -> None:
    """Load the authors' DynamicViT (DeiT) weights.

    Raises:
        ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
    """
    load_exactly(model, model.from_official(state_dict))


@register_task("dynamicvit")
class DynamicViTTask(ClassificationTask):
    """The four losses of DynamicViT, and a slow backbone that is frozen at first.

    As in the authors' code the class token and the position embedding are never trained.

    Args (in addition to ClassificationTask's):
        teacher: the dense model, frozen, in evaluation mode; anything with timm's
            ``forward_features`` (B, 1 + N, C) and ``forward_head``. None: nobody teaches.
        ratio_weight: of the squared distance of the kept share from its target, mean over stages.
        distill_weight: of the Kullback-Leibler divergence to the teacher's prediction.
        token_weight: of the mean squared distance of the kept tokens to the teacher's.
        backbone_lr_scale: learning rate of all but the predictors, relative to theirs.
        freeze_epochs: first epochs in which only the predictors learn.

    Raises:
        ValueError: for weights of a teacher's losses without a teacher.
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        teacher: nn.Module | None = None,
        ratio_weight: float = 2.0,
        distill_weight: float = 0.5,
        token_weight: float = 0.5,
        backbone_lr_scale: float = 0.01,
        freeze_epochs: int = 5,
        **kwargs: Any,
    ):
        super().__init__(model, *args, **kwargs)
        if teacher is None and (distill_weight or token_weight):
            raise ValueError(
                f"distill_weight={distill_weight} and token_weight={token_weight} need a teacher: give the row one "
                "(`teacher`), or set both to 0"
            )
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.ratio_weight = ratio_weight
        self.distill_weight = distill_weight
        self.token_weight = token_weight
        self.backbone_lr_scale = backbone_lr_scale
        self.freeze_epochs = freeze_epochs
        inner = unwrap_model(model)
        inner.set_training_outputs(True)
        for name, parameter in inner.named_parameters():
            if name in NEVER_TRAINED:  # here, before DDP, which must not wait for their gradients
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "DynamicViTTask":
        """Set training mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any):
        """Wrap in DDP, which must not wait for gradients of a frozen backbone."""
        if self.freeze_epochs:
            ddp_kwargs = {"find_unused_parameters": True, **ddp_kwargs}
        return super().prepare_distributed(device_ids, **ddp_kwargs)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze or free the backbone for ``epoch`` (from 0); call it also after a resume.

        Frozen parameters get no gradient at all, so the optimizer does not change them, weight decay
        included. Not done at construction: DDP would never learn of them.
        """
        for _, parameter in self._backbone():
            parameter.requires_grad_(epoch >= self.freeze_epochs)

    def unreached(self, epochs: int) -> list[str]:
        """Return a sentence if the backbone is frozen in all ``epochs``."""
        if self.freeze_epochs < epochs:
            return []
        return [f"A training of {epochs} epochs never trains the backbone: freeze_epochs is {self.freeze_epochs}."]

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return parameter groups with timm's ``lr_scale``: predictors 1, backbone ``backbone_lr_scale``.

        Biases, norms and what the model names in ``no_weight_decay`` do not decay.
        """
        exempt = unwrap_model(self.trainable_module).no_weight_decay()
        groups = []
        for named, scale in ((self._predictors(), 1.0), (self._backbone(), self.backbone_lr_scale)):
            for decayed in (True, False):
                parameters = [p for n, p in named if (p.ndim > 1 and n not in exempt) is decayed]
                decay = weight_decay if decayed else 0.0
                groups.append(dict(params=parameters, weight_decay=decay, lr_scale=scale))
        return [group for group in groups if group["params"]]

    def _predictors(self) -> list[tuple[str, Tensor]]:
        return [(name, parameter) for name, parameter in self._trained() if name.startswith("score_predictor.")]

    def _backbone(self) -> list[tuple[str, Tensor]]:
        return [(name, parameter) for name, parameter in self._trained() if not name.startswith("score_predictor.")]

    def _trained(self) -> list[tuple[str, Tensor]]:
        named = unwrap_model(self.trainable_module).named_parameters()
        return [(name, parameter) for name, parameter in named if name not in NEVER_TRAINED]

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss, its four terms and the logits (B, num_classes) of images (B, 3, H, W)."""
        output = self.trainable_module(input)
        keep_ratios = unwrap_model(self.trainable_module).keep_ratios
        class_loss = self.criterion(output.logits, target)
        ratio = ratio_loss(output.decisions, keep_ratios)
        losses = {
            "loss": class_loss + self.ratio_weight * ratio,
            "output": output.logits,
            "class_loss": class_loss.detach(),
            "ratio_loss": ratio.detach(),
            "kept_share": output.kept.mean(),
        }
        if self.teacher is None:
            return losses
        with torch.no_grad():
            features = self.teacher.forward_features(input)
            teacher_logits = self.teacher.forward_head(features)
        distill = F.kl_div(
            output.logits.log_softmax(-1), teacher_logits.log_softmax(-1), reduction="batchmean", log_target=True
        )
        token = token_loss(output.tokens, features[:, 1:], output.kept)
        losses["loss"] = losses["loss"] + self.distill_weight * distill + self.token_weight * token
        losses["distill_loss"] = distill.detach()
        losses["token_loss"] = token.detach()
        return losses


def ratio_loss(decisions: tuple[Tensor, ...], targets: tuple[float, ...]) -> Tensor:
    """Return the mean over stages and images of (kept share - target)^2; decisions (B, N)."""
    parts = [(stage.mean(dim=1) - target).square().mean() for stage, target in zip(decisions, targets, strict=True)]
    return torch.stack(parts).mean()


def token_loss(tokens: Tensor, teacher_tokens: Tensor, kept: Tensor) -> Tensor:
    """Return the mean squared distance of the kept tokens (B, N, C) to the teacher's; 0 if none is kept."""
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    distance = (tokens.to(dtype) - teacher_tokens.to(dtype)).square().mean(dim=-1)
    return (distance * kept).sum() / kept.sum().clamp_min(1)


default_cfgs = generate_default_cfgs(
    {
        "dynamic_deit_tiny_patch16_224": pretrained_cfg(224),
        "dynamic_deit_small_patch16_224": pretrained_cfg(224),
        "dynamic_deit_base_patch16_224": pretrained_cfg(224),
    }
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], sizes: dict[str, Any]) -> nn.Module:
    return create_deit(DynamicVisionTransformer, name, pretrained, kwargs, sizes, complete_dense)


@register_model
def dynamic_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> DynamicVisionTransformer:
    """DynamicViT on DeiT-T at 224 px."""
    return _create("dynamic_deit_tiny_patch16_224", pretrained, kwargs, TINY)


@register_model
def dynamic_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> DynamicVisionTransformer:
    """DynamicViT on DeiT-S at 224 px."""
    return _create("dynamic_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def dynamic_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> DynamicVisionTransformer:
    """DynamicViT on DeiT-B at 224 px."""
    return _create("dynamic_deit_base_patch16_224", pretrained, kwargs, BASE)
