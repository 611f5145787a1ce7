"""The method section written out for one image, token by token: slow, and meant to be."""

import torch


def features(model, image, schedule, blocks_per_stage=4):
    """Normed tokens (1 + N, C) in raster order of image (1, 3, H, W); kept sets per event."""
    switches = model.switches
    x = model._pos_embed(model.patch_embed(image))[0]
    num_patches, scores, events = len(x) - 1, None, []
    for i, block in enumerate(model.blocks):
        since = i - switches.start_block
        if since < 0:
            out, attention = run(block, x)
            scores = mix(scores, attention, range(num_patches), switches.tradeoff[i])
            x = out
            continue
        if schedule == "layer" or since % blocks_per_stage == 0:
            ranked = sorted(range(num_patches), key=lambda j: -scores[j].item())
            k = int(num_patches * switches.keep_ratio[i])
            informative, placeholders = sorted(ranked[:k]), ranked[k:]
            events.append(informative)
        total = sum(scores[j] for j in placeholders)
        representative = sum(scores[j] / total * x[1 + j] for j in placeholders)  # Eq. 5
        own = [x[0], *(x[1 + j] for j in informative), representative]
        out, attention = run(block, torch.stack(own))
        x = x.clone()
        residual = out[-1] - representative  # x_rep^(1) + x_rep^(2), Eq. 6
        for place, j in enumerate(informative):
            x[1 + j] = out[1 + place]
        for j in placeholders:
            x[1 + j] = x[1 + j] + residual  # Eq. 7
        x[0] = out[0]
        scores = mix(scores, attention, informative, switches.tradeoff[i])
    return model.norm(x), events


def mix(scores, attention, positions, alpha):
    """Eq. 4 for the patches at ``positions``; the others keep their score."""
    mixed = [None] * len(attention) if scores is None else list(scores)
    for place, j in enumerate(positions):
        new = attention[place]
        mixed[j] = new if scores is None else alpha * scores[j] + (1 - alpha) * new
    return torch.stack(mixed)


def run(block, x):
    """One block on tokens (L, C), head by head; class attention (Eq. 3) on all but the class."""
    attn, width = block.attn, block.attn.head_dim
    q, k, v = attn.qkv(block.norm1(x)).chunk(3, dim=-1)
    outputs, rows = [], []
    for h in range(attn.num_heads):
        part = slice(h * width, (h + 1) * width)
        weights = torch.softmax(q[:, part] @ k[:, part].T / width**0.5, dim=-1)  # Eq. 2
        outputs.append(weights @ v[:, part])
        rows.append(weights[0, 1:])
    x = x + attn.proj(torch.cat(outputs, dim=-1))
    x = x + block.mlp(block.norm2(x))
    return x, torch.stack(rows).mean(dim=0)
