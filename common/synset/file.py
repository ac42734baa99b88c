"""Reading and writing of synthetic-set files; no other module writes them (docs/format.md).

A `.safetensors` file holds `coefficients` float32 [C, n, ch, k] and `positions` int32 [C, k] (C classes, n images per
class, ch channels, k coefficients), or, stored in fewer bits, one `payload` uint8; with trajectory matching also
`step_size` float32 [1], and with soft labels `soft_labels` float32 [C * n, C]. Its JSON metadata suffices to evaluate
the set, and holds a checksum of everything. It contains no pickle, so loading it cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.codec.payload import decode, read_head
from common.disk.kinds import foreign_kind
from common.disk.paths import expanded, is_file
from common.networks.architecture import architecture
from common.schemas import door
from common.synset.base import LearnedSet
from common.synset.packed import PackedArgs, PackedSet
from common.synset.soft_labels import SoftLabels, checked
from common.synset.synset import SynSet, SynSetArgs
from common.system.errors import InputError
from common.system.files import json_checksum, json_text, opened_tensors, torch_bytes, write_atomically

# A synthetic set and its metadata, as `load_synset` returns them.
StoredSet = tuple[LearnedSet, dict[str, Any]]

FORMAT = "fred-synset"
VERSION = 2  # 2 has a checksum
PACKED_VERSION = 3  # of files with a payload; all others stay of version 2
SOFT_VERSION = 4  # of files with soft labels, which readers of older versions would pass over
_REMEDY = "it is damaged, or was not written by this project; copy it again, or run the command that made it again"
_METADATA_KEY = "fred"
_FROM_SYNSET = (
    "channel", "num_classes", "im_size", "ipc", "msz_per_channel", "transform", "selection", "selection_images",
)  # fmt: skip


def save_synset(
    synset: LearnedSet, path: Path | str, metadata: dict[str, Any], step_size: Tensor | None = None
) -> Path:
    """Write a synthetic set atomically and return the path.

    metadata: what an evaluation needs besides the tensors (dataset, mean, std, class_names, network, evaluation, ...),
    JSON values only. This function adds the set's shape, transform and learning rate, the kind of its soft labels if it
    has some, the checksum, and what the network is that the metadata name ("architecture", see `architecture_of`).
    Raises InputError if the file cannot be written, if the set holds no images yet, and for metadata that
    `load_synset` would refuse: other types than JSON has, NaN, or values of another type than expected of their key.
    """
    from safetensors.torch import save

    from common.schemas.synset import check_metadata

    synset.check_filled()
    path = expanded(path)
    where, remedy = f"what {path} is to say of its set", "correct the metadata"
    door.check_plain(metadata, where, remedy)
    found, stored = synset.file_contents()
    fields = {
        **{key: value for key, value in metadata.items() if key != "soft_labels" and (stored or key != "storage")},
        "format": FORMAT,
        "format_version": PACKED_VERSION if stored else VERSION,
        **stored,
        **{key: getattr(synset, key) for key in _FROM_SYNSET},
        # null if unknown: the set was converted from a file that does not name it
        "lr_freq": synset.args.lr_freq or None,
        "mom_freq": synset.args.mom_freq,
    }
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in found.items()}
    if step_size is not None:
        tensors["step_size"] = step_size.detach().cpu().float().reshape(1)
    if (soft := synset.soft_labels) is not None:
        told = _soft_labels(path, soft.values, soft.kind, synset)
        tensors["soft_labels"] = told.values.cpu()
        fields |= {"format_version": SOFT_VERSION, "soft_labels": told.kind}
    if "architecture" not in fields and isinstance(name := fields.get("network"), str):
        known = architecture(name, synset.channel, synset.num_classes, synset.im_size)
        fields |= {} if known is None else {"architecture": known}
    # The checksum is of the values as they will be read: lists for tuples, text for the keys of a table.
    read = json.loads(json.dumps({key: value for key, value in fields.items() if key != "checksum"}, allow_nan=False))
    check_metadata(read, where, remedy)
    text = json_text(read | {"checksum": set_checksum(read, tensors)})
    content = save(tensors, metadata={_METADATA_KEY: text})
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path


def load_synset(path: Path | str, device: torch.device | str = "cpu") -> StoredSet:
    """Return the synthetic set and its metadata; `metadata["step_size"]` is the learned step size, if the set has one.

    Raises InputError if the file is missing, damaged, not a synthetic set, or of a newer format version, or if its
    numbers are not finite. Files of version 1, which have no checksum, are believed if they can be read.
    """
    path = expanded(path)
    metadata, tensors = _read(path)
    _check_tensors(path, metadata, tensors)
    fields = {key: metadata[key] for key in (*_FROM_SYNSET, "lr_freq", "mom_freq")}
    fields |= {"lr_freq": fields["lr_freq"] or 0.0, "device": torch.device(device)}
    synset: LearnedSet
    packed = tensors.get("payload")
    try:
        synset = _plain(tensors, fields) if packed is None else _packed(packed, metadata["storage"], fields)
    except InputError as error:
        raise InputError(f"{path} holds no set that this code can decode: {error}") from error
    if "soft_labels" in tensors:
        told = _soft_labels(path, tensors["soft_labels"], metadata["soft_labels"], synset)
        synset.soft_labels = told.to(device)
    for key in tensors.keys() & {"coefficients", "step_size"}:
        if not tensors[key].isfinite().all():
            raise InputError(f"{path} holds {key} that are not finite (NaN or infinity): its run diverged")
    if "step_size" in tensors:
        metadata["step_size"] = tensors["step_size"].item()
    return synset, metadata


def file_bytes(path: Path | str) -> dict[str, int]:
    """The bytes of a synthetic-set file by what they are for; they add up to its length.

    needed: what a decoder needs, the payload, or coefficients and positions (the shapes of these are in the header),
    and soft labels.
    metadata: the description, and a learned step size. header: names, types and shapes of the tensors, and padding.
    Raises InputError if it is no readable file.
    """
    path = expanded(path)
    _read(path)
    with opened_tensors(path) as file:
        text = (file.metadata() or {}).get(_METADATA_KEY, "")
        sizes = {key: file.get_tensor(key).nbytes for key in file.keys()}  # noqa: SIM118 (not a mapping)
    beside = sizes.pop("step_size", 0) + len(json.dumps(text, ensure_ascii=False).encode())
    needed = sum(sizes.values())
    return {"needed": needed, "metadata": beside, "header": path.stat().st_size - needed - beside}


def _check_tensors(path: Path, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raise InputError unless the tensors are those that the metadata tell of, of their types and shapes.

    Nothing has been made of either before: metadata may tell of more images than fit into the memory.
    """
    version, packed = metadata["format_version"], "payload" in tensors
    if packed != ("storage" in metadata) or (version != SOFT_VERSION and packed != (version == PACKED_VERSION)):
        raise _damaged(path, f"a payload, or none, against its format version {version}")
    if {"soft_labels" in there for there in (metadata, tensors)} != {version == SOFT_VERSION}:
        raise _damaged(path, f"soft labels, or none, against its format version {version}")
    if "step_size" in tensors and (tensors["step_size"].numel() != 1 or tensors["step_size"].dtype != torch.float32):
        raise _damaged(path, "a step_size that is not one float32")
    if packed:
        return
    if lacking := {"coefficients", "positions"} - tensors.keys():
        raise _damaged(path, f"no {min(lacking)}")
    classes, k = metadata["num_classes"], metadata["msz_per_channel"]
    n = metadata["ipc"] * math.prod(metadata["im_size"]) // k
    wanted = {"coefficients": ("float32", [classes, n, metadata["channel"], k]), "positions": ("int32", [classes, k])}
    for key, told in wanted.items():
        found = str(tensors[key].dtype).removeprefix("torch."), list(tensors[key].shape)
        if found != told:
            raise _damaged(path, f"{key} {found[0]} {found[1]}, and {told[0]} {told[1]} by its metadata")


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path} is damaged (it holds {what}): copy it again, or run the command that made it again")


def _plain(tensors: dict[str, Tensor], fields: dict[str, Any]) -> SynSet:
    """The set of coefficients and positions."""
    synset = SynSet(SynSetArgs(**fields))
    synset.load_state_dict({key: tensors[key].to(fields["device"]) for key in ("coefficients", "positions")})
    return synset


def _packed(tensor: Tensor, storage: dict[str, Any], fields: dict[str, Any]) -> PackedSet:
    """The set of a payload. What it says of shapes is compared with the metadata before anything is made of either."""
    payload = tensor.numpy().tobytes() if tensor.dtype == torch.uint8 else b""
    kind, planes, classes, count, _ = read_head(payload)
    found = (planes.channels, classes, list(planes.im_size), kind, count, planes.colour, planes.block)
    told = (
        fields["channel"], fields["num_classes"], list(fields["im_size"]),
        *(storage[key] for key in ("kind", "images_per_class", "colour", "block")),
    )  # fmt: skip
    if found == told:
        contents = decode(payload)
        joint = "joint" if contents.joint else "shared"
    if found != told or joint != storage["positions"] or len(payload) != storage["bytes"]:
        raise InputError("the payload is of other shapes than the metadata say: the file is damaged, copy it again")
    del fields["transform"]
    made = PackedArgs(
        **fields, bits_per_class=storage["bits_per_class"], storage=contents.kind, colour=planes.colour,
        block=planes.block, kept=joint, num_per_class=contents.values.shape[1], optimizer="sgd",
    )  # fmt: skip
    synset = PackedSet(made)
    synset.load_payload(payload, contents)
    if synset.numbers() != storage["numbers"]:
        raise InputError("the payload holds other numbers than the metadata say: the file is damaged, copy it again")
    return synset


def _soft_labels(path: Path, values: Tensor, kind: Any, synset: LearnedSet) -> SoftLabels:
    """Soft labels of the set of a file. Raises InputError if they are damaged."""
    if kind not in ("probabilities", "logits"):
        raise _damaged(path, "a wrong soft_labels in its metadata")
    remedy = "make it again, with logits if that is what they are"
    return checked(values, kind, len(synset.labels), synset.num_classes, str(path), remedy)


def export_pair(synset: LearnedSet, folder: Path | str) -> tuple[Path, Path]:
    """Write the decoded set in the authors' format and return both paths.

    `images_best.pt` is float32 [C * n, ch, *im_size] on the CPU, normalised; `labels_best.pt` is int64 [C * n] on the
    CPU, grouped by class, or the probabilities float32 [C * n, C] of soft labels.
    """
    images, labels = synset.get(need_copy=True)
    if synset.soft_labels is not None:
        labels = synset.soft_labels.probabilities()
    paths = Path(folder) / "images_best.pt", Path(folder) / "labels_best.pt"
    for path, tensor in zip(paths, (images.cpu().contiguous(), labels.cpu()), strict=True):
        content = torch_bytes(tensor)
        write_atomically(path, lambda temporary, content=content: temporary.write_bytes(content))  # type: ignore[misc]
    return paths


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata, which fit their schema, and the tensors. Raises InputError as `load_synset`."""
    from common.schemas.synset import check_metadata

    if not is_file(path):
        raise InputError(f"no synthetic set at {path}: check the path (a run leaves synset.safetensors in its folder)")
    try:
        with opened_tensors(path) as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, ValueError) as error:
        if (other := foreign_kind(path)) is not None:
            raise InputError(
                f"{path} is {other}, and no synthetic set: give a .safetensors file, or an authors' .pt (python -m "
                "common.pretrained import makes a set of images in class folders, .npz or .pt)"
            ) from error
        raise InputError(
            f"{path} is not a readable synthetic set ({error}): it may be truncated; copy it again"
        ) from error
    metadata = door.parse(text or "{}", str(path), _REMEDY)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"{path} is a safetensors file, but not a synthetic set of this project")
    version = metadata.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version > SOFT_VERSION:
        raise InputError(f"{path} has format version {version}, this code reads up to {SOFT_VERSION}: update it")
    if version not in (1, VERSION, PACKED_VERSION, SOFT_VERSION) or (
        version > 1 and metadata.pop("checksum", None) != set_checksum(metadata, tensors)
    ):
        raise InputError(f"{path} is damaged (wrong checksum): copy it again, or run the command that made it again")
    return check_metadata(metadata, str(path), _REMEDY), tensors


def set_checksum(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """A hash of all metadata but the checksum, and of the tensors with their names, types and shapes."""
    told = {}
    for name, tensor in tensors.items():
        values = hashlib.blake2b(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, digest_size=20)
        told[name] = [str(tensor.dtype), list(tensor.shape), values.hexdigest()]
    return json_checksum([metadata, told])
