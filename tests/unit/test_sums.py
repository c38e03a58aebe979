"""SHA256SUMS: readable by `sha256sum`, and no damage goes unnoticed."""

import subprocess

import pytest

from vitscale.sums import SUMS, verify, write_sums


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    (path / "engine").mkdir(parents=True)
    (path / "engine" / "rank 0.bin").write_bytes(bytes(range(256)))
    (path / "empty").touch()
    (path / "weights").write_bytes(b"w" * 1000)
    write_sums(path)
    return path


def test_sha256sum_agrees(folder):
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["empty: OK", "engine/rank 0.bin: OK", "weights: OK"]


def test_what_was_written_is_sound(folder):
    assert verify(folder) == []


def test_writing_again_gives_the_same(folder):
    before = (folder / SUMS).read_bytes()
    write_sums(folder)
    assert (folder / SUMS).read_bytes() == before


@pytest.mark.parametrize("bit", [0, 4001, 7999])
def test_one_flipped_bit_is_found(folder, bit):
    content = bytearray((folder / "weights").read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (folder / "weights").write_bytes(content)
    assert verify(folder) == ["weights differs from its SHA-256"]


def test_a_cut_file_and_a_missing_file_are_both_named(folder):
    (folder / "weights").write_bytes(b"w" * 999)
    (folder / "engine" / "rank 0.bin").unlink()
    assert verify(folder) == ["engine/rank 0.bin missing", "weights differs from its SHA-256"]


def test_without_sums_nothing_is_complete(folder):
    (folder / SUMS).unlink()
    assert verify(folder) == ["SHA256SUMS missing"]


def test_sums_that_list_nothing_vouch_for_nothing(folder):
    (folder / SUMS).write_text("")
    assert verify(folder)


def test_a_folder_that_is_not_there_is_not_sound(tmp_path):
    assert verify(tmp_path / "gone")


def test_sums_that_are_not_text_and_files_that_are_not_listed_are_found(tmp_path):
    (tmp_path / "a").write_text("a")
    write_sums(tmp_path)
    (tmp_path / "b").write_text("b")
    assert verify(tmp_path) == ["b is not listed in SHA256SUMS"]
    (tmp_path / SUMS).write_bytes(b"\xff\xfe")
    assert "SHA256SUMS is not readable" in verify(tmp_path)[0]
