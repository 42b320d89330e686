"""The table of operators."""

import pytest

from onnxquant.graph import topology
from onnxquant.torch_graph.operators import MODULES, OPERATORS


@pytest.mark.parametrize("family", ["POINTWISE_CHAIN", "REDUCTIONS", "POOLS", "PRODUCTS"])
def test_what_the_analyses_see_through_has_a_torch_form(family):
    assert getattr(topology, family) <= OPERATORS.keys()


def test_no_operator_stands_in_two_files():
    assert sum(len(module.OPERATORS) for module in MODULES) == len(OPERATORS)
