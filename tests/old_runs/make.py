"""Makes the run folders that lie beside it, by the code of a checkout; tests/test_identity.py has the commands.

runs/       of DM, DC and TM a run that SIGTERM stopped after 4 of 6 updates; of the scripts whose images are large
            config.json alone
buffers/    TM's expert
finished/   the sets that the same commands ended with when nothing stopped them
"""

import importlib
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Where an input of ReLU is zero but for rounding, a gradient jumps, on one machine and not on another: hence Swish.
NETWORK = ["--dataset", "digits", "--model", "ConvNetD1W16ASwish", "--device", "cpu"]
SMALL = [*NETWORK, "--Iteration", "6", "--eval_it", "0", "--num_eval", "1", "--epoch_eval_train", "0"]
COMMANDS = {
    "DM": [*SMALL, "--batch_real", "16"],
    "DC": [*SMALL, "--batch_real", "16"],
    "TM": [*SMALL, "--syn_steps", "3", "--max_start_epoch", "1", "--expert_epochs", "2"],
}
EXPERTS = [*NETWORK, "--num_experts", "1", "--train_epochs", "2"]
STOPPED_AFTER = 4
KEPT = ("config.json", "metrics.jsonl", "log.txt", "checkpoint.pt", "synset.safetensors", "synset_best.safetensors")


def distil(checkout: Path, objective: str, stop_after: int) -> None:
    """The objective's command in this process, which sends itself SIGTERM in update `stop_after` (0: never)."""
    module = importlib.import_module(f"common.objectives.{objective.lower()}")
    original, calls = module.match, []

    def match(*positional, **named):
        calls.append(None)
        if len(calls) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*positional, **named)

    module.match = match
    script = checkout / objective / "distill.py"
    sys.argv = [str(script), *COMMANDS[objective]]
    runpy.run_path(str(script), run_name="__main__")


def open_large(checkout: Path) -> None:
    """The run folders of the scripts whose images are large, opened and let go of."""
    import torch
    from common.distill import open_run
    from common.objectives import imagenet_abcde
    from common.options import parse

    voxels = runpy.run_path(str(checkout / "3D-MNIST/distill.py"))["Options"]
    of_imagenet = {f"ImageNet-abcde/{name}": getattr(imagenet_abcde, name) for name in ("DC", "DM", "TM")}
    for objective, kind in [("DM", voxels), *of_imagenet.items()]:
        open_run(*parse(kind, objective, ["--device", "cpu"]), objective, torch.device("cpu")).close()


def main(checkout: Path) -> None:
    """Everything anew."""
    for name in ("runs", "buffers", "finished"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    (HERE / "finished").mkdir()
    with tempfile.TemporaryDirectory() as place:

        def python(*words: object) -> int:
            return subprocess.run([sys.executable, *map(str, words)], cwd=place, check=False).returncode

        def again(*words: object) -> int:
            return python(__file__, checkout, *words)

        assert python(checkout / "TM/buffer.py", *EXPERTS) == 0
        for objective in COMMANDS:
            assert again(objective, 0) == 0
            (whole,) = Path(place).glob(f"runs/{objective}/digits/ipc1/*")
            shutil.copy(whole / "synset.safetensors", HERE / "finished" / f"{objective}.safetensors")
            shutil.rmtree(whole)
            assert again(objective, STOPPED_AFTER) == 128 + signal.SIGTERM
        assert again("large") == 0
        runs, experts = Path(place).glob("runs/**/*"), Path(place).glob("buffers/**/[!.]*.*")
        for path in [*(path for path in runs if path.name in KEPT), *experts]:
            if path.is_file():
                kept = HERE / path.relative_to(place)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept)


if __name__ == "__main__":
    place, *rest = sys.argv[1:]
    if not rest:
        main(Path(place).resolve())
    elif rest == ["large"]:
        open_large(Path(place))
    else:
        distil(Path(place), rest[0], int(rest[1]))
