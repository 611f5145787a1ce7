"""What models that rank patches inside their blocks keep, compared with reference numbers."""

from typing import NamedTuple

import torch
from torch.testing import assert_close


class Watched(NamedTuple):
    """One forward pass."""

    logits: torch.Tensor
    after: list[torch.Tensor]  # tokens (B, 1 + n, C) after each block
    kept: list[torch.Tensor]  # for each selection the positions (B, k) among the tokens that entered the block
    attention: list[torch.Tensor]  # for each selection the class attention (B, n) that it was made by
    blocks: list[int]  # in which a selection was made


def watch(model, images):
    after, kept, attention, blocks = [], [], [], []

    def of_block(block, inputs, output):
        if isinstance(output, tuple):
            output, positions = output
            kept.append(positions)
            blocks.append(len(after))
        after.append(output)

    def of_attention(layer, inputs, output):
        if isinstance(output, tuple):
            attention.append(output[1].mean(1)[:, 1:])

    hooks = [block.register_forward_hook(of_block) for block in model.blocks]
    hooks += [block.attn.register_forward_hook(of_attention) for block in model.blocks]
    logits = model(images)
    for hook in hooks:
        hook.remove()
    return Watched(logits, after, kept, attention, blocks)


def ids_kept(kept, patches, fuses):
    """For each selection the ids (B, k) in the order of ``kept``; the j-th fused token has the id patches + j."""
    ids = torch.arange(patches).expand(len(kept[0]), -1)
    selections = []
    for number, positions in enumerate(kept):
        ids = ids.gather(1, positions)
        selections.append(ids)
        if fuses:
            ids = torch.nn.functional.pad(ids, (0, 1), value=patches + number)
    return selections


def check_selections(seen, expected, patches, fuses, prefix=""):
    """Check the sets that were kept, and where the numbers have it the class attention behind them."""
    selections = ids_kept(seen.kept, patches, fuses)
    assert len(selections) == sum(name.startswith(f"{prefix}kept_") and "order" not in name for name in expected)
    present = torch.arange(patches).expand(len(seen.logits), -1)
    for number, ids in enumerate(selections):
        assert torch.equal(ids.sort(dim=1).values, torch.tensor(expected[f"{prefix}kept_{number}"]).long())
        if not prefix:
            theirs = torch.tensor(expected[f"cls_attn_{number}"])
            ours = torch.full_like(theirs, torch.nan).scatter(1, present, seen.attention[number])
            assert_close(ours, theirs, rtol=0, atol=1e-10, equal_nan=True)
        present = torch.nn.functional.pad(ids, (0, 1), value=patches + number) if fuses else ids


def check_training(model, seen, about, expected, prefix="train_", gradients="train_grad_norms"):
    """Check the logits of a pass in training, its loss, and the norms of all gradients."""
    near = dict(rtol=0, atol=1e-10)
    assert_close(seen.logits, torch.tensor(expected[f"{prefix}logits"]), **near)
    loss = torch.nn.functional.cross_entropy(seen.logits, torch.tensor(about["train_labels"]))
    assert_close(loss, torch.tensor(expected[f"{prefix}loss"]), **near)
    loss.backward()
    norms = torch.stack([model.get_parameter(name).grad.norm() for name in about["grad_norm_keys"]])
    assert_close(norms, torch.tensor(expected[gradients]), **near)


def whole_maps(model, seen, embedded, fuses):
    """All tokens (B, 1 + N, C) after each block, written row by row: what is gone keeps its last value."""
    tokens, patches = embedded.clone(), embedded.shape[1] - 1
    ids = torch.arange(patches).expand(len(embedded), -1)
    selections = dict(zip(seen.blocks, ids_kept(seen.kept, patches, fuses), strict=True))
    maps = []
    for block, after in enumerate(seen.after):
        if block in selections:
            number = seen.blocks.index(block)
            ids = selections[block]
            ids = torch.nn.functional.pad(ids, (0, 1), value=patches + number) if fuses else ids
        for image in range(len(tokens)):
            tokens[image, 0] = after[image, 0]
            for row, patch in enumerate(ids[image].tolist()):
                if patch < patches:
                    tokens[image, 1 + patch] = after[image, 1 + row]
        maps.append(tokens.clone())
    return maps
