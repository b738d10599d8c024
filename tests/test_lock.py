"""What CI installs is pinned by hash, and is all that the package and its tests need."""

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

HOME = Path(__file__).resolve().parents[1]
LOCK = HOME / "requirements-dev.txt"
# Installed by its version: machines have builds of their own of it.
WITHOUT_HASH = {"torch"}

if not LOCK.is_file():
    pytest.skip("not in the source tree", allow_module_level=True)


def read_lock():
    """Return each requirement of the lock, and its hashes."""
    found = []
    for line in LOCK.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            text, *hashes = re.split(r"\s+--hash=", line.strip())
            found.append((Requirement(text), hashes))
    return found


def pins():
    """Return the versions of constraints.txt, each name's markers and version."""
    lines = (HOME / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in wanted}


def needed():
    """Return what pyproject.toml asks for: the package's own needs, and those of its tests."""
    project = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    texts = [*project["project"]["dependencies"], *groups["test"]]
    texts += [one for one in groups["dev"] if isinstance(one, str)]
    return [Requirement(text) for text in texts]


def test_every_file_is_pinned_by_a_hash():
    for requirement, hashes in read_lock():
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes), requirement


def test_no_index_is_named():
    assert not re.search(r"://|--index|--find-links|--extra|@", LOCK.read_text(encoding="utf-8"))


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_it_has_all_that_is_needed_in_the_versions_of_the_constraints(python, platform):
    """Made anew by ``make lock``."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": platform,
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }

    def applies(requirement):
        return requirement.marker is None or requirement.marker.evaluate(environment)

    locked = {canonicalize_name(one.name): one for one, _ in read_lock() if applies(one)}
    for requirement in filter(applies, needed()):
        name = canonicalize_name(requirement.name)
        if name not in WITHOUT_HASH:
            assert name in locked, name
            (version,) = (one.version for one in locked[name].specifier)
            assert requirement.specifier.contains(version), f"{requirement}, locked {version}"
    for name, pin in pins().items():
        if name in locked and applies(pin):
            assert str(locked[name].specifier) == str(pin.specifier), name
