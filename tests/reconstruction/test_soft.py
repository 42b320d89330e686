"""Quantizers that gradients go through compute what the real ones do, where nothing was learned yet."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxquant.plan import PlanEntry
from onnxquant.quantizers.per_token import PerTokenQuantizer
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.reconstruction.soft import SoftRounding, transform_of

CPU = torch.device("cpu")

weights = arrays(np.float32, (3, 5), elements=st.floats(-4, 4, width=32))


def quantizer_of(values, bits, symmetric=True):
    low, high = values.min(axis=1), values.max(axis=1)
    return UniformQuantizer.from_range(low, high, bits=bits, symmetric=symmetric, axis=0)


def activation(low, high, *, bits=4, symmetric=True, **fields):
    quantizer = UniformQuantizer.from_range(np.array(low), np.array(high), bits=bits, symmetric=symmetric)
    return PlanEntry(tensor="x", role="activation", quantizer=quantizer, **fields)


@given(weights, st.sampled_from([2, 4, 8]), st.booleans())
def test_a_weight_is_itself_before_anything_is_learned(values, bits, symmetric):
    quantizer = quantizer_of(values, bits, symmetric)
    soft = SoftRounding(torch.from_numpy(values), quantizer).weight().detach().numpy()
    step, ends = quantizer.scale[:, None], np.array(quantizer.code_range)[:, None, None]
    lowest, highest = (ends - quantizer.zero_point[:, None]) * step
    assert (np.abs(soft - values.clip(lowest, highest)) <= step * 1e-3).all()


@given(weights, st.sampled_from([2, 4, 8]), st.booleans())
def test_hardened_it_is_one_of_the_two_codes_around_each_value(values, bits, symmetric):
    quantizer = quantizer_of(values, bits, symmetric)
    rounding = SoftRounding(torch.from_numpy(values), quantizer)
    hard, step = rounding.hardened().numpy(), quantizer.scale[:, None]
    ends = np.array(quantizer.code_range)[:, None, None]
    lowest, highest = (ends - quantizer.zero_point[:, None]) * step
    values = values.clip(lowest, highest)
    assert (np.abs(hard - values) <= step * (0.5 + 1e-3)).all()  # nothing was learned: the nearest
    with torch.no_grad():
        rounding.logits.neg_()
    other = rounding.hardened().numpy()
    assert (np.abs(other - values) <= step * (1 + 1e-3)).all()


def test_roundings_are_undecided_until_they_are_drawn_to_a_side():
    rounding = SoftRounding(torch.tensor([[0.4, 1.6, 7.0]]), quantizer_of(np.array([[0.4, 1.6, 7.0]]), 4))
    assert rounding.undecided(2.0) > 1
    with torch.no_grad():
        rounding.logits.copy_(rounding.logits.sign() * 20)
    assert rounding.undecided(2.0) == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_scale_that_was_not_learned_yet_quantizes_as_the_plan_says(symmetric):
    entry, x = activation(-1.0, 3.0, symmetric=symmetric), torch.linspace(-4, 4, 101)
    found = transform_of(entry, CPU, learn=True)(x)
    torch.testing.assert_close(found, entry.quantizer.fake_quantize(x))


def test_a_shift_stays_a_number_of_whole_steps_when_the_scale_is_learned():
    quantizer, steps = UniformQuantizer.around_middle(-1.0, 7.0, 4)
    entry = PlanEntry(
        tensor="x", role="activation", quantizer=quantizer, shift=float(quantizer.scale) * steps, consumers=["layer"]
    )
    scale, x = transform_of(entry, CPU, learn=True), torch.linspace(-2, 8, 101) + 1e-3  # no ties
    torch.testing.assert_close(scale(x), quantizer.fake_quantize(x - entry.shift) + entry.shift)
    with torch.no_grad():
        scale.factor.mul_(1.1)
    learned = scale.learned()
    assert learned.shift / learned.quantizer.scale == pytest.approx(steps)
    torch.testing.assert_close(scale(x).detach(), learned.quantizer.fake_quantize(x - learned.shift) + learned.shift)


def test_the_gradient_of_a_scale_is_that_of_least_squares():
    """A step that is too long gets shorter by the gradient of the squared error."""
    x = torch.linspace(-1, 1, 1001)
    for stretch, sign in ((3.0, 1), (0.3, -1)):
        scale = transform_of(activation(-stretch, stretch), CPU, learn=True)
        (scale(x) - x).square().sum().backward()
        assert torch.sign(scale.factor.grad) == sign


def test_where_no_scale_is_to_be_learned_gradients_pass_through():
    x = torch.linspace(-1, 1, 11, requires_grad=True)
    value = transform_of(activation(-1.0, 1.0), CPU, learn=False)(x)
    value.sum().backward()
    assert (x.grad == 1).all()
    assert len(value.unique()) < 12


def test_a_scale_for_each_token_is_learned_and_outliers_stay_what_they_are():
    quantizer = PerTokenQuantizer(4, np.array([0.1, 0.5], np.float32), 5.0)
    entry = PlanEntry(tensor="x", role="activation", quantizer=quantizer)
    x = torch.tensor([[[0.31, -6.0], [1.2, 3.0]]])
    scale = transform_of(entry, CPU, learn=True)
    torch.testing.assert_close(scale(x).detach(), quantizer.fake_quantize(x))
    scale(x).square().sum().backward()
    assert (scale.factor.grad != 0).all()
    with torch.no_grad():
        scale.factor.copy_(torch.tensor([1.0, 2.0]))
    learned = scale.learned().quantizer
    assert learned.scale.tolist() == pytest.approx([0.1, 1.0])
    assert learned.threshold == 5.0


def test_scales_that_are_computed_when_the_model_runs_are_not_learned():
    entry = PlanEntry(tensor="x", role="activation", quantizer=PerTokenQuantizer(4))
    x = torch.randn(2, 3, 4, requires_grad=True)
    transform = transform_of(entry, CPU, learn=True)
    transform(x).sum().backward()
    assert (x.grad == 1).all()
    assert transform.learned() is entry
