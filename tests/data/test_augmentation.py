"""Image augmentation by the recipes."""

from PIL import Image
from timm.data.auto_augment import rand_augment_transform


def test_the_recipes_augmentation_works_at_its_strongest(config):
    """Pillow 13 refused what timm's posterize asks for one time in a thousand."""
    for recipe in config.recipes.values():
        if name := recipe.get("auto_augment"):
            policy = rand_augment_transform(name.replace("m9-mstd0.5", "m10-mstd0"), {})
            for op in policy.ops:
                op.prob = 1.0
                assert op(Image.new("RGB", (32, 32), (200, 100, 50))).size == (32, 32)
