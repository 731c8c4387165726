import pytest

from comneck_hf.coding.jit import compiled


def test_functions_are_compiled_even_where_nothing_can_be_cached():
    namespace = {}
    exec("def double(value):\n    return 2 * value", namespace)  # no source file: numba has no place for a cache
    double = compiled(namespace["double"])
    assert double(21) == 42
    assert double.nopython_signatures
    assert double.stats.cache_path is None


def test_functions_of_a_file_are_cached():
    assert compiled(pytest.approx).stats.cache_path
