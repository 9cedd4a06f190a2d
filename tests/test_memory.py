"""What is free, of the machine and of limited control groups of both versions, from files as Linux writes them."""

from __future__ import annotations

import pytest

from qfl_interp import memory
from qfl_interp.errors import QflError
from qfl_interp.memory import available_bytes, require_memory

MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    9000 kB\nHugePages_Total:   0\n"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with 9,000 kB free and no control groups; a function that makes one."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    for name, file in (("_MEMINFO", "meminfo"), ("_OWN_GROUPS", "own"), ("_GROUPS", "groups")):
        monkeypatch.setattr(memory, name, tmp_path / file)

    def group(folder, **files):
        path = tmp_path / "groups" / folder
        path.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (path / name.replace("__", ".")).write_text(text)

    group.own = tmp_path / "own"
    return group


def test_without_control_groups_it_is_the_machine_s(machine, monkeypatch, tmp_path):
    assert available_bytes() == 9000 * 1024
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "absent")
    assert available_bytes() > 2**28  # all of this machine's


@pytest.mark.parametrize("inside", ["/", "/a/b", "/not/in/this/container"])
def test_a_limit_of_version_2_counts_down_to_the_own_group(machine, inside):
    machine.own.write_text(f"0::{inside}\n")
    machine("", memory__max="5000000\n", memory__current="3000000\n", memory__stat="anon 1\ninactive_file 400000\n")
    machine("a", memory__max="max\n", memory__current="1000000\n", memory__stat="inactive_file 0\n")
    machine("a/b", memory__max="1500000\n", memory__current="1000000\n", memory__stat="inactive_file 100\n")
    expected = {"/a/b": 500_100}.get(inside, 2_400_000)
    assert available_bytes() == expected


def test_a_limit_of_version_1_counts(machine):
    machine.own.write_text("9:memory:/job\n8:cpu,cpuacct:/job\n0::/\n")
    machine(
        "memory/job",
        memory__limit_in_bytes="4000000\n",
        memory__usage_in_bytes="1000000\n",
        memory__stat="inactive_file 7\ntotal_inactive_file 500000\n",
    )
    assert available_bytes() == 3_500_000
    machine("memory/job", memory__usage_in_bytes="9000000\n")
    assert available_bytes() == 0


def test_a_limit_above_what_the_machine_has_does_not_add_to_it(machine):
    machine.own.write_text("0::/\n")
    machine("", memory__max=str(2**50), memory__current="0", memory__stat="")
    assert available_bytes() == 9000 * 1024


def test_too_much_is_refused_with_both_numbers_and_the_remedy():
    require_memory(2**30, 2**30, "50 directions", "Take fewer.")
    words = r"50 directions need about 2\.50 GiB.*than the 1\.25 GiB .* free\. Take fewer\."
    with pytest.raises(QflError, match=words):
        require_memory(5 * 2**29, 5 * 2**28, "50 directions", "Take fewer.")
