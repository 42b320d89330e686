"""Matrix products and attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxquant.torch_graph.operators.operator import plain


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: int,
    scale: float | None = None,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
) -> Tensor:
    """ONNX Attention (opset 23), without a cache of past keys and values.

    Args:
        query: (batch, heads, tokens, head size), or (batch, tokens, heads x head size) with `q_num_heads`.
        key: likewise, with `kv_num_heads`; several query heads may share one.
        value: likewise.
        mask: broadcasts to (batch, heads, tokens, key tokens): added to the scores, or where they count if boolean.
        is_causal: whether token i sees keys 0 to i only.
        scale: of the scores; by default 1 / sqrt(head size).
        q_num_heads: see `query`.
        kv_num_heads: see `key`.
    """
    flat = query.ndim == 3
    if flat:
        query = query.unflatten(-1, (q_num_heads, -1)).transpose(1, 2)
        key, value = (each.unflatten(-1, (kv_num_heads, -1)).transpose(1, 2) for each in (key, value))
    shared = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(shared, 1) if shared > 1 else each for each in (key, value))
    if is_causal and mask is not None:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)
    causal = bool(is_causal) and mask is None
    mixed = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scale)
    return mixed.transpose(1, 2).flatten(2) if flat else mixed


def einsum(*tensors: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *tensors)


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float,
    beta: float,
    transA: int,  # noqa: N803
    transB: int,  # noqa: N803
) -> Tensor:
    a, b = a.T if transA else a, b.T if transB else b
    return alpha * (a @ b) if c is None else torch.addmm(c, a, b, alpha=alpha, beta=beta)


OPERATORS = plain({"Attention": attention, "Einsum": einsum, "Gemm": gemm, "MatMul": torch.matmul})
