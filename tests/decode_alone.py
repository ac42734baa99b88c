"""Opens a synthetic-set file of any kind as docs/format.md says, with nothing of this package."""

import json
import struct

import constriction
import numpy as np
from scipy import fft

ONE, ROOT = 1 << 40, 1554944255988


def counts(i):
    """The integer counts of the codes -L..L of table i."""
    odds = (ROOT if (i - 17) % 2 else ONE) * 2 ** ((i - 17) // 2 + 9) // 2**9
    rho = odds * ONE // (ONE + odds)
    theta = rho * rho // ONE * (3 * ONE + rho) // (4 * ONE) + (ONE - rho) // 64
    weight, side = rho * (ONE - theta) // (2 * ONE), []
    while len(side) < 1 << 14 and (len(side) < 15 or weight >> 16):
        side.append(max(1, weight >> 16))
        weight = weight * theta // ONE
    return np.array([*side[::-1], (1 << 24) - 2 * sum(side), *side])


def stream(words, classes, n, size, scan):
    """(codes [C, n, P], means [C, P]) of the words of a coded set."""
    decoder = constriction.stream.queue.RangeDecoder(words)

    def take(tables, each=1):
        found = np.zeros((tables.size, each), int)
        for i in np.unique(tables[tables > 0]):
            rows, f = tables.ravel() == i, counts(int(i))
            model = constriction.stream.model.Categorical(f - 1.0, perfect=False)
            found[rows] = (decoder.decode(model, rows.sum() * each) - len(f) // 2).reshape(-1, each)
        return found.reshape(tables.shape) if each == 1 else found

    base, means, codes = np.zeros(size, int), np.zeros((classes, size), int), np.zeros((classes, size, n), int)
    base[scan] = take(np.repeat(take(np.array([24])), size)).cumsum()
    tables = means + base
    tables[:, scan] += take(take(np.repeat(24, base.max() + 1)).cumsum()[tables[:, scan]])
    means[:, scan] = take(take(np.repeat(24, tables.max() + 1)).cumsum()[tables[:, scan]])
    codes[tables > 0] = take(tables[tables > 0], n).reshape(-1, n)
    return codes.transpose(0, 2, 1), means


def payload(data):
    """(the whole numbers that are stored, images [C, n, ch, *sides]) of a payload."""
    _, kind, colour, block, ndim, ch, classes, n = struct.unpack_from("<BBBBBBHI", data)
    sides, data = struct.unpack_from(f"<{ndim}H", data, 12), data[12 + 2 * ndim :]
    part, d = (block,) * ndim if block else sides, int(np.prod(sides))
    tiles, dense = [side // s for side, s in zip(sides, part, strict=True)], np.zeros((classes, n, ch * d))
    if kind == 2:
        rank = sum(np.meshgrid(*(np.arange(s) * (np.lcm.reduce(part) // s) for s in part), indexing="ij")).ravel()
        scan = np.argsort(rank, kind="stable")[:, None] * np.prod(tiles) + np.arange(np.prod(tiles))
        scan, words = np.arange(ch)[:, None] * d + scan.ravel(), np.frombuffer(data, "<u4", offset=4 * classes)
        stored = stream(words, classes, n, ch * d, scan.ravel())
        steps = np.frombuffer(data, "<f4", classes)[:, None, None]
        dense = (stored[0] + stored[1][:, None] / 2.0 ** ((n.bit_length() - 1) // 4)) * steps
    else:
        (joint, width, k), data = struct.unpack_from("<BBI", data), data[6:]
        length = classes * (k * width or -(-(ch * d if joint else d) // 8))
        where = np.frombuffer(data[:length], f"<u{width or 1}").reshape(classes, -1)
        bits = where if width else np.unpackbits(where, axis=1, bitorder="little")
        where = where.astype(int).cumsum(1) + np.arange(k) if width else np.nonzero(bits)[1].reshape(classes, k)
        where = where if joint else np.concatenate([where + c * d for c in range(ch)], axis=1)
        scales = np.frombuffer(data, "<u2", where.size * kind, length).astype("u4")
        stored = np.frombuffer(data, ["<u2", "i1"][kind], offset=length + 2 * scales.size).reshape(classes, n, -1)
        floats = ((scales.reshape(classes, 1, -1) if kind else stored.astype("u4")) << 16).view("f4")
        values = stored * floats if kind else floats
        np.put_along_axis(dense, np.broadcast_to(where[:, None], values.shape), values, 2)
    x = dense.reshape(classes, n, ch, -1, np.prod(tiles)).swapaxes(3, 4).reshape(classes, n, ch, *tiles, *part)
    order = (0, 1, 2, *(a for i in range(ndim) for a in (3 + i, 3 + ndim + i)))
    x = fft.idctn(x, norm="ortho", axes=range(-ndim, 0)).transpose(order).reshape(classes, n, ch, *sides)
    rows = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]]) if colour else np.eye(ch)
    return stored, np.moveaxis(np.moveaxis(x, 2, -1) @ rows, -1, 2)


def open_file(path):
    """(what is stored, images [C, n, ch, *sides]) of a synthetic-set file with coefficients of the DCT."""
    data = np.fromfile(path, "u1").tobytes()
    end = 8 + int.from_bytes(data[:8], "little")
    head, data = json.loads(data[8:end]), data[end:]
    told = json.loads(head.pop("__metadata__")["fred"])
    parts = {key: np.frombuffer(data[slice(*each["data_offsets"])], "u1") for key, each in head.items()}
    if "payload" in parts:
        return payload(parts["payload"].tobytes())
    assert told["transform"] == "dct", "other transforms are not decoded here"
    stored = parts["coefficients"].view("<f4").reshape(head["coefficients"]["shape"])
    dense = np.zeros((*stored.shape[:3], np.prod(told["im_size"])))
    where = parts["positions"].view("<i4").reshape(len(stored), 1, 1, -1)
    np.put_along_axis(dense, np.broadcast_to(where, stored.shape), stored, 3)
    return stored, fft.idctn(dense.reshape(*stored.shape[:3], *told["im_size"]), axes=range(-len(told["im_size"]), 0))
