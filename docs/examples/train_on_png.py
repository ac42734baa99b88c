"""Train a small network on an exported synthetic set, with torch and torchvision alone: python train_on_png.py PATH

PATH is what `python -m common.pretrained export FILE --to folder:PATH --with_test` wrote.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

root = Path(sys.argv[1])
about = json.loads((root / "about.json").read_text(encoding="utf-8"))
channels, classes = about["channels"], len(about["class_names"])
gray = [transforms.Grayscale()] if channels == 1 else []  # ImageFolder reads every file in colour
pixels = transforms.Compose([*gray, transforms.ToTensor(), transforms.Normalize(about["mean"], about["std"])])


def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of a split, which are few, and the numbers of their classes in the order of about.json."""
    data = ImageFolder(root / split, pixels)
    images, labels = zip(*data, strict=True)
    number = torch.tensor([about["folders"].index(name) for name in data.classes])
    return torch.stack(images), number[torch.tensor(labels)]


def block(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, 64, 3, padding=1), nn.GroupNorm(64, 64), nn.ReLU(), nn.AvgPool2d(2))


torch.manual_seed(0)
(images, labels), (test_images, test_labels) = load("train"), load("test")
look = nn.AvgPool2d(max(1, images.shape[-1] // 32))  # at large images in 32 pixels: seconds on a CPU
network = nn.Sequential(look, block(channels), block(64), nn.Flatten(), nn.LazyLinear(classes))
network(images[:1])
optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
for _ in range(200):
    for batch in torch.randperm(len(images)).split(256):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
with torch.no_grad():
    right = sum(
        (network(part).argmax(1) == of).sum()
        for part, of in zip(test_images.split(500), test_labels.split(500), strict=True)
    )
print(f"{100 * right / len(test_labels):.1f} % of {len(test_labels):,} test images are recognised")
