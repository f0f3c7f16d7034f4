"""Mixtures: shares as asked for, one order that is stored and resumed exactly, labels from the shards."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from test_train import FREQUENT, TINY, losses, weights_hash
from torch.utils.data import ConcatDataset

from codegen2.files.shards import Shard, write_shard
from codegen2.train.config import Stage
from codegen2.train.corruption import CorruptionConfig
from codegen2.train.data import sequences
from codegen2.train.loader import Source
from codegen2.train.loop import train
from codegen2.train.mixture import Mixture, Phase, draw_order, mixed
from codegen2.train.tables import Tables

TABLES = Tables([b"x" if i % 7 else b"\n" for i in range(51200)])
MIXTURE = Mixture(
    (Phase(6000, {"python": 0.5, "functions": 0.2}), Phase(4000, {"python": 0.2, "functions": 0.6})),
    piece_tokens=128,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Shard]:
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    runs = [("a", [("python", 20), ("c", 9), ("python", 6), ("lua", 2)]), ("b", [("functions", 40)])]
    for number, (name, languages) in enumerate(runs):
        n = sum(count for _, count in languages)
        write_shard(
            folder / name,
            [rng.integers(0, 3000, rng.integers(10, 400)) + number for _ in range(n)],
            1,
            languages,
        )
    return [Shard(folder / "a"), Shard(folder / "b")]


def order_of(mixture, sizes, labels, names, seed=1):
    return draw_order(np.array(sizes), np.array(labels), names, mixture, np.random.default_rng(seed))


def test_shares_are_what_was_asked_for(shards, tmp_path):
    docs = mixed(ConcatDataset(shards), MIXTURE, 1, TABLES.ends_line, tmp_path)
    read = np.zeros((2, 4))
    done = 0
    for i in range(len(docs)):
        size = len(docs[i])
        assert 24 <= size <= 128
        state = {"position": i, "offset": 0}
        read[int(done >= 6000)] += docs.tokens_read(state, {"position": i + 1, "offset": 0}, (0, 1))
        done += size
    assert docs.labels == ["c", "lua", "python", "functions"]
    share = read / read.sum(axis=1, keepdims=True)
    assert share[0, 2:] == pytest.approx([0.5, 0.2], abs=0.07) and share[1, 2:] == pytest.approx(
        [0.2, 0.6], abs=0.07
    )
    assert read[:, 1].sum() <= 4 * sum(len(shards[0][i]) for i in (35, 36)) + 2 * 128


def test_a_label_is_read_whole_before_anything_of_it_comes_again():
    sizes, labels = [50] * 10 + [30] * 5, [0] * 10 + [1] * 5
    mixture = Mixture((Phase(400, {"a": 0.75}), Phase(400, {"a": 0.75})))
    order = order_of(mixture, sizes, labels, ["a", "b"]).tolist()
    of_a = [i for i in order if i < 10]
    assert len(of_a) == 12 and len(set(of_a)) == 10
    assert sorted(set(order) - set(of_a)) == list(range(10, 15))
    assert order_of(mixture, sizes, labels, ["a", "b"]).tolist() == order
    assert order_of(mixture, sizes, labels, ["a", "b"], seed=2).tolist() != order


def test_a_short_order_begins_again_in_the_same_order(shards, tmp_path):
    docs = mixed(ConcatDataset(shards), Mixture((Phase(300, {"c": 1.0}),)), 3, TABLES.ends_line, tmp_path)
    causal = CorruptionConfig(causal_probability=1.0)
    rows = [row for row, _ in itertools.islice(sequences(docs, 64, causal, 0, TABLES, shuffle=False), 30)]
    text = np.concatenate([row[row >= 0] for row in rows])
    once = np.concatenate([np.append(docs[i], 50256) for i in range(len(docs))])
    assert np.array_equal(text, np.resize(once, len(text)))


def test_streams_read_the_order_in_turn_and_do_not_shuffle_it(shards, tmp_path):
    docs = mixed(ConcatDataset(shards), MIXTURE, 1, TABLES.ends_line, tmp_path)
    stage, causal = Stage(0, 64, 1), CorruptionConfig(causal_probability=1.0)
    config = dataclasses.replace(TINY, mixture=MIXTURE, streams=4, corruption=causal)
    for stream in range(4):
        batch = next(Source(docs, config, stage, TABLES, [None] * 4).read(stream))
        n = min(64, len(docs[stream]))
        assert np.array_equal(batch.inputs[0, :n], docs[stream][:n])


@pytest.mark.slow  # without a mixture: test_train.py
@pytest.mark.parametrize("streams", [2, 4])
def test_stop_and_resume_equals_no_stop_and_labels_are_logged(shards, tmp_path, streams):
    config = dataclasses.replace(TINY, mixture=MIXTURE, streams=streams, max_steps=4, checkpoint_every=2)
    docs = ConcatDataset(shards)
    whole = weights_hash(train(config, docs, tmp_path / "whole", frequent=FREQUENT))

    def kill(line):
        if line["step"] == 3:  # its last checkpoint is step 2's
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, docs, tmp_path / "parts", frequent=FREQUENT, report=kill)
    assert weights_hash(train(config, docs, tmp_path / "parts", frequent=FREQUENT)) == whole
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    read = [
        json.loads(line)["tokens_read"] for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()
    ]
    total = sum(sum(line.values()) for line in read)
    assert 0.7 * 4 * 256 < total <= 4 * 256
    assert sum(line["python"] for line in read) > 0.3 * total


def test_what_cannot_be_mixed_is_refused(shards, tmp_path):
    docs = ConcatDataset(shards)
    mixed(docs, MIXTURE, 1, TABLES.ends_line, tmp_path)
    with pytest.raises(
        ValueError, match=r"mixture\.npz is the order of other shards, another mixture or seed"
    ):
        mixed(docs, MIXTURE, 2, TABLES.ends_line, tmp_path)
    with pytest.raises(ValueError, match="is the order of other shards"):
        mixed(shards[1], Mixture((Phase(9, {"functions": 1}),)), 1, TABLES.ends_line, tmp_path)
    (tmp_path / "mixture.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="remove it, it is drawn again"):
        mixed(docs, MIXTURE, 1, TABLES.ends_line, tmp_path)
    with pytest.raises(ValueError, match="wants cobol, of which the shards have nothing"):
        mixed(docs, Mixture((Phase(9, {"cobol": 0.1}),)), 1, TABLES.ends_line, tmp_path / "other")
    write_shard(tmp_path / "bare", [[1, 2]])
    with pytest.raises(ValueError, match="bare does not say its documents' languages.*data tokenise"):
        mixed(Shard(tmp_path / "bare"), MIXTURE, 1, TABLES.ends_line, tmp_path / "other")
    for phases in ((), (Phase(0, {}),), (Phase(9, {"c": 0.6, "go": 0.5}),), (Phase(9, {"c": -0.1}),)):
        with pytest.raises(ValueError, match="phase"):
            Mixture(phases)


def test_languages_of_other_documents_are_refused(tmp_path: Path):
    write_shard(tmp_path / "s", [[1], [2]], 2, [("c", 3)])
    with pytest.raises(ValueError, match=r"s\.json is not a shard manifest .*languages are not those"):
        Shard(tmp_path / "s")
