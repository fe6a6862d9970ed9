# SPDX-License-Identifier: Apache-2.0
"""pix2pix's and CycleGAN's networks, written in PyTorch's layers from their papers' descriptions.

Ours and theirs have the same order of layers, so that weights go over one by one.
Shapes: B batch, C channels, H rows, W columns; channels last for ours, second for theirs.
"""

import numpy as np
import torch
from torch import nn


def _norm(features, kind):
    return nn.BatchNorm2d(features) if kind == "batch" else nn.InstanceNorm2d(features)


class UNet(nn.Module):
    """Levels as lists; `masks` {level: array} stand for dropout."""

    def __init__(self, inputs, outputs, levels, width, norm):
        super().__init__()
        widths = [min(width * 2**level, width * 8) for level in range(levels)]
        bias, self.levels, self.masks = norm == "instance", levels, {}
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.down_norm, self.up_norm = nn.ModuleList(), nn.ModuleList()
        for level, wide in enumerate(widths):
            before = widths[level - 1] if level else inputs
            self.down.append(nn.Conv2d(before, wide, 4, 2, 1, bias=bias))
            below = wide if level == levels - 1 else 2 * wide
            above = widths[level - 1] if level else outputs
            self.up.append(nn.ConvTranspose2d(below, above, 4, 2, 1, bias=bias or not level))
            if 0 < level < levels - 1:
                self.down_norm.append(_norm(wide, norm))
            if level:
                self.up_norm.append(_norm(above, norm))

    def forward(self, x):
        return self.inside(x, 0)

    def inside(self, x, level):
        last = level == self.levels - 1
        h = self.down[level](nn.functional.leaky_relu(x, 0.2) if level else x)
        if level > 0 and not last:
            h = self.down_norm[level - 1](h)
        if not last:
            h = self.inside(h, level + 1)
        h = self.up[level](torch.relu(h))
        if not level:
            return torch.tanh(h)
        h = self.up_norm[level - 1](h)
        if level in self.masks:
            h = h * self.masks[level]
        return torch.cat([x, h], 1)


class Residual(nn.Module):
    def __init__(self, wide, norm):
        super().__init__()
        bias = norm == "instance"
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(wide, wide, 3, bias=bias),
            _norm(wide, norm),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(wide, wide, 3, bias=bias),
            _norm(wide, norm),
        )

    def forward(self, x):
        return x + self.layers(x)


def resnet(inputs, outputs, blocks, width, norm):
    bias = norm == "instance"
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(inputs, width, 7, bias=bias), _norm(width, norm)]
    layers.append(nn.ReLU())
    for wide in (width, 2 * width):
        layers += [nn.Conv2d(wide, 2 * wide, 3, 2, 1, bias=bias), _norm(2 * wide, norm), nn.ReLU()]
    layers += [Residual(4 * width, norm) for _ in range(blocks)]
    for wide in (4 * width, 2 * width):
        up = nn.ConvTranspose2d(wide, wide // 2, 3, 2, 1, output_padding=1, bias=bias)
        layers += [up, _norm(wide // 2, norm), nn.ReLU()]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, outputs, 7), nn.Tanh())


def critic(inputs, layers, width, norm):
    bias, before = norm == "instance", width
    made = [nn.Conv2d(inputs, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for layer in range(1, layers + 1):
        wide, stride = width * min(2**layer, 8), 2 if layer < layers else 1
        made += [nn.Conv2d(before, wide, 4, stride, 1, bias=bias), _norm(wide, norm)]
        made.append(nn.LeakyReLU(0.2))
        before = wide
    return nn.Sequential(*made, nn.Conv2d(before, 1, 4, 1, 1))


# --------------------------------------------------------------------------------------------------
# Weights of theirs, or their gradients, as ours
# --------------------------------------------------------------------------------------------------


def kernels(module, take):
    """The parameters of a layer of theirs, of which `take` gives an array each.

    A convolution's kernel is theirs transposed, and so are those of U-Net's transposed ones. Of
    ResNet's with 3 x 3 pixels, ours are turned by 180 degrees.
    """
    if isinstance(module, nn.BatchNorm2d):
        return {"scale": take(module.weight), "bias": take(module.bias)}
    if isinstance(module, nn.InstanceNorm2d):
        return {}
    weight = take(module.weight)
    if not isinstance(module, nn.ConvTranspose2d):
        kernel = weight.transpose(2, 3, 1, 0)
    else:
        kernel = weight.transpose(2, 3, 0, 1)
        kernel = kernel[::-1, ::-1] if kernel.shape[0] == 3 else kernel
    bias = {} if module.bias is None else {"bias": take(module.bias)}
    return {"kernel": np.ascontiguousarray(kernel), **bias}


def value(tensor):
    return tensor.detach().numpy().copy()


def gradient(tensor):
    return tensor.grad.numpy().copy()


def _pruned(tree):
    """Without layers that have no parameters, as Flax has it."""
    if not isinstance(tree, dict):
        return tree
    tree = {name: _pruned(branch) for name, branch in tree.items()}
    return {name: b for name, b in tree.items() if not (isinstance(b, dict) and not b)}


def _numbered(modules, take):
    return {number: kernels(module, take) for number, module in enumerate(modules)}


def of_unet(network, take=value):
    names = ("down", "down_norm", "up", "up_norm")
    return _pruned({name: _numbered(getattr(network, name), take) for name in names})


def of_resnet(network, take=value):
    convs = [m for m in network if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    norms = [m for m in network if isinstance(m, nn.BatchNorm2d | nn.InstanceNorm2d)]
    names = {"conv_1": 1, "norm_1": 2, "conv_2": 5, "norm_2": 6}
    blocks = [m for m in network if isinstance(m, Residual)]
    return _pruned(
        {
            "first": kernels(convs[0], take),
            "down": _numbered(convs[1:3], take),
            "blocks": {
                n: {name: kernels(block.layers[i], take) for name, i in names.items()}
                for n, block in enumerate(blocks)
            },
            "up": _numbered(convs[3:5], take),
            "norms": _numbered(norms, take),
            "last": kernels(convs[5], take),
        }
    )


def of_critic(network, take=value):
    *convs, last = (m for m in network if isinstance(m, nn.Conv2d))
    norms = [m for m in network if isinstance(m, nn.BatchNorm2d | nn.InstanceNorm2d)]
    return _pruned(
        {
            "convs": _numbered(convs, take),
            "norms": _numbered(norms, take),
            "last": kernels(last, take),
        }
    )


def begun(network):
    """Theirs with the weights that both begin with: N(0, .02), as published, from a fixed seed."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return network


def tensor(images):
    """[B, H, W, C] -> theirs [B, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(images), -1, 1)))
