"""Mobile-Former-26M (Chen et al., CVPR 2022) as a torch module, for a graph to test against: timm has none.

Two streams run side by side: a map of features through MobileNet blocks, and three tokens through a transformer. Every
block but the first connects them both ways:

    local_global   tokens attend to the map          Mobile -> Former
    global_block   tokens attend to each other       Former
    conv1 ...      inverted bottleneck, its dynamic ReLUs steered by the first token     Mobile
    global_local   the map attends to the tokens     Former -> Mobile

The layers that make bridges are called as in the published code; weights are random. Runs in the export environment,
from the repository's root::

    python tools/mobile_former.py mobile_former_26m.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from onnxquant.export import Exporter, to_onnx
from onnxquant.zoo import load_zoo

NAME = "mobile_former_26m"
TOKENS, WIDTH, HEADS, GROUPS, STEM, FEATURES = 3, 128, 2, 4, 8, 1024
# channels, stride, first and second expansion
BLOCKS = (
    (12, 1, 3, 3),
    (24, 2, 6, 4),
    (24, 1, 3, 3),
    (48, 2, 6, 4),
    (48, 1, 4, 4),
    (64, 1, 6, 4),
    (96, 2, 6, 4),
    (96, 1, 6, 4),
)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Softmax(Q·K/√d)·V over `heads`; all (batch, items, channels)."""

    def split(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)

    scale = (query.shape[2] // heads) ** -0.5
    probabilities = ((split(query) @ split(key).transpose(-1, -2)) * scale).softmax(dim=-1)
    return (probabilities @ split(value)).transpose(1, 2).flatten(2)


class ChannelShuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = x.reshape(batch, self.groups, channels // self.groups, height, width)
        return parts.transpose(1, 2).reshape(batch, channels, height, width)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = GROUPS) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class DynamicReLU(nn.Module):
    """max(a1·x, a2·x), where the first token decides on the slopes of every channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = [nn.Linear(WIDTH, WIDTH // 4), nn.ReLU(), nn.Linear(WIDTH // 4, 2 * channels), nn.Hardsigmoid()]
        self.hyper = nn.Sequential(*layers)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        first, second = (self.hyper(tokens[:, 0])[:, :, None, None] * 2 - 1).chunk(2, dim=1)
        return torch.maximum(x * (first + 1), x * second)


class LocalGlobal(nn.Module):
    """Mobile -> Former: keys and values are the map itself, so no layer of its size is needed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Sequential(nn.Linear(WIDTH, channels), nn.Hardsigmoid())
        self.q = nn.Linear(WIDTH, channels)
        self.proj = nn.Linear(channels, WIDTH)
        self.layer_norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        found = attend(self.q(tokens), pixels, pixels, HEADS) * (self.alpha(tokens) * 2)
        return self.layer_norm(tokens + self.proj(found))


class GlobalBlock(nn.Module):
    """Former: self-attention and an MLP, each with its norm after it."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.ffn_norm = nn.LayerNorm(WIDTH)
        self.q = nn.Linear(WIDTH, WIDTH)
        self.channel_mlp = nn.Linear(WIDTH, WIDTH)
        self.layer_norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.layer_norm(tokens + self.channel_mlp(attend(self.q(tokens), tokens, tokens, 4)))
        return self.ffn_norm(tokens + self.ffn(tokens))


class GlobalLocal(nn.Module):
    """Former -> Mobile: queries are the map itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.k = nn.Linear(WIDTH, channels)
        self.proj = nn.Linear(WIDTH, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        found = attend(pixels, self.k(tokens), self.proj(tokens), HEADS)
        return x + found.transpose(1, 2).reshape(x.shape)


class Block(nn.Module):
    """What the blocks that keep the resolution and those that halve it have in common."""

    def __init__(self, inputs: int, outputs: int, expansions: tuple[int, int]) -> None:
        super().__init__()
        self.local_global = LocalGlobal(inputs)
        self.global_block = GlobalBlock()
        self.global_local = GlobalLocal(outputs)

    def mobile(self, x: Tensor, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.global_block(self.local_global(x, tokens))
        y = self.mobile(x, tokens)
        return self.global_local(x + y if x.shape == y.shape else y, tokens), tokens


class Mix(Block):
    """Keeps the resolution: pointwise, depthwise, pointwise."""

    def __init__(self, inputs: int, outputs: int, expansions: tuple[int, int]) -> None:
        super().__init__(inputs, outputs, expansions)
        hidden = inputs * expansions[0]
        self.conv1 = nn.Sequential(*conv(inputs, hidden), ChannelShuffle(GROUPS))
        self.act1 = DynamicReLU(hidden)
        self.conv2 = nn.Sequential(*conv(hidden, hidden, 3, groups=hidden))
        self.act2 = DynamicReLU(hidden)
        self.conv3 = nn.Sequential(*conv(hidden, outputs), ChannelShuffle(GROUPS))

    def mobile(self, x: Tensor, tokens: Tensor) -> Tensor:
        x = self.act1(self.conv1(x), tokens)
        return self.conv3(self.act2(self.conv2(x), tokens))


class Halve(Block):
    """Halves the resolution: depthwise, pointwise, and both again in a residual."""

    def __init__(self, inputs: int, outputs: int, expansions: tuple[int, int]) -> None:
        super().__init__(inputs, outputs, expansions)
        wide, wider = inputs * expansions[0], outputs * expansions[1]
        self.conv1 = nn.Sequential(*conv(inputs, wide, 3, 2, inputs), ChannelShuffle(inputs))
        self.act1 = DynamicReLU(wide)
        self.conv2 = nn.Sequential(*conv(wide, outputs))
        self.conv3 = nn.Sequential(*conv(outputs, wider, 3, groups=outputs), ChannelShuffle(outputs))
        self.act3 = DynamicReLU(wider)
        self.conv4 = nn.Sequential(*conv(wider, outputs))

    def mobile(self, x: Tensor, tokens: Tensor) -> Tensor:
        x = self.conv2(self.act1(self.conv1(x), tokens))
        return x + self.conv4(self.act3(self.conv3(x), tokens))


class Classifier(nn.Module):
    """Pools the map, joins the first token, and decides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 6 * channels
        self.conv = nn.Sequential(*conv(channels, hidden))
        self.fc = nn.Sequential(nn.Linear(hidden + WIDTH, FEATURES), nn.ReLU())
        self.classifier = nn.Linear(FEATURES, 1000)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(nn.functional.hardswish(self.conv(x)), 1).flatten(1)
        return self.classifier(self.fc(torch.cat((pooled, tokens[:, 0]), dim=1)))


class Lite(nn.Module):
    """The first block has no bridge: depthwise, pointwise."""

    def __init__(self) -> None:
        super().__init__()
        hidden = 3 * STEM
        layers = [*conv(STEM, hidden, 3, 2, STEM), nn.ReLU6(), ChannelShuffle(STEM), *conv(hidden, 12)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), tokens


class MobileFormer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.stem = nn.Sequential(*conv(3, STEM, 3, 2, 1), nn.ReLU6())
        blocks: list[nn.Module] = [Lite()]
        channels = 12
        for outputs, stride, *expansions in BLOCKS:
            kind = Halve if stride == 2 else Mix
            blocks.append(kind(channels, outputs, (expansions[0], expansions[1])))
            channels = outputs
        self.features = nn.ModuleList(blocks)
        self.local_global = LocalGlobal(channels)
        self.classifier = Classifier(channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens.weight[None].expand(x.shape[0], -1, -1)
        x = self.stem(x)
        for block in self.features:
            x, tokens = block(x, tokens)
        return self.classifier(x, self.local_global(x, tokens))


def export_mobile_former(exporter: Exporter = "torchscript", seed: int = 0) -> onnx.ModelProto:
    """Mobile-Former-26M with random weights as an ONNX model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MobileFormer()
    preprocessing = load_zoo()[NAME].preprocessing.model_dump(mode="json")
    return to_onnx(model, NAME, preprocessing, source=NAME, exporter=exporter)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(export_mobile_former().SerializeToString(deterministic=True))
