"""The network of `consilium-trainer`, in PyTorch: a 3D U-Net with a norm per channel (Çiçek et al., MICCAI 2016)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .model import Model


class Block(nn.Module):
    """Two convolutions, each with a norm per channel and a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(outputs, outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        return F.leaky_relu(self.norm2(self.conv2(x)), 0.01)


class UNet3D(nn.Module):
    """Class scores `[batch, classes, z, y, x]` of z-scored images `[batch, 1, z, y, x]`; sides divisible by 2^levels."""

    def __init__(self, width: int = 8, levels: int = 3, *, classes: int) -> None:
        super().__init__()
        self.levels = levels
        channels = [width << level for level in range(levels + 1)]
        for level, here in enumerate(channels):
            self.add_module(f"encoder{level}", Block(channels[level - 1] if level else 1, here))
        for level in range(levels):
            here, below = channels[level], channels[level + 1]
            self.add_module(f"up{level}", nn.ConvTranspose3d(below, here, 2, stride=2))
            self.add_module(f"decoder{level}", Block(2 * here, here))
        self.head = nn.Conv3d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts, skips = dict(self.named_children()), []
        for level in range(self.levels):
            x = parts[f"encoder{level}"](x)
            skips.append(x)
            x = F.max_pool3d(x, 2)
        x = parts[f"encoder{self.levels}"](x)
        for level in reversed(range(self.levels)):
            x = parts[f"decoder{level}"](torch.cat([parts[f"up{level}"](x), skips[level]], 1))
        return self.head(x)


class Segmenter:
    """Segments whole volumes as the served model does."""

    def __init__(self, model: Model, device: str | torch.device = "cpu") -> None:
        network = dict(model.release["config"]["network"])
        if (kind := network.pop("kind")) != "UNet3D":
            raise ValueError(f"the network is {kind}, and this rebuilds UNet3D; its trainer knows how it is made")
        # Both are written x, y, z; arrays are z, y, x.
        shape = (model.output or {}).get("shape") or model.release["config"]["shape"]
        self.tile = tuple(reversed(shape))
        self.device = torch.device(device)
        self.network = UNet3D(**network)
        self.network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in model.tensors.items()})
        self.network.to(self.device).eval()
        self.weights = torch.from_numpy(_gaussian(self.tile)).to(self.device)

    @torch.no_grad()
    def segment(self, volume: np.ndarray) -> np.ndarray:
        """The class of each voxel of one volume `[z, y, x]`, as it comes from the scanner: it is z-scored here."""
        values = volume.astype(np.float64)
        deviation = values.std()
        scored = ((values - values.mean()) / (deviation if deviation > 0 else 1.0)).astype(np.float32)
        shape = tuple(max(side, tile) for side, tile in zip(volume.shape, self.tile))
        # Beyond the scan stands 0, which is the mean.
        place = tuple(slice((big - side) // 2, (big - side) // 2 + side) for big, side in zip(shape, volume.shape))
        canvas = np.zeros(shape, np.float32)
        canvas[place] = scored
        image = torch.from_numpy(canvas).to(self.device)
        sums = None
        for corner in itertools.product(*(_starts(side, tile) for side, tile in zip(shape, self.tile))):
            at = tuple(slice(first, first + tile) for first, tile in zip(corner, self.tile))
            shares = self.network(image[at][None, None])[0].softmax(0) * self.weights
            if sums is None:
                sums = torch.zeros((shares.shape[0], *shape), device=self.device)
            sums[(slice(None), *at)] += shares
        return sums.argmax(0).to(torch.uint8).cpu().numpy()[place]


def _starts(side: int, tile: int) -> list[int]:
    """First voxels of tiles that are at most half a tile apart and evenly spread."""
    room = side - tile
    count = -(-room // max(tile // 2, 1)) + 1
    return [0] if count == 1 else [math.floor(room * i / (count - 1) + 0.5) for i in range(count)]


def _gaussian(tile: tuple[int, ...]) -> np.ndarray:
    """Weight of each voxel of a tile, 1 at its centre, never 0."""
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in tile]
    weights = np.einsum("z,y,x->zyx", *axes).astype(np.float32)
    weights /= weights.max()
    return np.maximum(weights, weights[weights > 0].min())
