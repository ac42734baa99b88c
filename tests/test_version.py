import re
import subprocess

from common.system import version
from tests.conftest import ROOT


def test_a_checkout_names_its_commit(tmp_path, monkeypatch):
    """`+changes` where a file that git tracks differs from the commit."""
    (tmp_path / "file").write_text("as committed")
    who = ["-c", "user.name=Anybody", "-c", "user.email=anybody@localhost"]
    for words in (["init", "-q"], ["add", "file"], [*who, "commit", "-q", "-m", "A file"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(version, "ROOT", tmp_path)
    assert re.fullmatch(rf"{re.escape(version.__version__)}-[0-9a-f]{{12}}", version.code_version())
    (tmp_path / "file").write_text("changed")
    assert version.code_version().endswith("+changes")


def test_an_installed_package_names_no_commit_of_the_repository_around_it(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.setattr(version, "ROOT", tmp_path / "site-packages")
    assert version.code_version() == version.__version__


def test_the_root_is_that_of_the_scripts():
    """The folder is counted from the module's own place."""
    assert version.ROOT == ROOT
