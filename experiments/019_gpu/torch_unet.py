# SPDX-License-Identifier: Apache-2.0
"""diffusers' UNet2DModel in plain PyTorch, for machines without diffusers: what ours is beside.

The same layers, parameters and their names, so that weights of either load into the other:
`python torch_unet.py` compares both where diffusers is (.venv-parity). Written after the published
architecture (Ho et al. 2020, arXiv 2006.11239, appendix B) and the names of diffusers 0.42.

Shapes: B batch, C features, H rows, W columns, E width of the time embedding.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

PUBLISHED = {
    "channels": (128, 128, 256, 256, 512, 512),
    "attention": (False, False, False, False, True, False),
    "layers": 2,
    "groups": 32,
    "head_width": 8,
}


class Resnet(nn.Module):
    def __init__(self, features_in: int, features_out: int, width: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, features_in, eps=1e-5)
        self.conv1 = nn.Conv2d(features_in, features_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(width, features_out)
        self.norm2 = nn.GroupNorm(groups, features_out, eps=1e-5)
        self.conv2 = nn.Conv2d(features_out, features_out, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(features_in, features_out, 1) if features_in != features_out else None
        )

    def forward(self, x, time):
        """x [B, C_in, H, W], time [B, E] -> [B, C_out, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    def __init__(self, features: int, groups: int, head_width: int):
        super().__init__()
        self.heads = features // head_width
        self.group_norm = nn.GroupNorm(groups, features, eps=1e-5)
        self.to_q, self.to_k, self.to_v = (nn.Linear(features, features) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(features, features)])

    def forward(self, x):
        batch, features, rows, columns = x.shape
        tokens = self.group_norm(x.flatten(2)).transpose(1, 2)

        def split(y):
            return y.view(batch, -1, self.heads, features // self.heads).transpose(1, 2)

        q, k, v = (split(to(tokens)) for to in (self.to_q, self.to_k, self.to_v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out[0](mixed).transpose(1, 2).reshape(batch, features, rows, columns)


class Resampler(nn.Module):
    """Halves by a convolution with a stride of 2, or doubles by repetition and a convolution."""

    def __init__(self, features: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, stride=stride, padding=1)

    def forward(self, x):
        doubled = self.conv.stride == (1, 1)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if doubled else x)


class Block(nn.Module):
    """A resolution: residual blocks, attention after each or not, and the way to the next."""

    def __init__(self, sizes, width, groups, head_width, attentive, resampler: str | None, stride):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(i, o, width, groups) for i, o in sizes])
        features = sizes[-1][1]
        if attentive:
            self.attentions = nn.ModuleList(
                [Attention(features, groups, head_width) for _ in sizes]
            )
        self.attentive, self.resampler = attentive, resampler
        if resampler:
            setattr(self, resampler, nn.ModuleList([Resampler(features, stride)]))

    def stage(self, number: int, x, time):
        x = self.resnets[number](x, time)
        return self.attentions[number](x) if self.attentive else x

    def resampled(self, x):
        return getattr(self, self.resampler)[0](x)


class Middle(nn.Module):
    def __init__(self, features: int, width: int, groups: int, head_width: int):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(features, features, width, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(features, groups, head_width)])

    def forward(self, x, time):
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time)), time)


class TimeEmbedding(nn.Module):
    def __init__(self, features: int, width: int):
        super().__init__()
        self.features = features
        self.linear_1, self.linear_2 = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, t):
        half = self.features // 2
        exponents = torch.arange(half, device=t.device, dtype=torch.float32) / half
        angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponents)[None]
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        return self.linear_2(F.silu(self.linear_1(waves)))


class UNet(nn.Module):
    """Noisy image and its conditions [B, inputs, H, W] and timesteps [B] -> [B, 1, H, W]."""

    def __init__(self, *, channels, attention, layers, groups, head_width, inputs: int = 2):
        super().__init__()
        width, last = 4 * channels[0], len(channels) - 1
        common = {"width": width, "groups": groups, "head_width": head_width}
        self.time_embedding = TimeEmbedding(channels[0], width)
        self.conv_in = nn.Conv2d(inputs, channels[0], 3, padding=1)
        features, skips = channels[0], [channels[0]]
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for level, wide in enumerate(channels):
            sizes = [(features if i == 0 else wide, wide) for i in range(layers)]
            halves = "downsamplers" if level < last else None
            self.down_blocks.append(
                Block(sizes, **common, attentive=attention[level], resampler=halves, stride=2)
            )
            features = wide
            skips += [wide] * (layers + (level < last))
        self.mid_block = Middle(features, width, groups, head_width)
        for level, wide in reversed(list(enumerate(channels))):
            before = [features, *[wide] * layers]
            sizes = [(i + skips.pop(), wide) for i in before]
            doubles = "upsamplers" if level else None
            self.up_blocks.append(
                Block(sizes, **common, attentive=attention[level], resampler=doubles, stride=1)
            )
            features = wide
        self.conv_norm_out = nn.GroupNorm(groups, channels[0], eps=1e-5)
        self.conv_out = nn.Conv2d(channels[0], 1, 3, padding=1)

    def forward(self, x, t):
        time = self.time_embedding(t)
        h = self.conv_in(x)
        skips = [h]
        for block in self.down_blocks:
            for number in range(len(block.resnets)):
                h = block.stage(number, h, time)
                skips.append(h)
            if block.resampler:
                h = block.resampled(h)
                skips.append(h)
        h = self.mid_block(h, time)
        for block in self.up_blocks:
            for number in range(len(block.resnets)):
                h = block.stage(number, torch.cat([h, skips.pop()], 1), time)
            if block.resampler:
                h = block.resampled(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


def parameters(fields: dict) -> int:
    """How many there are; no memory is taken for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(**fields).parameters())


def theirs(fields: dict, size: int):
    """diffusers' network of the same fields."""
    from diffusers import UNet2DModel

    kinds = ["Attn" * attentive for attentive in fields["attention"]]
    return UNet2DModel(
        sample_size=size,
        in_channels=2,
        out_channels=1,
        block_out_channels=fields["channels"],
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
        layers_per_block=fields["layers"],
        norm_num_groups=fields["groups"],
        attention_head_dim=fields["head_width"],
    )


def difference(fields: dict, size: int) -> float:
    """Largest difference of outputs to diffusers' with the same weights, of unit deviation."""
    torch.manual_seed(0)
    reference = theirs(fields, size).eval()
    ours = UNet(**fields).eval()
    ours.load_state_dict(reference.state_dict())
    x, t = torch.randn(2, 2, size, size), torch.tensor([3, 700])
    with torch.no_grad():
        expected, found = reference(x, t).sample, ours(x, t)
    return float((found - expected).abs().max() / expected.std())


if __name__ == "__main__":
    count, apart = parameters(PUBLISHED), difference(PUBLISHED, 64)
    print(f"{count:,} parameters; outputs differ from diffusers' by {apart:.2g} at most")
