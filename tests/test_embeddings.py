"""Text embeddings on disk: shards, rows read from them, and the cache that lets only new captions be computed."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import make_embeddings
from torch import Tensor

from pyoco_pipeline.data import embedding_cache
from pyoco_pipeline.data.embedding_cache import EmbeddingCache, write_cached_embeddings
from pyoco_pipeline.data.embeddings import TextEmbeddings, write_embedding_blocks, write_embeddings
from pyoco_pipeline.errors import UserError

TOKENS, DIM = 4, 8
ROW_MB = TOKENS * (DIM * 2 + 1) / 2**20


def random_table(rows: int) -> tuple[list[str], Tensor, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    tokens, mask = (
        torch.randn(rows, TOKENS, DIM, generator=draw),
        torch.rand(rows, TOKENS, generator=draw) < 0.5,
    )
    return ["", *(f"caption {row}" for row in range(1, rows))], tokens, mask


def write_sharded(
    folder: Path, rows: int, shard_rows: int, block_rows: int = 3
) -> tuple[list[str], Tensor, Tensor]:
    captions, tokens, mask = random_table(rows)
    blocks = zip(tokens.split(block_rows), mask.split(block_rows), strict=True)
    write_embedding_blocks(
        folder, captions, blocks, encoder="here", encoder_sha256="f", shard_mb=shard_rows * ROW_MB
    )
    return captions, tokens, mask


def test_embeddings_come_back_in_half_precision_with_their_masks(tmp_path):
    captions, tokens = ["b", "", 'ü \n"'], torch.randn(3, 4, 8)
    mask = torch.rand(3, 4) < 0.5
    write_embeddings(tmp_path, captions, tokens, mask, encoder="here", encoder_sha256="f")
    read = TextEmbeddings(tmp_path)
    cond = read.conditioning(read.rows(captions[::-1]))

    assert (read.dim, read.max_tokens, read.encoder, read.encoder_sha256) == (8, 4, "here", "f")
    assert torch.equal(cond["encoder_hidden_states"], tokens.half().float().flip(0))
    assert torch.equal(cond["encoder_attention_mask"], mask.flip(0))
    assert torch.equal(read.null()["encoder_hidden_states"], tokens[1:2].half().float())
    assert read.unknown(["b", "c"]) == ["c"]


@pytest.mark.parametrize("captions", [["a", "b"], ["", "a", "a"], [""]])
def test_captions_that_are_not_one_per_embedding_are_a_value_error(tmp_path, captions):
    tokens = torch.zeros(max(2, len(captions)), 4, 8)
    mask = torch.ones(max(2, len(captions)), 4, dtype=torch.bool)

    with pytest.raises(ValueError, match="must be distinct"):
        write_embeddings(tmp_path, captions, tokens, mask, encoder="none", encoder_sha256="f")


def test_a_folder_without_embeddings_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"embeddings\.json is missing. Run `ingest`"):
        TextEmbeddings(tmp_path)


def test_a_caption_without_an_embedding_is_named(tmp_path):
    with pytest.raises(UserError, match="no embedding of the caption 'another'"):
        make_embeddings(tmp_path, ["one"]).rows(["one", "another"])


def test_embeddings_hold_no_pickle(tmp_path):
    make_embeddings(tmp_path, ["one"])

    names = {"captions.parquet", "embeddings.json", "embeddings-00000.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names


# --- Shards ---


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 25))
@settings(deadline=None, max_examples=40)
def test_any_blocks_and_shards_give_the_same_rows(tmp_path_factory, rows, shard_rows, block_rows):
    folder = tmp_path_factory.mktemp("table")
    captions, tokens, mask = write_sharded(folder, rows, shard_rows, block_rows)
    sizes = [len(load_file(path)["mask"]) for path in sorted(folder.glob("*.safetensors"))]

    assert sizes == [shard_rows] * (rows // shard_rows) + [rows % shard_rows] * (rows % shard_rows > 0)
    asked = torch.randint(rows, (9,))
    for memory_mb in (0, 1):
        read = TextEmbeddings(folder, memory_mb=memory_mb)
        cond = read.conditioning(read.rows([captions[row] for row in asked]))
        assert torch.equal(cond["encoder_hidden_states"], tokens[asked].half().float())
        assert torch.equal(cond["encoder_attention_mask"], mask[asked])


def test_of_a_table_above_the_limit_only_the_files_asked_for_are_opened(tmp_path):
    captions, tokens, _ = write_sharded(tmp_path, rows=12, shard_rows=3)
    for number in (0, 2):  # gone: reading them would fail
        (tmp_path / f"embeddings-{number:05d}.safetensors").unlink()
    read = TextEmbeddings(tmp_path, memory_mb=0)
    rows = read.rows([captions[10], captions[4], captions[10]])

    assert torch.equal(read.conditioning(rows)["encoder_hidden_states"], tokens[[10, 4, 10]].half().float())
    with pytest.raises(UserError, match=r"embeddings-00000\.safetensors"):
        TextEmbeddings(tmp_path)


def test_a_table_that_was_read_from_can_be_given_to_another_process(tmp_path):
    _, tokens, _ = write_sharded(tmp_path, rows=6, shard_rows=2)
    read = TextEmbeddings(tmp_path, memory_mb=0)
    read.null()
    copy = pickle.loads(pickle.dumps(read))  # noqa: S301

    assert torch.equal(
        copy.conditioning(torch.tensor([5]))["encoder_hidden_states"], tokens[5:].half().float()
    )


def test_the_same_captions_give_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        write_sharded(tmp_path / name, rows=7, shard_rows=3, block_rows=2 if name == "one" else 7)

    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 5
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


# --- Cache ---


class Hashing:
    """Embeds a caption as numbers of its digest, and remembers what it was asked for."""

    def __init__(self, fingerprint: str = "a" * 64, max_tokens: int = TOKENS, die_at: int = 0) -> None:
        self.fingerprint, self.max_tokens, self.sha256 = fingerprint, max_tokens, "b" * 64
        self.asked: list[list[str]] = []
        self.die_at = die_at

    def encode(self, captions: Sequence[str], batch_size: int = 256) -> tuple[Tensor, Tensor]:
        self.asked.append(list(captions))
        if len(self.asked) == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.expected(captions), torch.ones(len(captions), self.max_tokens, dtype=torch.bool)

    def expected(self, captions: Sequence[str]) -> Tensor:
        rows = [hashlib.sha256(f"{self.fingerprint}{c}".encode()).digest() for c in captions]
        numbers = torch.tensor([list(row) for row in rows], dtype=torch.float32)
        return numbers[:, : self.max_tokens * DIM].reshape(-1, self.max_tokens, DIM)


def numbered(count: int) -> list[str]:
    return ["", *(f"caption {k}" for k in range(1, count))]


def assert_holds(cache: EmbeddingCache, encoder: Hashing, captions: list[str]) -> None:
    tokens, mask = (torch.cat(parts) for parts in zip(*cache.read(encoder, captions), strict=True))
    assert torch.equal(tokens, encoder.expected(captions).half())
    assert mask.all()


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(embedding_cache, "FILE_ROWS", 3)
    monkeypatch.setattr(embedding_cache, "READ_ROWS", 4)


def test_only_new_captions_are_computed(tmp_path, small_files):
    encoder, cache = Hashing(), EmbeddingCache(tmp_path)
    assert cache.fill(encoder, numbered(10)) == 10
    assert cache.fill(encoder, [*numbered(12), "caption 3"]) == 2
    assert cache.fill(encoder, numbered(12)[::-1]) == 0
    asked = [caption for part in encoder.asked for caption in part]
    assert sorted(asked) == sorted(numbered(12))
    assert_holds(cache, encoder, numbered(12)[::-1])


def test_another_encoder_and_another_length_have_embeddings_of_their_own(tmp_path):
    cache = EmbeddingCache(tmp_path)
    encoders = [Hashing(), Hashing(fingerprint="c" * 64), Hashing(max_tokens=2)]
    assert [cache.fill(encoder, numbered(5)) for encoder in encoders] == [5, 5, 5]
    for encoder in encoders:
        assert_holds(cache, encoder, numbered(5))


def test_short_captions_are_embedded_before_long_ones_and_the_progress_is_said(tmp_path, small_files, caplog):
    encoder = Hashing()
    with caplog.at_level(logging.INFO):
        EmbeddingCache(tmp_path).fill(encoder, ["ccc", "a", "dddd", "bb"])
    assert encoder.asked == [["a", "bb", "ccc"], ["dddd"]]
    assert [message.split(",")[0] for message in caplog.messages] == [
        "Embedded 3 of 4 new captions",
        "Embedded 4 of 4 new captions",
    ]


def test_a_table_from_the_cache_is_the_table(tmp_path, small_files):
    encoder, cache = Hashing(), EmbeddingCache(tmp_path / "cache")
    for _ in range(2):
        write_cached_embeddings(
            tmp_path / "table", captions=numbered(11), cache=cache, encoder=encoder, name="hashes"
        )
    read = TextEmbeddings(tmp_path / "table")
    assert (read.encoder, read.encoder_sha256, read.max_tokens) == ("hashes", "b" * 64, TOKENS)
    cond = read.conditioning(read.rows(numbered(11)))
    assert torch.equal(cond["encoder_hidden_states"], encoder.expected(numbered(11)))
    assert sum(map(len, encoder.asked)) == 11


def test_a_caption_that_was_not_computed_is_a_key_error(tmp_path):
    with pytest.raises(KeyError, match="new"):
        list(EmbeddingCache(tmp_path).read(Hashing(), ["new"]))


def in_a_process(function, *arguments) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def die_while_embedding(folder: Path) -> None:
    EmbeddingCache(folder).fill(Hashing(die_at=3), numbered(10))


def die_while_writing(folder: Path) -> None:
    def save_half(tensors, path, metadata):
        whole = folder / "whole"
        save(tensors, whole, metadata)
        Path(path).write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        whole.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    cache, encoder, save = EmbeddingCache(folder), Hashing(), embedding_cache.save_file
    cache.fill(encoder, numbered(7))
    embedding_cache.save_file = save_half
    cache.fill(encoder, numbered(10))


@pytest.mark.parametrize("victim", [die_while_embedding, die_while_writing])
def test_a_killed_run_leaves_what_it_had_finished_and_nothing_half_done(tmp_path, small_files, victim):
    assert in_a_process(victim, tmp_path) == -signal.SIGKILL
    encoder, cache = Hashing(), EmbeddingCache(tmp_path)
    assert 0 < cache.fill(encoder, numbered(10)) < 10
    assert_holds(cache, encoder, numbered(10))


def test_what_a_killed_run_left_half_done_is_taken_away_after_a_day(tmp_path, small_files):
    in_a_process(die_while_writing, tmp_path)
    (leftover,) = tmp_path.glob("*/.writing-*")
    EmbeddingCache(tmp_path).fill(Hashing(), numbered(2))
    assert leftover.exists()  # it may be another writer's
    os.utime(leftover, (time.time() - 90_000,) * 2)
    EmbeddingCache(tmp_path).fill(Hashing(), numbered(2))
    assert not leftover.exists()


def fill_slowly(folder: Path, captions: list[str]) -> None:
    encoder = Hashing()
    encode = encoder.encode

    def slowly(captions: Sequence[str], batch_size: int = 256) -> tuple[Tensor, Tensor]:
        time.sleep(0.01)
        return encode(captions, batch_size)

    encoder.encode = slowly
    EmbeddingCache(folder).fill(encoder, captions)


def test_two_writers_at_a_time_do_no_harm(tmp_path, small_files):
    context = multiprocessing.get_context("fork")
    halves = [numbered(40), numbered(60)[20:]]
    writers = [context.Process(target=fill_slowly, args=(tmp_path, half)) for half in halves]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    encoder = Hashing()
    assert EmbeddingCache(tmp_path).fill(encoder, numbered(60)) == 0
    assert_holds(EmbeddingCache(tmp_path), encoder, numbered(60))


def test_a_damaged_file_is_named(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.fill(Hashing(), numbered(3))
    (path,) = tmp_path.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=rf"{path.name} is damaged .*: delete it"):
        cache.fill(Hashing(), numbered(3))
