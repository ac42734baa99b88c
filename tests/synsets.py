"""Small synthetic sets, and what they start from."""

from types import SimpleNamespace

import torch

from common.synset.synset import SynSet


def args(**changes):
    plain = {
        "channel": 3, "num_classes": 4, "im_size": (8, 8), "device": "cpu", "ipc": 1, "msz_per_channel": 16,
        "lr_freq": 100.0, "mom_freq": 0.5,
    }  # fmt: skip
    return SimpleNamespace(**(plain | changes))


def real_images(a, per_class=10, seed=0):
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(a.num_classes).repeat(per_class)  # not grouped, as in a real dataset
    images = torch.randn(len(labels), a.channel, *a.im_size, generator=draws) + labels.view(
        -1, 1, *[1] * len(a.im_size)
    )
    return images, labels, [torch.where(labels == c)[0] for c in range(a.num_classes)]


def started(**changes):
    a = args(**changes)
    synset = SynSet(a)
    synset.init(*real_images(a))
    return synset
