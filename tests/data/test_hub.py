"""Data sets of Hugging Face: their columns and labels are looked at before anything trains.

A stand-in of the package's interface always runs; the package itself where it is installed.
"""

import importlib.util
import io
import sys
import types

import pytest
from PIL import Image

from workflow.data import check, readers
from workflow.data.layout import DataError


class Feature:
    def __init__(self, names=(), decode=True):
        self.names = list(names)


class StandInImage(Feature):
    pass


class StandInClassLabel(Feature):
    pass


class StandInValue:
    def __init__(self, dtype):
        self.dtype = dtype

    def __repr__(self):
        return f"Value({self.dtype!r})"


class StandInDataset:
    def __init__(self, features, columns):
        self.features, self.columns = features, columns

    def cast_column(self, name, feature):
        return self

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}


def stand_in() -> types.ModuleType:
    module = types.ModuleType("datasets")
    module.Image, module.ClassLabel, module.Value = StandInImage, StandInClassLabel, StandInValue
    return module


@pytest.fixture(params=["stand-in", "datasets"])
def hub(request, monkeypatch):
    """A function: from features and columns of six rows to a listing of both splits."""
    if request.param == "stand-in":
        module = stand_in()
        monkeypatch.setitem(sys.modules, "datasets", module)
    elif not importlib.util.find_spec("datasets"):
        pytest.skip("datasets is not installed")
    else:
        module = importlib.import_module("datasets")
    features_of = {
        "image": module.Image, "class": lambda: module.ClassLabel(names=["cat", "dog"]),
        "int64": lambda: module.Value("int64"), "string": lambda: module.Value("string"),
        "float32": lambda: module.Value("float32"),
    }  # fmt: skip

    def make(columns: dict, num_classes: int = 2, **data) -> dict:
        features = {name: features_of[kind]() for name, (kind, _) in columns.items()}
        values = {name: list(rows) for name, (_, rows) in columns.items()}
        if request.param == "stand-in":
            dataset = StandInDataset(features, values)
        else:
            dataset = module.Dataset.from_dict(values, features=module.Features(features))
        load = lambda *arguments, **options: dataset  # noqa: E731
        monkeypatch.setattr(module, "load_dataset", load, raising=False)
        block = {"reader": "hfds/some/pets", "num_classes": num_classes} | data
        by_split = {split: readers.open_reader(block, {"data_root": "cache"}, split) for split in ("train", "val")}
        check.check_classes("pets", num_classes, by_split)
        return by_split

    return make


def pictures(count: int = 6) -> list[dict]:
    images = []
    for index in range(count):
        stream = io.BytesIO()
        Image.new("L", (8, 8), index).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": None})
    return images


IMAGES = ("image", pictures())
LABELS = ("class", (0, 1, 0, 1, 1, 1))


@pytest.mark.parametrize(
    ("columns", "data"),
    [
        ({"image": IMAGES, "label": LABELS}, {}),
        ({"img": IMAGES, "label": LABELS}, {}),
        ({"img": IMAGES, "kind": LABELS}, {}),
        ({"img": IMAGES, "thumb": IMAGES, "label": LABELS}, {"image_column": "img"}),
        ({"image": IMAGES, "fine": LABELS, "coarse": LABELS}, {"label_column": "fine"}),
    ],
)
def test_the_columns_are_found_or_named(hub, columns, data, tmp_path):
    by_split = hub(columns, **data)
    train = by_split["train"]
    assert (train.classes, train.labels) == (["cat", "dog"], [0, 1, 0, 1, 1, 1])
    assert len(set(train.names)) == 6
    dataset = readers.StrictImageDataset(train, lambda image: image)
    image, label = dataset[3]
    assert (image.getpixel((0, 0)), label) == ((3, 3, 3), 1)
    check.check_images(by_split, 0, tmp_path / "unusable.txt")
    assert check.manifest(by_split)["splits"]["train"]["bytes"] == sum(train.sizes())


def test_labels_that_are_plain_integers_work(hub):
    train = hub({"image": IMAGES, "label": ("int64", (0, 1, 2, 0, 1, 2))}, 3)["train"]
    assert (train.classes, train.labels) == (["0", "1", "2"], [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("columns", "num_classes", "sentence"),
    [
        ({"text": ("string", "abcdef"), "label": LABELS}, 2,
         r"hfds/some/pets, split train: it has no column 'image' but 'text', 'label'; .*image_col"),
        ({"img": IMAGES, "thumb": IMAGES, "label": LABELS}, 2, "no column 'image' but 'img', 'thu"),
        ({"image": IMAGES, "fine": LABELS, "coarse": LABELS}, 2, "no column 'label' .*label_colum"),
        ({"image": IMAGES, "label": ("string", "aabbcc")}, 2, "'label' is of type Value.*string"),
        ({"image": IMAGES, "label": ("float32", 6 * (1.0,))}, 2, "'label' is of type Value.*float"),
        ({"image": IMAGES, "label": ("int64", (0, 1, 2, 1, 1, 1))}, 2,
         "row 2 has 2 in the column 'label', and labels are 0 to 1; correct"),
        ({"image": IMAGES, "label": ("class", (0, -1, 1, 1, 1, 1))}, 2, "row 1 has -1 in the col"),
        ({"image": IMAGES, "label": ("class", (0, 1, 1, 1, 1, None))}, 2, "row 5 has None in the"),
        ({"image": IMAGES, "label": ("class", 6 * (1,))}, 2, "no image of 1 of 2 classes, .*'cat'"),
        ({"image": IMAGES, "label": LABELS}, 5, "2 and 2 classes; needed are the same 5 in both"),
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_refused_with_column_value_and_remedy(hub, columns, num_classes, sentence):
    with pytest.raises(DataError, match=sentence):
        hub(columns, num_classes)


def test_a_row_without_an_image_is_named(hub, tmp_path):
    images = pictures()
    images[4] = None
    by_split = hub({"image": ("image", images), "label": LABELS})
    with pytest.raises(DataError, match="hfds/some/pets, split train, row 4: it is empty"):
        check.check_images(by_split, 0, tmp_path / "unusable.txt")
