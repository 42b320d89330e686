"""Gradients of a loss that needs no labels."""

import numpy as np
import onnx_ad
import pytest
import torch
from onnx.shape_inference import infer_shapes
from onnx.utils import Extractor

from onnxquant.errors import OnnxquantError
from onnxquant.torch_graph import SampledLoss, TorchGraph, gradients, typical_gradients
from tests.fixtures import with_batch
from tests.graphs import attention, images, run
from tests.torch_graph.comparing import assert_close, model_of, normal

LABELS = np.arange(8)
TENSORS = ["image", "stem", "tokens", "v", "scores", "probs", "map", "logits"]


def likelihood(outputs):
    """The negative log-likelihood of `LABELS`."""
    return -outputs["probabilities"][np.arange(8), LABELS].log().sum()


def end_of(tensor, found):
    """The part of the model from a tensor to its output, and values of what else that part depends on."""
    others = {"v": ["probs"], "scores": ["v"], "probs": ["v"]}.get(tensor, [])
    model = Extractor(infer_shapes(with_batch(attention(), 8))).extract_model([tensor, *others], ["probabilities"])
    return model, {name: found[name].value.numpy() for name in others}


@pytest.fixture(scope="module")
def found():
    return gradients(TorchGraph(attention()), {"image": images()}, TENSORS, likelihood)


@pytest.mark.parametrize("tensor", TENSORS)
def test_gradients_are_finite_differences_in_onnxruntime(found, tensor):
    end, others = end_of(tensor, found)
    value, gradient = found[tensor].value.numpy(), found[tensor].gradient.numpy()

    def loss(values):
        (probabilities,) = run(end, **{tensor: values.astype(np.float32)}, **others)
        return -np.log(probabilities.astype(np.float64)[np.arange(8), LABELS]).sum()

    for direction in (gradient, normal(*gradient.shape), normal(*gradient.shape, seed=1)):
        step = 3e-2 * direction / np.linalg.norm(direction)
        difference = (loss(value + step) - loss(value - step)) / 2
        assert difference == pytest.approx((gradient * step).sum(), abs=float(0.01 * 3e-2 * np.linalg.norm(gradient)))


def test_typical_gradients_are_the_root_mean_square_of_those_of_each_loss():
    graph, feeds = TorchGraph(attention()), {"image": images()}
    losses = [SampledLoss(seed) for seed in range(3)]
    found, beside = typical_gradients(graph, feeds, ["stem", "probs"], losses, ["tokens", "probs"])
    alone = [gradients(graph, feeds, ["stem", "probs", "tokens"], SampledLoss(seed)) for seed in range(3)]
    for name in ("stem", "probs"):
        each = np.stack([draw[name].gradient.numpy() for draw in alone])
        np.testing.assert_allclose(found[name].gradient, np.sqrt(np.square(each).mean(axis=0)), rtol=1e-5, atol=1e-9)
        assert torch.equal(found[name].value, alone[0][name].value)
    assert torch.equal(beside["tokens"], alone[0]["tokens"].value)
    assert not any(value.requires_grad for value in beside.values())


@pytest.mark.parametrize("tensor", TENSORS)
def test_gradients_are_those_of_onnx_ad(found, tensor):
    end, others = end_of(tensor, found)
    feeds = {tensor: found[tensor].value.numpy(), **others}
    (probabilities,) = run(end, **feeds)
    seed = np.zeros_like(probabilities)
    seed[np.arange(8), LABELS] = -1 / probabilities[np.arange(8), LABELS]
    adjoint = onnx_ad.reverse(end, inputs=[tensor], layout="onnx")
    *_, expected = run(adjoint, **feeds, adj_probabilities=seed[..., None])
    assert_close(found[tensor].gradient, expected[..., 0])


def test_the_loss_is_not_stationary_at_the_float_model():
    """As the cross-entropy against the model's own output is, which has no gradient there."""
    graph = TorchGraph(attention())

    def own_output(outputs):
        (output,) = outputs.values()
        return torch.nn.functional.cross_entropy(output.log(), output.detach(), reduction="sum")

    def size(loss):
        return gradients(graph, {"image": images()}, ["stem"], loss)["stem"].gradient.abs().mean()

    assert size(own_output) < 1e-6
    assert size(SampledLoss()) > 1e-3


def slope(output, seed=0, loss=None):
    """dL/d(output) of the sampled loss."""
    output = torch.as_tensor(output).requires_grad_()
    (gradient,) = torch.autograd.grad((loss or SampledLoss(seed))({"y": output}), output)
    return gradient.numpy()


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_classes_are_drawn_as_often_as_the_model_expects_them():
    logits = np.tile(np.float32([[2, 0, 1, -1]]), (20000, 1))
    drawn = softmax(logits) - slope(logits)  # the gradient of a cross-entropy is p - onehot
    np.testing.assert_allclose(np.sort(drawn, axis=1), np.tile([0, 0, 0, 1], (20000, 1)), atol=1e-5)
    np.testing.assert_allclose(drawn.mean(0), softmax(logits)[0], atol=0.01)


def test_a_seed_says_which():
    logits = normal(50, 10)
    np.testing.assert_array_equal(slope(logits, seed=1), slope(logits, seed=1))
    assert (slope(logits, seed=1) != slope(logits, seed=2)).any()


def test_batches_of_any_size_give_the_same():
    logits = normal(6, 10)
    loss = SampledLoss(seed=3)
    in_parts = np.concatenate([slope(part, loss=loss) for part in np.split(logits, [1, 3])])
    np.testing.assert_allclose(in_parts, slope(logits, seed=3), atol=1e-6)


def test_probabilities_count_as_what_they_are():
    logits = torch.from_numpy(normal(20, 10)).requires_grad_()
    (gradient,) = torch.autograd.grad(SampledLoss()({"y": logits.softmax(1)}), logits)
    np.testing.assert_allclose(gradient.numpy(), slope(logits.detach()), atol=1e-5)


def test_a_class_that_cannot_be_has_a_finite_gradient():
    assert np.isfinite(slope(np.float32([[0, 1, 0], [0.5, 0.5, 0]]))).all()


@pytest.mark.parametrize("shape", [(8, 1), (8, 3, 4, 5), (8,)], ids=["number", "map", "no axis"])
def test_other_outputs_have_gaussian_targets(shape):
    output = normal(*shape)
    gradient = slope(output)
    assert gradient.shape == shape
    assert np.abs(gradient).min() > 0
    np.testing.assert_allclose(slope(1000 * output), gradient / 1000, rtol=1e-4)


def test_gaussian_targets_of_an_output_of_zeros_are_defined():
    assert np.isfinite(slope(np.zeros((2, 3, 4), np.float32))).all()


def test_all_float_outputs_count_and_integers_do_not():
    logits, boxes = torch.from_numpy(normal(4, 10)).requires_grad_(), torch.from_numpy(normal(4, 5, 4)).requires_grad_()
    loss = SampledLoss()({"logits": logits, "top": logits.argmax(1), "boxes": boxes})
    assert all(gradient.abs().min() > 0 for gradient in torch.autograd.grad(loss, [logits, boxes]))


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (torch.arange(3), "outputs y: none is float, so there is no loss to differentiate"),
        (torch.full((2, 3), torch.nan), "output y: has NaN or infinite values"),
    ],
)
def test_outputs_without_a_loss_are_named(output, said):
    with pytest.raises(OnnxquantError, match=f"^{said}; "):
        SampledLoss()({"y": output})


BRANCHES = """
g (float[2, 3] x) => (float[2, 3] y) {
    same = Identity (x)
    weight = Transpose <perm = [1, 0]> (stored)
    other = MatMul (same, weight)
    y = Add (x, other)
    shape = Shape (y)
    unused = Relu (other)
}
"""


def total(outputs):
    return outputs["y"].sum()


def test_weights_and_aliases_have_gradients_of_their_own():
    stored = normal(3, 3)
    graph, x = TorchGraph(model_of(BRANCHES, stored=stored)), normal(2, 3)
    found = gradients(graph, {"x": x}, ["x", "same", "stored", "weight", "unused"], total)
    through = np.tile(stored.sum(0), (2, 1))  # what y makes of the aliased x
    assert_close(found["same"].gradient, through)
    assert_close(found["x"].gradient, 1 + through)
    assert_close(found["weight"].gradient, np.tile(x.sum(0)[:, None], (1, 3)))
    assert_close(found["stored"].gradient, np.tile(x.sum(0), (3, 1)))
    assert_close(found["unused"].gradient, np.zeros((2, 3), np.float32))
    assert_close(found["weight"].value, stored.T)
    assert not any(each.value.requires_grad for each in found.values())


def test_what_is_not_float_has_none():
    graph = TorchGraph(model_of(BRANCHES, stored=normal(3, 3)))
    with pytest.raises(OnnxquantError, match=r"^tensor shape: is not float, so it has no gradient; leave it out$"):
        gradients(graph, {"x": normal(2, 3)}, ["shape"], total)


def test_gradients_are_found_although_torch_was_told_not_to_record():
    with torch.no_grad():
        found = gradients(TorchGraph(attention()), {"image": images()}, ["stem"], likelihood)
    assert found["stem"].gradient.abs().max() > 0
