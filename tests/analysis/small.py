"""The size of a small vision transformer."""

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "num_classes": 10, "weight_init": "jax"}
