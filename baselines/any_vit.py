"""The baselines that need no training, on any timm Vision Transformer: ``baselines.from_timm``.

For example:

    model = timm.create_model("deit_small_patch16_224.fb_in1k", pretrained=True)
    fast = baselines.from_timm(model, "tome", r=13)
    dense = baselines.to_dense(fast)
"""

from typing import Any

from torch import nn

from evovit.conversion import check_host, convert, to_dense
from evovit.options import did_you_mean

from .ats import AdaptiveSamplingVisionTransformer
from .dpcknn import ClusteringVisionTransformer
from .dropping import AnyHostTransformer
from .evit import ReorganizingVisionTransformer
from .tome import MergingVisionTransformer
from .topk import RandomVisionTransformer, TopKVisionTransformer

__all__ = ["METHODS", "from_timm", "to_dense"]

METHODS: dict[str, type[AnyHostTransformer]] = {
    "evit": ReorganizingVisionTransformer,
    "tome": MergingVisionTransformer,
    "topk": TopKVisionTransformer,
    "random": RandomVisionTransformer,
    "ats": AdaptiveSamplingVisionTransformer,
    "dpcknn": ClusteringVisionTransformer,
}


def from_timm(model: nn.Module, method: str, **keywords: Any) -> AnyHostTransformer:
    """Return a model that reduces the tokens of a timm Vision Transformer by a method, without a training.

    It shares the parameters and buffers of ``model``, which stays as it is, and has its mode, dtype, device and state
    dict; "dpcknn" adds its own ``cluster_layers``, which let all patches count alike until they are trained. Register
    tokens are treated as the class token is: they are never dropped or merged.

    The host's own pooling and head predict. A host with global_pool="avg" predicts from the mean of the patches that
    remain, and "map" from attention pooling over them. Where patches were merged ("tome", "dpcknn"), a token counts
    once for each of its patches; EViT's fused token counts once.

    Args:
        model: a timm VisionTransformer with a class token and timm's own blocks.
        method: "evit", "tome", "topk", "random", "ats" or "dpcknn".
        keywords: the method's, see ``configure`` of its class and docs/switches.md. ``reduction_blocks`` are by
            default those at a quarter, half and three quarters of the depth: (3, 6, 9) of 12.

    Raises:
        ValueError: for an unknown method, for a model that is no host, with the reason and what would work, and for
            keywords that make no sense.
    """
    if method not in METHODS:
        if str(method).casefold().startswith("evo"):
            raise ValueError(f"method={method!r} is no baseline: call evovit.from_timm(model, keep_ratio=0.7)")
        remedy = did_you_mean(method, METHODS) or (
            "; the other methods make weights of their own, so build and train their registered models, such as "
            "dynamic_deit_small_patch16_224"
        )
        raise ValueError(f"method={method!r} is not one of {', '.join(METHODS)}{remedy}")
    model_cls = METHODS[method]
    check_host(model, f"a {method} model")
    reduced = convert(model, model_cls, model_cls.block_cls, model_cls.attn_cls)
    reduced.configure_host(keywords)
    return reduced
