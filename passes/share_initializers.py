"""Store equal initializers once, as exporters do: the inverse of `unshare_initializers`, after all edits."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
import onnx_graphsurgeon as gs

from onnxquant.graph.edit import replace_uses
from onnxquant.pass_manager import Pass, PassContext, PassResult


class ShareInitializers(Pass):
    """Let nodes that read equal initializers read the same one. Runs after every recipe; no recipe lists it."""

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        interface = {id(tensor) for tensor in graph.outputs}
        alike: defaultdict[object, list[gs.Constant]] = defaultdict(list)
        for tensor in graph.tensors().values():
            # ml_dtypes' types, int4 among them, have kind V: once read, graphsurgeon 0.6.1 can't write them any more
            if isinstance(tensor, gs.Constant) and id(tensor) not in interface and np.dtype(tensor.dtype).kind != "V":
                alike[str(tensor.dtype), tuple(tensor.shape)].append(tensor)
        merged = 0
        for tensors in alike.values():
            first: dict[bytes, gs.Constant] = {}
            for tensor in tensors if len(tensors) > 1 else ():
                kept = first.setdefault(hashlib.sha256(tensor.values.tobytes()).digest(), tensor)
                if kept is not tensor:
                    replace_uses(tensor, kept)
                    merged += 1
        return PassResult(merged > 0, (f"{merged} merged",) if merged else ("no two are equal",))
