"""The benchmarks, without a checkout of the authors' and at a size that takes no time."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from common.system.errors import InputError
from tests.command_line import assert_refused, call
from tests.conftest import ROOT

SCRIPT = "benchmarks/versus_authors.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench():
    """The modules of benchmarks/, whose scripts import each other by their bare names."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import cases
        import checkout
        import measure
        import scaling
        import sizes
        import table
        import versus_authors

        yield SimpleNamespace(
            cases=cases, checkout=checkout, measure=measure, scaling=scaling, sizes=sizes, table=table,
            versus_authors=versus_authors,
        )  # fmt: skip
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def tiny(bench):
    return bench.sizes.Size(
        side=16, depth=2, width=8, dm=(1, 64), dc=(1, 64), tm=(1, 64), per_class=8, syn_steps=2, published_steps=50,
        expert_images=9, test_images=9, classes=2, batch_real=4, batch_train=8, evaluation_epochs=1,
    )  # fmt: skip


# -- our versions ------------------------------------------------------------------------------------------------


def test_every_version_of_ours_runs_again_and_again(bench, tiny, one_thread):
    for case in bench.cases.cases_of(tiny).values():
        for name in case.names(compiles=False):
            if name in case.ours:
                once = case.ours[name](tiny, CPU)
                once()
                once()


def test_the_work_stays_the_same(bench, tiny, one_thread):
    """The step sizes are too small to move a coefficient, so that all turns compute with the same numbers."""
    from common import SynSet

    sets = []
    with pytest.MonkeyPatch.context() as patch:
        step = SynSet.optim_step
        patch.setattr(SynSet, "optim_step", lambda synset: (sets.append(synset), step(synset)))
        for name in ("dm_16", "dc_16", "tm_16"):
            once = bench.cases.cases_of(tiny)[name].ours[bench.cases.OURS](tiny, CPU)
            once()
            first = sets[-1].coefficients.detach().clone()
            once()
            assert torch.equal(sets[-1].coefficients.detach(), first)


def test_both_sizes_have_every_case_of_the_authors(bench):
    cases = bench.cases.CASES
    names = {name.rpartition("_")[0] for name in cases}
    assert {"selection", "decode", "dm", "dc", "tm", "expert", "test", "evaluation_1", "evaluation_5"} <= names
    assert set(cases) == {f"{name}_{side}" for name in names for side in (32, 128)}
    assert [name for name, case in cases.items() if not case.theirs] == ["selection_128"]


# -- the loader --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two modules and a package that know each other by names which other modules have, too."""
    (tmp_path / "main.py").write_text(
        "import os, warnings\nos.environ['LEFT'] = 'behind'\nwarnings.filterwarnings('ignore')\n"
        "import json\nfrom measure import width\nfrom layers import deep\n"
        "from scipy.ndimage.interpolation import rotate\n"
    )
    (tmp_path / "measure.py").write_text(
        "import torch\nwidth = torch.ones(2, 2).t().view(-1).cuda().tolist()\nscipy = 'scipy'\n"
    )
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "__init__.py").write_text("from .deep import depth\n")
    (tmp_path / "layers" / "deep.py").write_text("depth = 3\n")
    return tmp_path


def test_a_folder_is_loaded_apart_and_leaves_nothing(bench, folder):
    own = sys.modules["measure"]
    before = dict(sys.modules), list(sys.path), list(sys.meta_path), torch.Tensor.view, torch.Tensor.cuda
    (main,) = bench.checkout.load_folder(folder, ["main"])
    assert (main.width, main.deep.depth) == ([1, 1, 1, 1], 3), "patched, and from the folder"
    assert sys.modules["measure"] is own
    for name in ("main", "layers", "layers.deep"):
        assert name not in sys.modules
    assert {name: module for name, module in sys.modules.items() if name in before[0]} == before[0]
    assert (list(sys.path), list(sys.meta_path), torch.Tensor.view, torch.Tensor.cuda) == before[1:]
    assert "LEFT" not in __import__("os").environ
    assert not list(folder.rglob("__pycache__"))


def test_a_folder_that_cannot_be_imported_leaves_nothing(bench, folder):
    (folder / "layers" / "deep.py").write_text("raise RuntimeError('broken')\n")
    own, finders = sys.modules["measure"], list(sys.meta_path)
    with pytest.raises(RuntimeError, match="broken"):
        bench.checkout.load_folder(folder, ["main"])
    assert sys.modules["measure"] is own
    assert "layers" not in sys.modules
    assert sys.meta_path == finders


def test_without_a_checkout_there_is_nothing_to_compare_with(bench, tmp_path):
    with pytest.raises(InputError, match="give --authors the folder of a checkout"):
        bench.checkout.check_checkout(None)
    with pytest.raises(InputError, match=r"has no DM/main_DM_FreD.py: give the folder of a checkout"):
        bench.checkout.check_checkout(str(tmp_path))


def test_the_command_refuses_in_one_sentence(bench, tmp_path):
    assert_refused(call(SCRIPT), "give --authors the folder of a checkout")
    assert_refused(call(SCRIPT, "--authors", tmp_path), "has no DM/main_DM_FreD.py")
    refused = call(SCRIPT, "--table", tmp_path / "none.json")
    assert_refused(refused, "none.json cannot be read", "give the file of versus_authors.py --output")


# -- measuring, and the table ------------------------------------------------------------------------------------


def test_turns_give_medians_by_both_clocks(bench):
    versions = {"first": lambda: sum(range(20_000)), "second": lambda: None}
    timed = bench.measure.in_turns(versions, 3, CPU, calls=2)
    assert list(timed) == ["first", "second"]
    assert len(timed["first"]["runs_s"]) == len(timed["first"]["cpu_runs_s"]) == 3
    assert timed["first"]["speedup"] == timed["first"]["cpu_speedup"] == 1
    assert timed["second"]["speedup"] > 1


def test_flops_are_counted_once_beside_what_the_machine_reaches(bench, tiny, one_thread):
    calls = []
    a = torch.ones(4, 8)
    ours = {"ours": lambda size, device: lambda: calls.append(a @ a.T)}
    product = bench.cases.Case("a product", tiny, {}, ours, network=True)
    found = bench.versus_authors.timed(product, None, bench.versus_authors.Options(repeats=2), False, CPU)
    assert len(calls) == 3, "one call to warm up and two timed ones"
    assert found["flops"]["ours"] == 2 * 4 * 8 * 4
    assert set(found["flops"]) == set(found["seconds"]) == {"ours", "matrix product", "convolution"}


def seconds(median, cpu):
    return {"median_s": median, "runs_s": [median, 2 * median], "cpu_median_s": cpu, "cpu_runs_s": [cpu, cpu]}


RESULTS = {
    "date": "2026-01-02",
    "version": "0.1.0-abc",
    "authors": None,
    "allocator": "as started",
    "repeats": 2,
    "hardware": {"cpu": "some CPU", "threads": 1, "cores": 2, "torch": "2.9"},
    "results": {
        "tm_32": {
            "what": "an update",
            "flops": {"authors, as shipped": 8e9, "authors, anomaly mode off": 8e9, "ours": 8e9, "matrix product": 3e9},
            "peak_mib": {"authors, as shipped": 900.4, "ours": 100.6},
            "seconds": {
                "authors, as shipped": seconds(4.0, 3.0),
                "authors, anomaly mode off": seconds(1.0, 1.0),
                "ours": seconds(2.0, 2.0),
                "matrix product": seconds(0.1, 0.1),
            },
        },
        "selection_128": {"what": "a choice", "seconds": {"ours": seconds(0.25, 0.25)}},
    },
}


def test_the_table_has_a_row_for_every_comparison_those_that_lost_too(bench):
    lines = bench.table.render(RESULTS, "x.json").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert {len(row) for row in rows} == {10}
    won, lost, alone = rows
    assert won[:3] == ["`tm_32`", "as shipped", "default"]
    assert won[3:] == ["4 (4 to 8)", "2 (2 to 4)", "2.00", "1.50", "2, 4", "30, -", "900, 101"]
    assert lost[5:7] == ["**0.50**", "**0.50**"]
    assert alone[1:] == ["-", "default", "-", "0.25 (0.25 to 0.5)", "-", "-", "-", "-", "-"]
    assert lines[0].startswith("2026-01-02, version 0.1.0-abc, the authors' commit unknown, some CPU, 1 of 2 cores")
    assert lines[-1] == "- `selection_128`: a choice"


def test_the_table_is_renewed_between_its_marks(bench, tmp_path):
    results, readme = tmp_path / "x.json", tmp_path / "README.md"
    results.write_text(json.dumps(RESULTS))
    readme.write_text(f"before\n{bench.table.BEGIN}\nold\n{bench.table.END}\nafter\n")
    bench.table.renew(results, readme)
    once = readme.read_text()
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    bench.table.renew(results, readme)
    assert readme.read_text() == once
    readme.write_text("no marks\n")
    with pytest.raises(InputError, match="lacks the lines"):
        bench.table.renew(results, readme)


def test_the_committed_readme_has_a_place_for_the_table(bench):
    text = bench.table.README.read_text()
    assert text.count(bench.table.BEGIN) == text.count(bench.table.END) == 1
    for script in (ROOT / "benchmarks").glob("*.py"):
        if "run_command(main)" in script.read_text():
            assert f"`{script.name}`" in text, "the README says what it measures"


def test_the_scaling_plot_draws_every_curve(bench, tmp_path):
    curves = {"time": {"eager": {1: 1.0, 2: 2.0}}, "memory": {"plain": {1: 5.0}, "adjoint": {1: 4.0, 50: 4.0}}}
    figure = bench.scaling.draw(curves, bench.scaling.Options(), CPU)
    assert [len(axes.lines) for axes in figure.axes] == [1, 2]
