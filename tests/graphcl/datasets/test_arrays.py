"""Arrays of a file become names and numbers of one type, or an error that names the field."""

import numpy as np
import pytest

from graphcl.datasets.arrays import as_floats, as_integers, as_names, read_arrays, write_arrays
from graphcl.errors import DataError


def test_a_file_is_written_where_its_path_says_and_read_back(tmp_path):
    path = tmp_path / "no_ending"
    write_arrays(path, {"x": np.arange(3), "y": np.array("text")})
    arrays, files = read_arrays(path, ["x", "z"])
    assert [file.name for file in tmp_path.iterdir()] == ["no_ending"]
    assert files == ["x", "y"]
    assert arrays.keys() == {"x"}
    np.testing.assert_array_equal(arrays["x"], [0, 1, 2])


@pytest.mark.parametrize(("convert", "dtype"), [(as_floats, np.float32), (as_integers, np.int64)])
@pytest.mark.parametrize("given", ["i4", ">i8", "u2"])
def test_numbers_become_one_type_in_c_order(convert, dtype, given):
    columns = np.arange(6).reshape(2, 3).astype(given).T
    found = convert(columns, "f: x")
    assert found.dtype == dtype
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, [[0, 3], [1, 4], [2, 5]])


@pytest.mark.parametrize("convert", [as_floats, as_integers])
def test_a_single_number_keeps_its_shape_for_the_rules_to_refuse(convert):
    assert convert(np.array(7, dtype=np.int16), "f: x").shape == ()


@pytest.mark.parametrize(
    ("convert", "values"),
    [(as_floats, np.ones(3, np.float32)), (as_integers, np.ones(3, np.int64))],
)
def test_large_arrays_that_are_right_already_are_not_copied(convert, values):
    assert np.shares_memory(convert(values, "f: x"), values)


def test_what_overflows_becomes_infinite_without_a_warning(recwarn):
    assert as_floats(np.array([1e300, -1e300]), "f: x").tolist() == [np.inf, -np.inf]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("convert", "values", "message"),
    [
        (as_floats, np.array([1j]), "f: x is complex128, must be real"),
        (as_floats, np.array(["1"]), "f: x is <U1, must be real"),
        (as_integers, np.array([1.0]), "f: x is float64, must be an integer"),
        (as_integers, np.array([True]), "f: x is bool, must be an integer"),
        (as_names, np.array([1.5]), r"f: x is float64 of shape \(1,\), must be text"),
        (as_names, np.array([["a"]]), r"f: x is <U1 of shape \(1, 1\), must be text of one axis"),
    ],
)
def test_another_type_is_refused_by_the_name_of_its_field(convert, values, message):
    with pytest.raises(DataError, match=f"^{message}"):
        convert(values, "f: x")


def test_names_may_be_integers_or_none():
    assert as_names(np.array([3, 1]), "f: x") == ("3", "1")
    assert as_names([], "f: x") == ()
