"""The vision transformer (Dosovitskiy et al., ICLR 2021), after the authors' ImageNet-abcde/networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.networks.network import Network, takes_large_form, two_sides
from common.system.errors import InputError

NAMES = ("ViT", "ViTCIFAR")
ACCEPTS = "ViT, ViTCIFAR (the variant for CIFAR at every image size)"

_WIDTH, _HEADS, _DROPOUT = 512, 8, 0.1


class ViT(Network):
    """A class token and one token per patch, `depth` pairs of self-attention and a perceptron, a linear classifier.

    Patches have patch x patch pixels, and tokens have width 512. The class token comes first, and the classifier sees
    only this token. Attention has 8 heads of 64, and a perceptron has 512 hidden units with GELU; the output of either
    is added to its input. Dropout of 0.1 follows the embedding, the attention and both layers of the perceptron.
    The authors' ImageNet variant has patches of 16, 10 pairs and no norm. Their CIFAR variant has patches of 4, 6 pairs
    and, because of `normalised`, LayerNorm before every attention, every perceptron and the classifier.
    Images are [B, channels, H, W], square or not. Raises InputError if a side is not a multiple of the patch's side.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        im_size: Sequence[int],
        *,
        patch: int = 4,
        depth: int = 6,
        normalised: bool = True,
        name: str = "ViT",
    ) -> None:
        super().__init__()
        height, width = two_sides(name, im_size)
        if height % patch or width % patch:
            raise InputError(
                f"{name} cuts images of {channels}x{height}x{width} into patches of {patch}x{patch}: "
                f"both sides must be multiples of {patch}."
            )
        layers: list[nn.Module] = [
            nn.Conv2d(channels, _WIDTH, patch, stride=patch),
            Tokens((height // patch) * (width // patch)),
            nn.Dropout(_DROPOUT),
        ]
        for _ in range(depth):
            layers += [
                Residual(*_norms(normalised), Attention(), nn.Dropout(_DROPOUT)),
                Residual(
                    *_norms(normalised),
                    nn.Linear(_WIDTH, _WIDTH),
                    nn.GELU(),
                    nn.Dropout(_DROPOUT),
                    nn.Linear(_WIDTH, _WIDTH),
                    nn.Dropout(_DROPOUT),
                ),
            ]
        self.features = nn.Sequential(*layers, First(), *_norms(normalised))
        self.classifier = nn.Linear(_WIDTH, num_classes)


class Tokens(nn.Module):
    """Turns embedded patches [B, 512, h, w] into tokens [B, 1 + h * w, 512].

    The class token comes first, and every token has a learned embedding of its position added.
    """

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, _WIDTH))
        self.positions = nn.Parameter(torch.empty(1, 1 + patches, _WIDTH))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the class token and the position embeddings from N(0, 1)."""
        nn.init.normal_(self.class_token)
        nn.init.normal_(self.positions)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1) + self.positions


class Attention(nn.Module):
    """Self-attention over T tokens [B, T, 512] with 8 heads; only the output projection has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.Linear(_WIDTH, 3 * _WIDTH, bias=False)
        self.output = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.projections(x).unflatten(2, (3, _HEADS, -1))  # [B, T, 3, heads, 64]
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # [B, heads, T, 64] each
        # The fused kernels of scaled_dot_product_attention have no second derivative, which gradient matching and
        # trajectory matching need.
        scores = queries / math.sqrt(queries.shape[3]) @ keys.transpose(2, 3)  # [B, heads, T, T]
        return self.output((scores.softmax(dim=3) @ values).transpose(1, 2).flatten(2))


class Residual(nn.Sequential):
    """A residual connection: x plus the output of the layers for x."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class First(nn.Module):
    """Selects the first token, the class token [B, 512], of tokens [B, T, 512]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def _norms(normalised: bool) -> list[nn.Module]:
    return [nn.LayerNorm(_WIDTH)] if normalised else []


def build(name: str, channels: int, num_classes: int, im_size: Sequence[int]) -> ViT | None:
    """The ViT of that name for images [B, channels, *im_size]; None for another name."""
    if name not in NAMES:
        return None
    if takes_large_form(name, im_size):
        return ViT(channels, num_classes, im_size, patch=16, depth=10, normalised=False, name=name)
    return ViT(channels, num_classes, im_size, name=name)
