#!/usr/bin/env python3
"""The training step of consilium-trainer in PyTorch eager, for a comparison in one run.

Reads the starting weights, volumes and labels that `consilium-trainer bench-step --export FILE` wrote, builds the same
network from torch.nn modules, and prints one line of JSON with the same keys. Network, loss, optimiser and arithmetic
are the same; only who calls libtorch differs. --layout says how volumes lie in memory: `contiguous` is what a plain
PyTorch script does, `channels-last` is what consilium-trainer does; with `--norm instance` the norm is torch's
InstanceNorm3d, with `group` a GroupNorm with a group per channel, which computes the same.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


def norm(kind, channels):
    return nn.InstanceNorm3d(channels, affine=True) if kind == "instance" else nn.GroupNorm(channels, channels)


class Block(nn.Module):
    def __init__(self, inputs, outputs, kind):
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = norm(kind, outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(kind, outputs)

    def forward(self, x):
        x = F.leaky_relu_(self.norm1(self.conv1(x)), 0.01)
        return F.leaky_relu_(self.norm2(self.conv2(x)), 0.01)


class UNet(nn.Module):
    def __init__(self, width, levels, classes, kind):
        super().__init__()
        self.levels = levels
        channels = [width << level for level in range(levels + 1)]
        for level in range(levels + 1):
            inputs = 1 if level == 0 else channels[level - 1]
            setattr(self, f"encoder{level}", Block(inputs, channels[level], kind))
        for level in range(levels):
            setattr(self, f"up{level}", nn.ConvTranspose3d(channels[level + 1], channels[level], 2, stride=2))
            setattr(self, f"decoder{level}", Block(2 * channels[level], channels[level], kind))
        self.head = nn.Conv3d(width, classes, 1)

    def forward(self, x):
        skips = []
        for level in range(self.levels):
            x = getattr(self, f"encoder{level}")(x)
            skips.append(x)
            x = F.max_pool3d(x, 2)
        x = getattr(self, f"encoder{self.levels}")(x)
        for level in reversed(range(self.levels)):
            x = torch.cat([getattr(self, f"up{level}")(x), skips[level]], 1)
            x = getattr(self, f"decoder{level}")(x)
        return self.head(x)


def dice_cross_entropy(scores, labels):
    loss = F.cross_entropy(scores, labels)
    shares = scores.softmax(1)
    dice = 0.0
    for index in range(1, scores.shape[1]):
        share, truth = shares[:, index], (labels == index).float()
        dice = dice + (2 * (share * truth).sum() + 1e-5) / (share.sum() + truth.sum() + 1e-5)
    return loss + 1 - dice / (scores.shape[1] - 1)


def channels_last(images):
    """`contiguous(memory_format=…)` does nothing for a single channel, which lies the same either way; the strides that it
    leaves mean the other layout to every convolution after it."""
    n, c, z, y, x = images.shape
    images = images.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    return images.as_strided((n, c, z, y, x), (c * z * y * x, 1, y * x * c, x * c, c))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="what bench-step --export wrote")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layout", choices=["contiguous", "channels-last"], default="channels-last")
    parser.add_argument("--norm", choices=["instance", "group"], default="group")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tensors = load_file(args.file)
    weights = {name[len("weights."):]: t for name, t in tensors.items() if name.startswith("weights.")}
    images, labels = tensors["images"], tensors["labels"]
    width = weights["encoder0.conv1.weight"].shape[0]
    levels = sum(name.startswith("up") and name.endswith(".weight") for name in weights)
    net = UNet(width, levels, weights["head.weight"].shape[0], args.norm)
    net.load_state_dict(weights)
    if args.layout == "channels-last":
        images = channels_last(images)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    seconds, losses = [], []
    for _ in range(args.steps):
        began = time.perf_counter()
        adam.zero_grad()
        loss = dice_cross_entropy(net(images), labels)
        loss.backward()
        adam.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    shape = list(reversed(images.shape[2:]))
    print(json.dumps({
        "implementation": f"pytorch-{torch.__version__}-eager-{args.layout}-{args.norm}",
        "threads": args.threads, "batch": images.shape[0], "shape": shape, "width": width,
        "secondsPerStep": statistics.median_high(seconds[1:] or seconds), "stepSeconds": seconds, "losses": losses,
    }))


if __name__ == "__main__":
    main()
