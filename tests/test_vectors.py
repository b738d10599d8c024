"""Vectors: scaled to unit length, and refused where they have no direction."""

import math

import numpy as np
import pytest

from llama_index_clip_ext.errors import DimensionMismatchError, EmbeddingError
from llama_index_clip_ext.vectors import check_vector, l2_normalize


def test_rows_are_scaled_to_unit_length_in_float32():
    rows = l2_normalize(np.array([[3.0, 4.0], [0.0, -2.0]], dtype=np.float64))

    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, -1.0]], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_large_and_small_components_keep_their_direction(dtype):
    # 300 squared exceeds float16, 1e-4 squared is nothing in it.
    rows = l2_normalize(np.array([[300.0, 400.0], [3e-4, 4e-4]], dtype=dtype))

    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.6, 0.8]], atol=1e-3)


def test_no_rows_stay_no_rows():
    assert l2_normalize(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
def test_a_row_without_direction_is_named(value):
    with pytest.raises(EmbeddingError, match="^row 1 of 3 has length"):
        l2_normalize(np.array([[1.0, 0.0], [value, 0.0], [0.0, 0.0]]))


def test_a_unit_vector_passes_as_plain_floats():
    checked = check_vector(np.array([0.6, 0.8], dtype=np.float16), 2, "node 'a'")

    assert checked == pytest.approx([0.6, 0.8], abs=1e-3)
    assert [type(component) for component in checked] == [float, float]


@pytest.mark.parametrize("vector", [[], [1.0], [1.0, 0.0, 0.0], [[1.0, 0.0]]])
def test_another_dimension_is_refused(vector):
    with pytest.raises(
        DimensionMismatchError, match="^node 'a': the embedding has shape"
    ) as caught:
        check_vector(vector, 2, "node 'a'")

    assert caught.value.expected == 2
    assert caught.value.actual == np.shape(vector)[-1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_vector_that_is_not_finite_is_refused(value):
    with pytest.raises(EmbeddingError, match="node 'a': the embedding contains NaN or infinity"):
        check_vector([value, 0.0], 2, "node 'a'")


@pytest.mark.parametrize(("vector", "length"), [([0.0, 0.0], "0"), ([0.0, 2.0], "2")])
def test_a_vector_of_another_length_is_refused(vector, length):
    with pytest.raises(EmbeddingError, match=f"has length {length}, expected 1; normalise it"):
        check_vector(vector, 2, "node 'a'")


def test_the_rounding_of_half_precision_is_no_other_length():
    half = l2_normalize(np.arange(1.0, 1025.0)[None])[0].astype(np.float16)

    assert len(check_vector(half, 1024, "node 'a'")) == 1024
