from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pipeline import lake, tracking
from pipeline.lake import InputError

WRITE_SLOWLY = """
import sys
from pathlib import Path

from pipeline import lake

with lake.stage(Path(sys.argv[1]), "features", "0123").writing() as out:
    (out / "a.txt").write_text("b")
    print("begun", flush=True)
    sys.stdin.readline()
"""


def work() -> None:
    """A stage function."""


def fill(stage: lake.Stage, text: str = "a") -> None:
    with stage.writing() as out:
        (out / "a.txt").write_text(text)


def test_a_stage_appears_when_its_block_ends(tmp_path: Path) -> None:
    stage = lake.stage(tmp_path / "run", "features", "0123")
    assert not stage.done
    with stage.writing() as out:
        pl.DataFrame({"x": [1, 2, 3]}).write_parquet(out / "x.parquet")
        assert not stage.path.exists()
    assert stage.done
    manifest = lake.read_manifest(stage.path)
    assert manifest["fingerprint"] == "0123"
    assert manifest["files"]["x.parquet"]["rows"] == 3
    assert manifest["files"]["x.parquet"]["hash"] == lake.hash_file(stage.path / "x.parquet")
    assert [path.name for path in stage.path.parent.iterdir()] == ["features-0123"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    stage = lake.stage(tmp_path, "features", "0123")
    with pytest.raises(ZeroDivisionError), stage.writing() as out:
        (out / "half").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_swept_and_other_stages_are_not(tmp_path: Path) -> None:
    (tmp_path / ".features-abc").mkdir()
    (tmp_path / ".features-abc/half").write_text("x")
    (tmp_path / ".recall_test-abc").mkdir()
    fill(lake.stage(tmp_path, "features", "0123"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".recall_test-abc", "features-0123"]


def test_two_processes_that_write_a_stage_do_not_sweep_each_others_folder(tmp_path: Path) -> None:
    stage = lake.stage(tmp_path, "features", "0123")
    command = [sys.executable, "-c", WRITE_SLOWLY, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        fill(stage)
        assert (stage.path / "a.txt").read_text() == "a"
        assert len([path for path in tmp_path.iterdir() if path.name.startswith(".features-")]) == 1
        other.communicate("go on\n")
        assert other.returncode == 0
    assert (stage.path / "a.txt").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["features-0123"]


def test_checkpoints_outlive_a_failure_and_go_when_the_stage_is_finished(tmp_path: Path) -> None:
    stage, older = lake.stage(tmp_path, "fine", "0123"), lake.stage(tmp_path, "fine", "abcd")
    for one in (stage, older, lake.stage(tmp_path, "coarse", "0123")):
        one.checkpoints.mkdir()
        (one.checkpoints / "at").write_text("x")
    with pytest.raises(ZeroDivisionError), stage.writing():
        _ = 1 / 0
    assert (stage.checkpoints / "at").read_text() == "x"
    fill(stage)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".checkpoints-coarse-0123", "fine-0123"]


def test_only_the_newest_versions_are_kept(tmp_path: Path) -> None:
    for number in range(lake.KEEP + 2):
        stage = lake.stage(tmp_path, "features", f"{number}")
        fill(stage)
        os.utime(stage.path, (number, number))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"features-{number}" for number in range(2, lake.KEEP + 2)
    ]


def test_the_fingerprint_follows_inputs_settings_and_code(tmp_path: Path) -> None:
    file, folder = tmp_path / "raw.csv", lake.stage(tmp_path, "events", "0123")
    file.write_text("a\n1\n")
    fill(folder)
    before = lake.fingerprint(work, inputs=[file, folder.path], width=8)
    assert before == lake.fingerprint(work, inputs=[file, folder.path], width=8)
    assert len(before) == 16
    assert before != lake.fingerprint(work, inputs=[file, folder.path], width=9)
    assert before != lake.fingerprint(tracking.register, inputs=[file, folder.path], width=8)
    file.write_text("a\n2\n")
    assert before != lake.fingerprint(work, inputs=[file, folder.path], width=8)


def test_code_is_followed_through_imports(tmp_path: Path) -> None:
    package = tmp_path / "pipeline"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "lake.py").write_text(Path(lake.__file__).read_text())
    (package / "stage.py").write_text("from pipeline import deep\n\n\ndef work():\n    return deep.VALUE\n")
    ask = "from pipeline import lake, stage; print(lake.code_version(stage.work))"

    def version(value: int) -> str:
        (package / "deep.py").write_text(f"VALUE = {value}\n")
        command = [sys.executable, "-c", ask]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert version(1) == version(1) != version(2)


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest.json; run the stage"):
        lake.fingerprint(work, inputs=[tmp_path])


def test_a_full_disk_is_explained_and_other_errors_pass(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"the disk is full .* finished stages are kept"),
        lake.explain_full_disk(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), lake.explain_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_the_kernels_own_full_disk_is_explained(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(InputError, match="the disk is full"), lake.explain_full_disk(tmp_path):
        full.write_text("x")
    with pytest.raises(InputError, match="the disk is full"), lake.explain_full_disk(tmp_path):
        pl.DataFrame({"x": range(100_000)}).write_parquet(full)


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    lake.write_json(tmp_path / "a.json", {"b": 1, "a": Path("x")})
    assert (tmp_path / "a.json").read_text() == '{\n "a": "x",\n "b": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_values_hash_alike_whatever_their_order() -> None:
    assert lake.hash_value({"a": 1, "b": 2}) == lake.hash_value({"b": 2, "a": 1}) != lake.hash_value({"a": 2, "b": 1})
