"""What counts as a shard: tars of webdataset and of tarfile are read, anything that lost or confuses a sample is refused."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
import webdataset as wds

from data_pipeline.errors import DataError
from data_pipeline.index import Entry, index_path, read_index, scan, write_index

PAIRS = [("a.jpg", b"first image"), ("a.cls", b"3"), ("b.png", b"second"), ("b.cls", b"0")]


def found(shard: Path) -> list[tuple[str, bytes, int]]:
    """(key, image, label) where the entries say they lie, their sums checked with zlib."""
    content = shard.read_bytes()
    samples = []
    for entry in scan(shard):
        image = content[entry.offset : entry.offset + entry.size]
        assert entry.crc32 == zlib.crc32(image)
        samples.append((entry.key, image, entry.label))
    return samples


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_format_are_read(write_tar, tar_format):
    shard = write_tar("shard.tar", PAIRS, format=tar_format)
    assert found(shard) == [("a", b"first image", 3), ("b", b"second", 0)]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_keys_longer_than_a_tar_header_and_not_ascii_are_read(write_tar, tar_format):
    key = "folder.with.dots/" + "é" * 150
    shard = write_tar("shard.tar", [(f"{key}.webp", b"x"), (f"{key}.cls", b"1")], format=tar_format)
    assert found(shard) == [(key, b"x", 1)]


def test_keys_are_those_of_webdataset(write_tar, by_webdataset):
    names = ["./a", "train/b", "x.y/c", "d"]
    shard = write_tar("shard.tar", [(f"{name}.{end}", b"1") for name in names for end in ("jpg", "cls")])
    theirs = [sample["__key__"] for sample in by_webdataset([shard])]
    assert [key for key, _, _ in found(shard)] == theirs == names


def test_other_members_order_and_case_of_endings_do_not_matter(write_tar):
    members = [
        ("a.json", b"{}"), ("a.cls", b" 3\n"), ("a.seg.png", b"mask"), ("a.JPG", b"A"), ("a.txt", b"caption"),
        ("README", b"between samples"),
        ("b.PnG", b"B"), ("b.json", b"{}"), ("b.cls", b"-1"),
    ]  # fmt: skip
    assert found(write_tar("shard.tar", members)) == [("a", b"A", 3), ("b", b"B", -1)]


def test_shards_of_webdatasets_writer_are_read(tmp_path, encode, picture):
    images = [encode(picture(9, 8, number), kind) for number, kind in enumerate(["JPEG", "PNG", "WEBP", "JPEG"])]
    endings = ["jpg", "png", "webp", "jpeg"]
    with wds.TarWriter(str(tmp_path / "shard.tar")) as tar:
        for number, (ending, image) in enumerate(zip(endings, images, strict=True)):
            tar.write({"__key__": f"sample{number}", ending: image, "cls": number, "json": {"number": number}})
    expected = [(f"sample{number}", image, number) for number, image in enumerate(images)]
    assert found(tmp_path / "shard.tar") == expected


def test_a_tar_without_samples_has_no_entries(write_tar):
    assert found(write_tar("shard.tar", [])) == []


WRONG_PAIRS = {
    "image without label": ([("a.jpg", b"1"), ("b.jpg", b"2"), ("b.cls", b"0")], "a"),
    "label without image": ([("a.cls", b"1"), ("b.jpg", b"2"), ("b.cls", b"0")], "a"),
    "label without image, labels first": ([("a.cls", b"1"), ("b.cls", b"2"), ("b.jpg", b"0")], "a"),
    "label of another image": ([("a.jpg", b"1"), ("b.cls", b"0")], "a"),
    "images, then labels": ([("a.jpg", b"1"), ("b.jpg", b"1"), ("a.cls", b"0"), ("b.cls", b"0")], "a"),
    "two images": ([("a.jpg", b"1"), ("a.png", b"2"), ("a.cls", b"0")], "a"),
    "two labels": ([("a.cls", b"1"), ("a.cls", b"2"), ("a.jpg", b"0")], "a"),
    "a further image": ([*PAIRS, ("b.jpg", b"2"), ("c.jpg", b"3"), ("c.cls", b"0")], "b"),
    "another sample in between": ([("a.jpg", b"1"), ("x.json", b"{}"), ("a.cls", b"0")], "a"),
    "last image without label": ([*PAIRS, ("c.jpg", b"3")], "c"),
    "last label without image": ([*PAIRS, ("c.cls", b"3")], "c"),
    "text label": ([*PAIRS, ("c.jpg", b"1"), ("c.cls", b"cat")], "c"),
    "empty label": ([*PAIRS, ("c.jpg", b"1"), ("c.cls", b"")], "c"),
    "fractional label": ([*PAIRS, ("c.jpg", b"1"), ("c.cls", b"1.5")], "c"),
    "label beyond 32 bits": ([*PAIRS, ("c.jpg", b"1"), ("c.cls", b"3000000000")], "c"),
}


@pytest.mark.parametrize(("members", "key"), WRONG_PAIRS.values(), ids=WRONG_PAIRS)
def test_what_is_not_one_image_and_one_label_is_refused(write_tar, members, key):
    shard = write_tar("shard.tar", members)
    with pytest.raises(DataError, match=rf"{shard}: .*sample {key}\b"):
        list(scan(shard))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_members_that_are_no_files_are_refused(write_tar, kind):
    shard = write_tar("shard.tar", PAIRS)
    with tarfile.open(shard, "a") as tar:
        special = tarfile.TarInfo("c.jpg")
        special.type, special.linkname = kind, "/etc/passwd"
        tar.addfile(special)
    with pytest.raises(DataError, match=rf"{shard}: member 'c.jpg' is not a regular file"):
        list(scan(shard))


def test_a_tar_cut_anywhere_is_refused_or_has_lost_nothing(write_tar, tmp_path):
    members = [(f"{key}.{end}", b"7".zfill(600)) for key in "abc" for end in ("jpg", "cls")]
    whole = write_tar("whole.tar", members)
    expected, content = found(whole), whole.read_bytes()
    end = len(content.rstrip(b"\0"))
    refused = 0
    for size in [*range(0, len(content), 512), *range(100, len(content), 512)]:
        cut = tmp_path / "cut.tar"
        cut.write_bytes(content[:size])
        try:
            assert found(cut) == expected
            assert size > end
        except DataError as error:
            assert str(cut) in str(error)
            refused += 1
    assert refused >= 2 * end // 512


def test_a_damaged_header_hides_no_sample(write_tar):
    """tarfile ends silently at a header whose checksum is wrong; webdataset would lose the samples behind it."""
    shard = write_tar("shard.tar", PAIRS)
    expected, content = found(shard), shard.read_bytes()
    header = content.index(b"b.png")
    refused = 0
    for byte in range(header, header + 512):
        damaged = bytearray(content)
        damaged[byte] ^= 1
        shard.write_bytes(damaged)
        try:
            assert found(shard) == expected
        except DataError as error:
            assert str(shard) in str(error)
            refused += 1
    assert refused > 500


def test_a_second_tar_behind_the_first_is_refused(write_tar):
    """`cat a.tar b.tar`: readers stop at the end of the first."""
    first, second = write_tar("a.tar", PAIRS), write_tar("b.tar", PAIRS)
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(DataError, match=r"a\.tar"):
        list(scan(first))


@pytest.mark.parametrize("content", [b"", b"no tar" * 1000, b"\x1f\x8b" + bytes(4000)])
def test_what_is_no_tar_is_refused(tmp_path, content):
    (tmp_path / "shard.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"shard\.tar"):
        list(scan(tmp_path / "shard.tar"))


ENTRIES = [Entry("a", 512, 11, 0xFFFFFFFF, 3), Entry("ordner/ü", 2**33, 2**32 - 1, 0, -1), Entry("", 0, 0, 7, 2**31 - 1)]


def parse_index(content: bytes) -> list[Entry]:
    """The format of index.py's head, by struct."""
    magic, count = struct.unpack_from("<8sQ", content)
    assert magic == b"VSINDEX1"
    entries = []
    for number in range(count):
        offset, size, crc32, label, key_size, key_offset = struct.unpack_from("<QIIiIQ", content, 16 + 32 * number)
        entries.append(Entry(content[key_offset : key_offset + key_size].decode(), offset, size, crc32, label))
    return entries


@pytest.mark.parametrize("entries", [[], ENTRIES[:1], ENTRIES])
def test_index_files_have_the_documented_layout(tmp_path, entries):
    write_index(entries, tmp_path / "shard.idx")
    assert parse_index((tmp_path / "shard.idx").read_bytes()) == entries


def test_index_rows_are_read_as_the_documented_layout(tmp_path):
    keys = "".join(entry.key for entry in ENTRIES).encode()
    file = io.BytesIO()
    file.write(struct.pack("<8sQ", b"VSINDEX1", 3))
    at = 16 + 3 * 32
    for entry in ENTRIES:
        size = len(entry.key.encode())
        file.write(struct.pack("<QIIiIQ", entry.offset, entry.size, entry.crc32, entry.label, size, at))
        at += size
    (tmp_path / "shard.idx").write_bytes(file.getvalue() + keys)
    rows, whole = read_index(tmp_path / "shard.idx")
    assert [row[:4] for row in rows.tolist()] == [(e.offset, e.size, e.crc32, e.label) for e in ENTRIES]
    assert bytes(whole) == file.getvalue() + keys


@pytest.mark.parametrize("size", [0, 5, 15, 16, 50, 111, 112, 118])
def test_an_index_cut_anywhere_is_refused(tmp_path, size):
    path = tmp_path / "shard.idx"
    write_index(ENTRIES, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=rf"{path}: .*vitscale data index"):
        read_index(path)


def test_another_file_is_no_index(tmp_path):
    (tmp_path / "shard.idx").write_bytes(b"VSINDEX9" + bytes(8))
    with pytest.raises(DataError, match=r"shard\.idx: not an index"):
        read_index(tmp_path / "shard.idx")


def test_the_index_lies_beside_its_shard():
    assert index_path(Path("/data/v1.0/train-000003.tar")) == Path("/data/v1.0/train-000003.idx")


def test_folders_are_passed_over_and_names_that_are_not_utf8_stay_readable(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("images")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in (("images/caf\xe9.jpg", b"image"), ("images/caf\xe9.cls", b"3")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    write_index(list(scan(shard)), tmp_path / "a.idx")
    rows, file = read_index(tmp_path / "a.idx")
    key = bytes(file[int(rows["key_offset"][0]) :]).decode()
    assert key == "images/caf\N{REPLACEMENT CHARACTER}" and rows["label"].tolist() == [3]
