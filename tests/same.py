"""Does the working tree distil what a commit does, to the bit? `make same AGAINST=COMMIT`, or

python tests/same.py COMMIT               both make the same small runs on digits
python tests/same.py COMMIT --resumed     the commit begins the runs, is interrupted, and the working tree finishes them

The runs of DM, DC, TM/buffer and TM take a minute or two on two cores. Each version imports its own packages, in one
thread of this interpreter. What they leave is compared: tensors byte for byte, metadata, metrics, summary and
configuration value by value, but for the code's version and what is another each time (seconds, memory, hardware). Of
all other files only the names are.

Options that only one version has are told of and no difference: what they do shows in the rest.
Exit code: 0 if all is the same, 1 if something differs or a run fails, 2 without such a commit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
UPDATES = 12
EXPERTS = 3
LONGEST = 600  # seconds of a command

# Another each time, or with the code's version, whose length is part of file_bytes and which checksums cover.
LEFT_OUT = {
    "version",
    "seconds",
    "distillation_seconds",
    "evaluation_seconds",
    "measured",
    "peak_memory_bytes",
    "hardware",
    "file",
    "picture",
    "file_bytes",
    "checksum",
}
LEFT_OUT_FILES = {"checksums.json"}  # that it is there is compared
ADDED = {"architecture"}  # to the metadata of sets, since the versions that runs are compared with
SHOWN = 8  # differences of a file


class Failed(Exception):
    """A run that cannot be compared, in a sentence."""


@dataclass(frozen=True)
class Run:
    """A command that both versions give.

    of: what it is a run of. title: the same, told from others. folder: where the run is, below the current folder; ""
    where it has no --name, and for experts. stop_after, by: how many updates it has made when it is interrupted, and
    with which signal.
    """

    of: str
    title: str
    words: tuple[str, ...]
    folder: str = ""
    stop_after: int = 0
    by: signal.Signals = signal.SIGKILL


def _words(script: str, flags: str) -> tuple[str, ...]:
    return tuple(f"{script} --dataset digits --model ConvNetD2W16 --device cpu {flags}".split())


def _distilled(objective: str, name: str, flags: str, stop_after: int, by: signal.Signals) -> Run:
    shared = (
        f"--Iteration {UPDATES} --eval_it 5 --num_eval 2 --epoch_eval_train 6 --checkpoint_every 1 --name {name} "
        "--save_path runs"
    )
    words, folder = _words(f"{objective}/distill.py", f"{shared} {flags}"), f"runs/{objective}/digits/ipc1/{name}"
    return Run(objective, f"{objective} ({name})", words, folder, stop_after, by)


BUFFER = Run("TM/buffer", "TM/buffer", _words("TM/buffer.py", "--train_epochs 4 --mom 0.5 --buffer_path buffers"))
FIRST_EXPERT = "buffers/digits/ConvNetD2W16/expert_0000.safetensors"
# Interrupted before the evaluation in the middle and after it, with and without time to save.
NAMED = (
    _distilled("DM", "dm", "--batch_real 16", 3, signal.SIGKILL),
    _distilled("DC", "dc", "--batch_real 16 --method DC", 6, signal.SIGKILL),
    _distilled("DC", "dsa", "--batch_real 16 --method DSA --outer_loop 2 --inner_loop 1", 3, signal.SIGTERM),
    BUFFER,
    _distilled(
        "TM", "tm",
        "--buffer_path buffers --syn_steps 4 --expert_epochs 2 --max_start_epoch 3 --batch_syn 12 "
        "--experts_per_iteration 2", 7, signal.SIGTERM,
    ),
)  # fmt: skip
# Its folder is named by its options: a name that moves would leave the runs of users behind.
UNNAMED = Run(
    "DM",
    "DM (without --name)",
    _words(
        "DM/distill.py",
        "--Iteration 3 --eval_it 2 --num_eval 1 --epoch_eval_train 2 --batch_real 8 --batch_syn 2 --transform dwt "
        "--selection variance --selection_images init --no_dsa --save_path unnamed",
    ),
)


# -- comparing ---------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """What two folders have in common, and in what they differ: sentences that begin with the file."""

    files: int = 0
    tensors: int = 0
    lines: int = 0
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(there: Path, here: Path) -> Comparison:
    """All files below two folders, those that are hidden aside."""
    found = Comparison()
    names = [{path.relative_to(folder).as_posix() for path in _files(folder)} for folder in (there, here)]
    for name in sorted(names[0] | names[1]):
        if name not in names[0] & names[1]:
            found.differences.append(f"{name}: only {'there' if name in names[0] else 'here'}")
            continue
        comparing = _COMPARED.get(Path(name).suffix)
        if comparing is None or Path(name).name in LEFT_OUT_FILES:
            continue
        found.files += 1
        try:
            told = list(comparing(there / name, here / name, found))
        except (SafetensorError, OSError, ValueError) as error:
            told = [f"cannot be read ({error})"]
        if len(told) > SHOWN:
            told[SHOWN:] = [f"... and {len(told) - SHOWN} more"]
        found.differences += [f"{name}: {each}" for each in told]
    found.notes = list(dict.fromkeys(found.notes))
    return found


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _compare_tensors(there: Path, here: Path, found: Comparison) -> Iterator[str]:
    (tensors, metadata), (others, others_metadata) = _read_tensors(there), _read_tensors(here)
    sets = [each.get("fred") for each in (metadata, others_metadata)]
    if all(isinstance(each, dict) for each in sets):
        _keep_entries_of_both(*sets, found)
    found.tensors += len(tensors)
    for name in sorted({*tensors, *others}):
        if name in tensors and name in others:
            yield from (f"{name}: {told}" for told in _compare_tensor(tensors[name], others[name]))
        else:
            yield f"{name}: only {'there' if name in tensors else 'here'}"
    yield from (f"metadata {told}" for told in _compare_values(metadata, others_metadata))


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        return tensors, {key: _parsed(text) for key, text in (file.metadata() or {}).items()}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _compare_tensor(there: Tensor, here: Tensor) -> Iterator[str]:
    if (there.dtype, there.shape) != (here.dtype, here.shape):
        kinds = [f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" for each in (there, here)]
        yield f"{kinds[0]} there, {kinds[1]} here"
    elif there.numel():
        a, b = (each.reshape(-1).view(torch.uint8).reshape(each.numel(), -1) for each in (there, here))
        differ = int(a.ne(b).any(dim=1).sum())
        if differ:
            largest = (there.double() - here.double()).abs().max().item()
            yield f"{differ} of {there.numel()} values differ, at most by {largest:.3g}"


def _compare_json(there: Path, here: Path, found: Comparison) -> Iterator[str]:
    a, b = (json.loads(path.read_text(encoding="utf-8")) for path in (there, here))
    if there.name == "config.json":
        _keep_options_of_both(a, b, found)
    yield from _compare_values(a, b)


def _keep_options_of_both(a: dict[str, Any], b: dict[str, Any], found: Comparison) -> None:
    """Take out of two configurations the options that only one of them has, of which the notes tell."""
    for config, other, where in ((a, b, "there"), (b, a, "here")):
        for name in sorted(config["options"].keys() - other["options"].keys()):
            value = json.dumps(config["options"].pop(name).get("value"))
            config["identity"].pop(name, None)
            found.notes.append(f"an option --{name} is only {where}: {value}")


def _keep_entries_of_both(a: dict[str, Any], b: dict[str, Any], found: Comparison) -> None:
    """Take out of the metadata of two sets what only newer versions write, of which the notes tell."""
    for metadata, other, where in ((a, b, "there"), (b, a, "here")):
        for name in ADDED & (metadata.keys() - other.keys()):
            del metadata[name]
            found.notes.append(f"sets have {name} in their metadata only {where}")


def _compare_lines(there: Path, here: Path, found: Comparison) -> Iterator[str]:
    lines, others = (path.read_text(encoding="utf-8").splitlines() for path in (there, here))
    found.lines += len(lines)
    if len(lines) != len(others):
        yield f"{len(lines)} lines there, {len(others)} here"
    for number, (a, b) in enumerate(zip(lines, others, strict=False), start=1):
        yield from (f"line {number}: {told}" for told in _compare_values(_parsed(a), _parsed(b)))


def _compare_values(there: Any, here: Any) -> Iterator[str]:
    leaves, others = dict(_leaves(there)), dict(_leaves(here))
    for key in dict.fromkeys([*leaves, *others]):
        a, b = leaves.get(key, "absent"), others.get(key, "absent")
        if a != b:
            yield f"{key + ': ' if key else ''}{a} there, {b} here"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of what is compared. As text 1, 1.0 and true are three, and NaN is itself."""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            if name not in LEFT_OUT:
                yield from _leaves(part, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value:
        for index, part in enumerate(value):
            yield from _leaves(part, f"{key}[{index}]")
    else:
        yield key, json.dumps(value, ensure_ascii=False)


_COMPARED: dict[str, Callable[[Path, Path, Comparison], Iterator[str]]] = {
    ".safetensors": _compare_tensors, ".json": _compare_json, ".jsonl": _compare_lines,
}  # fmt: skip


def name_alike(there: Path, here: Path) -> list[str]:
    """Give the one run folder below `here` the name of that below `there`, and say so if it had another."""
    folders = [[path.parent for path in sorted(side.rglob("config.json"))] for side in (there, here)]
    if [len(each) for each in folders] != [1, 1]:
        raise Failed(f"one run without --name left {len(folders[0])} folders there and {len(folders[1])} here")
    a, b = folders[0][0].relative_to(there), folders[1][0].relative_to(here)
    if a == b:
        return []
    (here / a).parent.mkdir(parents=True, exist_ok=True)
    (here / b).rename(here / a)
    return [f"a run without --name: its folder is {a} there, {b} here"]


# -- running -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """The files of one version, and what it is called."""

    label: str
    root: Path

    def environment(self, cache: Path) -> dict[str, str]:
        """This one, in which python imports the version's packages and computes in one thread of the CPU."""
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        places = {"PYTHONPATH": str(self.root), "FRED_CACHE": str(cache), "CUDA_VISIBLE_DEVICES": ""}
        return os.environ | threads | places

    def check_imports(self, folder: Path) -> None:
        """Raises Failed where python would import packages of this name from elsewhere, as from an installed copy."""
        names = sorted(path.parent.name for path in self.root.glob("*/__init__.py") if path.parent.name != "tests")
        code = (
            "import importlib.util, sys; print(*(importlib.util.find_spec(n).origin for n in sys.argv[1:]), sep='\\n')"
        )
        told = subprocess.run(
            [sys.executable, "-c", code, *names],
            cwd=folder, env=self.environment(folder), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if told.returncode:
            raise Failed(f"{self.label}: {', '.join(names)} cannot be imported\n{told.stderr}")
        for name, file in zip(names, told.stdout.splitlines(), strict=True):
            if not Path(file).resolve().is_relative_to(self.root.resolve()):
                raise Failed(f"{self.label}: python imports {name} from {file} instead of {self.root}")


@dataclass
class Side:
    """One of the two sets of runs, in a folder of its own. stop: set once the other one has failed."""

    folder: Path
    stop: threading.Event

    def __post_init__(self) -> None:
        self.folder.mkdir()

    def make(self, version: Version, run: Run, *more: str) -> None:
        """Make a run from beginning to end. Raises Failed."""
        begun = time.monotonic()
        code = self._execute(version, [*run.words, *more])
        if code:
            raise self._failed(version, run, f"exit code {code}")
        self._say(f"{run.title} by {version.label}: {time.monotonic() - begun:.0f} s")

    def begin(self, version: Version, run: Run) -> None:
        """Begin a run, and interrupt it in the middle. Raises Failed where it was faster."""
        folder = self.folder / run.folder
        self._execute(version, list(run.words), lambda: self.updates(run) >= run.stop_after, run.by)
        made = self.updates(run)
        if made < run.stop_after:
            raise self._failed(version, run, f"ended after {made} updates")
        if made >= UPDATES or (folder / "summary.json").exists():
            raise Failed(f"{run.title} by {version.label} had finished before {run.by.name} reached it: try again")
        self._say(f"{run.title} by {version.label}: {run.by.name} after {made} of {UPDATES} updates")

    def finish(self, version: Version, run: Run) -> None:
        """Go on with a run to its end. Raises Failed where it began anew."""
        metrics = self.folder / run.folder / "metrics.jsonl"
        # The evaluation before the first update, with the milliseconds that it took.
        first = metrics.read_bytes().splitlines()[0]
        self.make(version, run)
        if metrics.read_bytes().splitlines()[0] != first:
            raise Failed(f"{run.title}: {version.label} did not go on with the run but began it anew")

    def complete(self, version: Version, run: Run, *more: str) -> None:
        """Train the experts that are missing. Raises Failed where the first one is trained once more."""
        expert = self.folder / FIRST_EXPERT
        before = expert.stat()
        self.make(version, run, *more)
        if expert.stat().st_mtime_ns != before.st_mtime_ns:
            raise Failed(f"{run.title}: {version.label} has trained an expert anew that was there")

    def updates(self, run: Run) -> int:
        """Updates whose losses have been recorded."""
        metrics = self.folder / run.folder / "metrics.jsonl"
        return metrics.read_bytes().count(b'"loss"') if metrics.exists() else 0

    def _execute(
        self,
        version: Version,
        words: list[str],
        until: Callable[[], bool] = lambda: False,
        by: signal.Signals = signal.SIGKILL,
    ) -> int:
        """The exit code of a command, which gets a signal once `until` says so."""
        script, *flags = words
        deadline, sent = time.monotonic() + LONGEST, False
        cache = self.folder.with_suffix(".cache")
        with (
            self._output.open("w", encoding="utf-8") as output,
            subprocess.Popen(
                [sys.executable, version.root / script, *flags],
                cwd=self.folder, env=version.environment(cache), stdout=output, stderr=subprocess.STDOUT,
            ) as process,
        ):  # fmt: skip
            try:
                while process.poll() is None:
                    if self.stop.is_set():
                        raise Failed(f"{script} by {version.label} was stopped, for the other side has failed")
                    if time.monotonic() > deadline:
                        raise Failed(f"{script} by {version.label} takes longer than {LONGEST} seconds")
                    if not sent and until():
                        process.send_signal(by)
                        sent = True
                    time.sleep(0.005)
            finally:
                process.kill()
        return process.returncode

    def _say(self, text: str) -> None:
        print(f"{self.folder.name:>5}: {text}", flush=True)

    @property
    def _output(self) -> Path:
        return self.folder.with_suffix(".txt")

    def _failed(self, version: Version, run: Run, how: str) -> Failed:
        said = self._output.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        return Failed("\n    ".join([f"{run.title} by {version.label}: {how}", " ".join(run.words), *said]))


def make_all(side: Side, version: Version, runs: Sequence[Run]) -> None:
    """These runs, by one version."""
    for run in runs:
        side.make(version, run, *(["--num_experts", str(EXPERTS)] if run is BUFFER else []))


def make_in_parts(side: Side, first: Version, then: Version) -> None:
    """Every run that has a name, begun by one version and finished by another."""
    for run in NAMED:
        if run is BUFFER:
            side.make(first, run, "--num_experts", "1")
            side.complete(then, run, "--num_experts", str(EXPERTS))
        else:
            side.begin(first, run)
            side.finish(then, run)


def make_both(place: Path, commit: Version, tree: Version, resumed: bool) -> tuple[Path, Path]:
    """Make the runs of both sides at once; their folders. Raises Failed."""
    stop = threading.Event()
    there, here = Side(place / "there", stop), Side(place / "here", stop)
    runs = NAMED if resumed else (*NAMED, UNNAMED)
    for version in (commit, tree):
        version.check_imports(place)
    with ThreadPoolExecutor(2) as pool:
        try:
            sides = [
                pool.submit(make_all, there, commit, runs),
                pool.submit(make_in_parts, here, commit, tree) if resumed else pool.submit(make_all, here, tree, runs),
            ]
            done, _ = wait(sides, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
        for each in done:
            each.result()
    return there.folder, here.folder


# -- the command -------------------------------------------------------------------------------------------------


def find(commit: str) -> str | None:
    """A commit's hash, None where there is no such commit."""
    told = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return told.stdout.strip() if told.returncode == 0 else None


def extract(commit: str, folder: Path) -> None:
    """Write a commit's files into a new folder. The repository is left as it is."""
    folder.mkdir()
    with subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE) as archive:
        subprocess.run(["tar", "-x"], cwd=folder, stdin=archive.stdout, check=True)
    if archive.returncode:
        raise Failed(f"git archive {commit} failed")


def main(argv: list[str] | None = None) -> int:
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="same.py", description=f"{about}\n\n{more}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", metavar="COMMIT", help="a hash, a branch, HEAD~1, ...")
    parser.add_argument("--resumed", action="store_true", help="the working tree finishes what the commit began")
    options = parser.parse_args(argv)
    commit = find(options.commit)
    if commit is None:
        print(f"error: there is no commit '{options.commit}' here: give one that `git log` shows", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left behind
    with tempfile.TemporaryDirectory(prefix="same-") as place:
        try:
            files = Path(place) / "commit"
            extract(commit, files)
            versions = Version(commit[:7], files), Version("the working tree", ROOT)
            there, here = make_both(Path(place), *versions, options.resumed)
            moved = [] if options.resumed else name_alike(there / "unnamed", here / "unnamed")
            found = compare(there, here)
        except Failed as failed:
            print(f"error: {failed}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    return report(found, moved, versions[0].label, options.resumed)


def report(found: Comparison, moved: list[str], commit: str, resumed: bool) -> int:
    """Say what was found; the exit code."""
    what = f"begun by {commit} and finished by the working tree" if resumed else f"{commit} and the working tree"
    names = ", ".join(dict.fromkeys(run.of for run in NAMED))
    amount = f"{found.files} files, {found.tensors} tensors, {found.lines} lines of metrics of {names}"
    for note in found.notes:
        print(f"note: {note}")
    differences = [*moved, *found.differences]
    if not differences:
        print(f"same: {amount} ({what})")
        return 0
    print(f"there: {commit}; here: {'the same, finished by ' if resumed else ''}the working tree")
    for difference in differences:
        print(f"  {difference}")
    print(f"different: {len(differences)} differences in {amount} ({what})")
    return 1


if __name__ == "__main__":
    sys.exit(main())
