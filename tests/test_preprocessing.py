import numpy as np
import pytest
import transformers
from PIL import Image

from llama_index_clip_ext.preprocessing import Preprocessing, crop_to_aspect_ratio


def processor_class(name):
    return getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(
        transformers, f"{name}ImageProcessor"
    )


SQUASH = {"size": {"height": 224, "width": 224}, "do_center_crop": False}
PROCESSORS = {
    "clip": ("CLIP", {}),
    "clip at 336": ("CLIP", {"size": {"shortest_edge": 336}, "crop_size": 336}),
    "clip with a margin": ("CLIP", {"size": {"shortest_edge": 256}, "crop_size": 224}),
    "clip, bilinear": ("CLIP", {"resample": 2}),
    "clip, oblong": ("CLIP", {"crop_size": {"height": 200, "width": 150}}),
    "chinese-clip": ("ChineseCLIP", SQUASH),
    "siglip": ("Siglip", {}),
}
SIZES = [(640, 480), (480, 640), (641, 333), (224, 224), (50, 40), (1, 1), (3, 300), (1500, 700)]


def difference(processor, preprocessing, image):
    """How far the model's input is from the processor's own, in levels of 256."""
    outputs = processor(image, return_tensors="np", input_data_format="channels_last")
    expected = np.asarray(outputs["pixel_values"][0])
    scaled = preprocessing.pixels(image) * np.array(preprocessing.factor)
    actual = (scaled + preprocessing.offset).transpose(2, 0, 1)
    assert actual.shape == expected.shape
    return np.abs((actual - expected) / np.array(preprocessing.factor).reshape(3, 1, 1))


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_pixels_are_those_of_the_checkpoints_own_processor(name):
    family, settings = PROCESSORS[name]
    processor = processor_class(family)(**settings)
    preprocessing = Preprocessing.of(processor)
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        # Noise is the hardest: each level of a pixel's neighbours counts.
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        levels = difference(processor, preprocessing, Image.fromarray(noise))
        # Where it is cropped, Pillow takes the box in single precision.
        assert levels.mean() < 0.6, (width, height)
        photo = Image.fromarray(noise).resize((8, 8)).resize((width, height), 3)
        assert difference(processor, preprocessing, photo).max() < 1.6, (width, height)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("CLIP", {"do_center_crop": False}),
        ("CLIP", {"do_normalize": False}),
        ("CLIP", {"do_rescale": False}),
        ("CLIP", {"do_resize": False}),
        ("CLIP", {"size": {"shortest_edge": 100}, "crop_size": 224}),
        ("CLIP", {"size": {"shortest_edge": 100, "longest_edge": 200}}),
        ("Siglip2", {}),
    ],
    ids=str,
)
def test_what_does_more_is_left_to_the_processor(family, settings):
    assert Preprocessing.of(processor_class(family)(**settings)) is None


def test_pictures_are_decoded_to_twice_the_models_input():
    assert Preprocessing.of(processor_class("CLIP")()).least_side == 448
    larger = processor_class("CLIP")(size={"shortest_edge": 256}, crop_size=224)
    assert Preprocessing.of(larger).least_side == 512


def test_ends_that_the_crop_throws_away_are_cut_before_resizing():
    assert crop_to_aspect_ratio(Image.new("L", (10_000, 2))).size == (128, 2)
    assert crop_to_aspect_ratio(Image.new("L", (3, 10_000))).size == (3, 192)
    picture = Image.new("L", (640, 480))
    assert crop_to_aspect_ratio(picture) is picture
