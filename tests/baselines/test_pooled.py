"""pooled_deit_*: Table 4's sub-sampling, against windows written out."""

import pytest
import timm
import torch
from torch.testing import assert_close

from baselines.pooled import POOLINGS, PatchPool
from tests.models import families

SMALL = families.FAMILIES["pooled_deit"].small


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("grid", [(4, 6), (5, 3)])
def test_windows(pooling, grid):
    pool = PatchPool(pooling, 3).double()
    if pooling == "conv":
        torch.nn.init.normal_(pool.conv.weight)
        torch.nn.init.normal_(pool.conv.bias)
    rows, columns = grid
    x = torch.randn(2, 1 + rows * columns, 3, dtype=torch.float64)
    pooled = pool(x, grid)
    assert torch.equal(pooled[:, 0], x[:, 0])
    row_of_window = 1
    for row in range(0, rows, 2):
        for column in range(0, columns, 2):
            cells = [(r, c) for r in (0, 1) for c in (0, 1)
                     if row + r < rows and column + c < columns]  # fmt: skip
            tokens = [x[:, 1 + (row + r) * columns + column + c] for r, c in cells]
            if pooling == "average":
                expected = torch.stack(tokens).mean(dim=0)
            elif pooling == "max":
                expected = torch.stack(tokens).amax(dim=0)
            else:
                weight = pool.conv.weight
                products = [t @ weight[:, :, r, c].T for t, (r, c) in zip(tokens, cells, strict=True)]
                expected = sum(products) + pool.conv.bias
            assert_close(pooled[:, row_of_window], expected, rtol=0, atol=1e-12)
            row_of_window += 1
    assert pooled.shape[1] == row_of_window


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_grid_shrinks_after_the_seventh_layer(pooling):
    model = families.build("pooled_deit", pooling=pooling).eval()
    dense = timm.create_model("deit_tiny_patch16_224", **families.DEIT).eval()
    dense.load_state_dict({key: model.state_dict()[key] for key in dense.state_dict()})
    batch = families.images("pooled_deit")
    x = dense._pos_embed(dense.patch_embed(batch))
    for block in dense.blocks[:7]:
        x = block(x)
    x = model.patch_pool(x, (4, 4))
    assert x.shape == (2, 5, 24)
    for block in dense.blocks[7:]:
        x = block(x)
    assert_close(model(batch), dense.forward_head(dense.norm(x)))


def test_a_fresh_convolution_is_the_average():
    x = torch.randn(2, 17, 24)
    assert_close(PatchPool("conv", 24)(x, (4, 4)), PatchPool("average", 24)(x, (4, 4)))


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        (dict(pooling="median"), "average, max, conv"),
        (dict(pool_block=12), r"0\.\.11"),
        (dict(class_token=False, global_pool="avg"), "needs one class token"),
    ],
)
def test_nonsense_is_refused_with_the_reason(kwargs, reason):
    with pytest.raises(ValueError, match=reason):
        families.build("pooled_deit", **kwargs)


def test_a_plain_deit_loads_and_names_what_starts_fresh(tmp_path, caplog):
    dense = timm.create_model("deit_tiny_patch16_224", **families.DEIT)
    model = families.build("pooled_deit")
    fresh = model.load_pretrained_dense(dense.state_dict())
    assert fresh == ["patch_pool.conv.weight", "patch_pool.conv.bias"]
    assert torch.equal(model.blocks[3].mlp.fc1.weight, dense.blocks[3].mlp.fc1.weight)
    assert families.build("pooled_deit", pooling="max").load_pretrained_dense(dense.state_dict()) == []
    torch.save(dense.state_dict(), tmp_path / "dense.pt")
    overlay = dict(file=str(tmp_path / "dense.pt"), num_classes=5, input_size=(3, 32, 32))
    timm.create_model("pooled_deit_tiny_patch16_224", pretrained=True,
                      pretrained_cfg_overlay=overlay, **SMALL)  # fmt: skip
    assert "start fresh" in caplog.text
