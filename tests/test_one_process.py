"""What of the work of several processes can be told in one: who does what, and what is said."""

import io
import signal
import sys

import pytest
import torch

from common.matching import distribution, gradient
from common.networks import build_network
from common.runs.pieces import ClassShare
from common.system import command, parallel
from common.system.errors import ProcessLost, Stopped
from common.system.parallel import launch
from common.system.signals import Stoppable
from common.training.pool import trained_here
from tests.command_line import assert_refused, call
from tests.synsets import started


@pytest.fixture
def be(monkeypatch):
    """Makes this process one of several, as far as it asks who it is."""

    def become(rank, world):
        monkeypatch.setattr(parallel, "rank", lambda: rank)
        monkeypatch.setattr(parallel, "world", lambda: world)

    return become


def started_by_torchrun(monkeypatch, rank, world):
    for key, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}.items():
        monkeypatch.setenv(key, str(value))


def test_alone_nothing_is_exchanged():
    tensor = torch.arange(3.0)
    parallel.sum_(tensor)
    parallel.copy_from_main_([tensor])
    assert torch.equal(tensor, torch.arange(3.0))
    assert parallel.broadcast("a") == "a"
    assert parallel.gather("a") == ["a"]
    assert parallel.largest(7) == 7
    assert parallel.share(5) == (0, 5)
    assert parallel.is_main()
    with parallel.main_first():
        pass


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_are_balanced_and_leave_nothing_out(be, world):
    for count in (0, 1, 2, 5, 10, 100):
        shares = []
        for rank in range(world):
            be(rank, world)
            shares.append(range(*parallel.share(count)))
        assert [i for some in shares for i in some] == list(range(count))
        sizes = [len(some) for some in shares]
        assert max(sizes) - min(sizes) <= 1
        assert sizes[0] == max(sizes)


def test_classes_are_dealt_out(be):
    shares = []
    for rank in range(4):
        be(rank, 4)
        mine = ClassShare.of(3)
        assert mine.count == (rank < 3)
        shares += range(3)[mine.rows]
        assert ClassShare.of(3, undivided=True).count == (3 if rank == 0 else 0)
    assert shares == [0, 1, 2]


@pytest.mark.parametrize("match", [distribution.match, gradient.match])
def test_a_process_without_a_class_adds_nothing(match):
    """Its images are none, decoded from no class; the way back gives the coefficients a gradient of zero."""
    synset = started()
    none = synset.decode(slice(0, 0))
    network = build_network("ConvNetD1W16", synset.channel, synset.num_classes, synset.im_size)
    loss, to_images = match(network, none.detach(), none, 0)
    assert loss == 0
    none.backward(to_images)
    assert torch.equal(synset.coefficients.grad, torch.zeros_like(synset.coefficients))


def test_images_of_some_classes_are_those_of_all():
    synset = started()
    n = synset.num_per_class
    assert torch.equal(synset.decode(slice(1, 3)), synset.decode()[n : 3 * n])


@pytest.mark.parametrize(("together", "shares"), [(1, [3, 2]), (2, [3, 2]), (100, [3, 2])])
def test_the_progress_bar_counts_the_own_networks(be, together, shares):
    network = build_network("ConvNetD1W16", 1, 10, (8, 8))
    for rank, expected in enumerate(shares):
        be(rank, 2)
        assert trained_here(network, 5, together) == expected


def test_torchrun_is_known_by_its_environment(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # a batch system's
    assert launch() == (0, 0, 1, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launch() == (3, 1, 4, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert launch() == (3, 1, 4, 2)


@pytest.mark.parametrize(
    "script", ["ablate.py", "compare.py", "demo.py", "corruption-exp/evaluate.py", "common/pretrained/__main__.py"]
)
def test_commands_of_one_process_refuse_torchrun(monkeypatch, script):
    started_by_torchrun(monkeypatch, 1, 2)
    assert_refused(call(script), "this command is one process: start it with python, without torchrun")


def test_a_plain_unroll_is_not_shared(be, tmp_path):
    be(0, 2)
    flags = ["--unroll", "plain", "--syn_steps", 2, "--max_start_epoch", 2, "--save_path", tmp_path]
    result = call("TM/distill.py", *flags, "--experts_per_iteration", 3)
    assert_refused(result, "--unroll plain cannot share an expert among 2 processes", "--experts_per_iteration 2 or a")


def test_other_processes_say_errors_alone_and_by_the_line(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with command.output_of(2):
        print("progress")
        print("one\ntwo", file=sys.stderr)
        sys.stderr.write("no end")
        print("progress")
    with command.output_of(0):
        print("heard")
    assert out.getvalue() == "heard\n"
    assert err.getvalue() == "rank 2: one\nrank 2: two\nrank 2: no end\n"


def test_who_is_lost_is_said_with_what_is_kept(be, monkeypatch):
    """A process that was itself asked to stop has stopped; any other has failed. Neither is killed while it says so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def lose(*positional, **named):
        raise RuntimeError("[/there/pair.cc:561] Connection closed by peer [::1]:5. This is typically caused by ...")

    def at_work(work, asked):
        with work.catching_signals():
            if asked:
                signal.raise_signal(signal.SIGTERM)
            parallel._collective(lose)

    be(1, 2)
    lost = "another process of this job has ended: the last checkpoint is kept (Connection closed by peer [::1]:5)"
    try:
        for asked, kind, said in ((False, ProcessLost, lost), (True, Stopped, f"stopped by SIGTERM: {lost}")):
            with pytest.raises(kind) as ended:
                at_work(Stoppable("stopping", "all is saved", "the last checkpoint is kept"), asked)
            assert str(ended.value) == said
            signal.raise_signal(signal.SIGTERM)  # torchrun's, which does nothing any more
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def interrupting():
    """SIGINT raises KeyboardInterrupt, which it does not in a process that was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_says_what_is_waited_for_and_a_third_stops(interrupting, capsys):
    work, said = Stoppable("saving, then stopping", "all is saved"), []

    def working():
        with work.catching_signals():
            for number, doing in ((signal.SIGTERM, "update 3"), (signal.SIGINT, "update 4"), (signal.SIGINT, "-")):
                work.doing = doing
                signal.raise_signal(number)
                said.append(capsys.readouterr().out.strip())

    with pytest.raises(KeyboardInterrupt):
        working()
    assert said == [
        "SIGTERM: saving, then stopping (a second signal says what is waited for)",
        "SIGINT: waiting until update 4 ends (a third signal stops at once)",
    ]
    assert work.received == signal.SIGTERM


def test_processes_agree_on_a_signal_that_one_of_them_got(monkeypatch):
    work = Stoppable("stopping", "all is saved")
    assert not work.is_stopped()
    monkeypatch.setattr(parallel, "largest", lambda number: max(number, signal.SIGTERM))
    assert work.is_stopped()
    with pytest.raises(Stopped, match="stopped by SIGTERM: all is saved"):
        work.raise_if_stopped()
