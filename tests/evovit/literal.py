"""The method section written out for one image, token by token: slow, and meant to be."""

import torch


def deit(model, image, schedule, blocks_per_stage=2):
    """Normed tokens (prefix + N, C) in raster order of image (1, 3, H, W); kept sets per event."""
    start = model.options.start_block
    x = model.norm_pre(model._pos_embed(model.patch_embed(image)))[0]
    every = 1 if schedule == "layer" else blocks_per_stage
    selecting = [i for i in range(start, len(model.blocks)) if (i - start) % every == 0]
    alphas = model.options.alphas
    blocks = list(enumerate(model.blocks))
    x, _, events = slow_fast(x, None, blocks, selecting, start, alphas, model.options, deit_block)
    return model.norm(x), events


def levit(model, image, schedule, merge=False):
    """Tokens (1 + N, C) of the last grid in raster order; kept sets per event on their grids."""
    options = model.options
    x = model.stem(image).flatten(2)[0].T
    x = torch.cat((model.cls_token[0], x)) + model.pos_embed[0]
    scores, events, first = None, [], 0
    alphas = list(options.alphas)
    if model.alpha_logits is not None and model.learning_alpha:
        alphas = [torch.sigmoid(logit) for logit in model.alpha_logits]
    for number, stage in enumerate(model.stages):
        if number > 0:
            x, scores = levit_subsample(stage.downsample, x, scores, alphas.pop(0), merge, options)
        blocks = list(enumerate(stage.blocks, first))
        indices = [i for i, _ in blocks if i >= options.start_block]
        selecting = indices if schedule == "layer" else indices[:1]
        here = {i: alphas.pop(0) for i, _ in blocks}
        x, scores, found = slow_fast(x, scores, blocks, selecting, options.start_block, here, options, levit_block)
        events += found
        first += len(blocks)
    return x, events


def slow_fast(x, scores, blocks, selecting, start, alphas, options, run):
    """Blocks on the tokens x (prefix + N, C) of one grid: dense before ``start``, slow-fast after."""
    prefix = options.host.prefix
    num_patches, events = len(x) - prefix, []
    for i, block in blocks:
        if i < start:
            x, attention = run(block, x)
            scores = mix(scores, attention[prefix - 1 :], range(num_patches), alphas[i])
            continue
        if i in selecting:
            ranked = sorted(range(num_patches), key=lambda j: -scores[j].item())
            k = int(num_patches * options.keep_ratio[i])
            informative, placeholders = sorted(ranked[:k]), ranked[k:]
            weighted_by = scores
            events.append(informative)
        total = sum(weighted_by[j] for j in placeholders)
        representative = sum(weighted_by[j] / total * x[prefix + j] for j in placeholders)  # Eq. 5
        own = [*x[:prefix], *(x[prefix + j] for j in informative), representative]
        out, attention = run(block, torch.stack(own))
        x = x.clone()
        residual = out[-1] - representative  # x_rep^(1) + x_rep^(2), Eq. 6
        for place, j in enumerate(informative):
            x[prefix + j] = out[prefix + place]
        for j in placeholders:
            x[prefix + j] = x[prefix + j] + residual  # Eq. 7
        x[:prefix] = out[:prefix]
        scores = mix(scores, attention[prefix - 1 :], informative, alphas[i])
    return x, scores, events


def mix(scores, attention, positions, alpha):
    """Eq. 4 for the patches at ``positions``; the others keep their score."""
    mixed = [None] * len(attention) if scores is None else list(scores)
    for place, j in enumerate(positions):
        new = attention[place]
        mixed[j] = new if scores is None else alpha * scores[j] + (1 - alpha) * new
    return torch.stack(mixed)


def attend(q, k, v, heads, scale, norms=(lambda q: q, lambda k: k)):
    """Eq. 2 head by head on (Lq, H * D), (L, H * D), (L, H * Dv); class attention without class."""
    outputs, rows = [], []
    for q_head, k_head, v_head in zip(*(part.chunk(heads, dim=-1) for part in (q, k, v)),
                                      strict=True):  # fmt: skip
        q_head, k_head = norms[0](q_head), norms[1](k_head)
        weights = torch.softmax(q_head @ k_head.T * scale, dim=-1)
        outputs.append(weights @ v_head)
        rows.append(weights[0, 1:])  # Eq. 3
    return torch.cat(outputs, dim=-1), torch.stack(rows).mean(dim=0)


def deit_block(block, x):
    """One block on tokens (L, C)."""
    attn = block.attn
    q, k, v = attn.qkv(block.norm1(x)).chunk(3, dim=-1)
    out, row = attend(q, k, v, attn.num_heads, attn.head_dim**-0.5, (attn.q_norm, attn.k_norm))
    x = x + block.ls1(attn.proj(out))
    return x + block.ls2(block.mlp(block.norm2(x))), row


def levit_block(block, x):
    """One block on tokens (L, C), BatchNorm on its running statistics."""
    attn = block.attn
    q, k, v = per_part(attn.qkv(x[None])[0], attn)
    out, row = attend(q, k, v, attn.num_heads, attn.scale)
    x = x + attn.proj(out[None])[0]
    return x + block.mlp(x[None])[0], row


def levit_subsample(down, x, scores, alpha, merge, options):
    """Tokens and scores (supplement: the survivor's, or the window's maximum) of the next grid."""
    rows, columns = down.grid
    total, x = scores.sum(), x + down.pos_embed[0]
    queries, old, window = [x[0]], [], {}
    k, v = per_part(down.kv(x[None])[0], down)
    for row in range(0, rows, 2):
        for column in range(0, columns, 2):
            cells = [r * columns + c for r in (row, row + 1) if r < rows
                     for c in (column, column + 1) if c < columns]  # fmt: skip
            cells = cells if merge else cells[:1]
            window[len(old)] = cells
            queries.append(torch.stack([x[1 + cell] for cell in cells]).mean(dim=0))
            old.append(max(scores[cell] for cell in cells))
    q = down.q(torch.stack(queries)[None])[0]
    out, attention = attend(q, k, v, down.num_heads, down.scale)
    new = [max(attention[cell] for cell in window[i]) for i in range(len(old))]
    scores = torch.stack([alpha * a + (1 - alpha) * b for a, b in zip(old, new, strict=True)])
    if options.variant == "official":
        scores = scores * total / scores.sum()
    x = down.proj(out[None])[0]
    return x + down.mlp(x[None])[0], scores


def per_part(projected, module):
    """LeViT lays out q, k, v per head; -> each of them for all heads, (L, H * D)."""
    per_head = projected.unflatten(1, (module.num_heads, -1)).split(module.widths, dim=2)
    return [part.flatten(1) for part in per_head]
