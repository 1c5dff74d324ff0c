"""What a corpus sets aside is neither trained on nor validated on, and nothing near to it is."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from llmtrain.data.corpus import Corpus, SetAside
from llmtrain.data.neighbours import Candidates
from llmtrain.data.prepare import Prepared, prepare
from llmtrain.data.set_aside import set_aside
from llmtrain.data.sources.python import StandardLibrary
from llmtrain.data.sources.text import TextFiles
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.errors import DataError

BYTES = Bytes(n_sentinels=0)
RULE = SetAside(share=0.3)


def write(folder: Path, n_files: int = 40) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(n_files):
        rng = np.random.default_rng(i)
        lines = (" ".join(f"word{n}" for n in rng.integers(0, 9999, 6)) for _ in range(30))
        (folder / f"{i:02d}.txt").write_text("\n".join(lines) + "\n")
    return folder


def corpus(folder: Path, *, rule: SetAside | None = RULE, text: str = "text") -> Corpus:
    return Corpus(source=TextFiles(paths=str(folder / text)), cache=str(folder / "cache"), set_aside=rule)


def documents(prepared: Prepared) -> list[str]:
    shards = [*(part.shards for part in prepared.train), *prepared.validation.values()]
    return [
        prepared.tokenizer.decode(one.tokens[start + 1 : end].tolist())
        for one in shards
        for start, end in zip(one.offsets[:-1], one.offsets[1:], strict=True)
    ]


def test_what_is_set_aside_is_in_no_shard_and_all_else_is(tmp_path: Path) -> None:
    write(tmp_path / "text")
    aside = {unit.documents[0].text for unit in set_aside(corpus(tmp_path))}
    assert 4 <= len(aside) <= 20
    text = "".join(documents(prepare(corpus(tmp_path), BYTES)))
    for path in (tmp_path / "text").iterdir():
        first = path.read_text().splitlines()[0]
        assert (first in text) != (path.read_text() in aside)


def test_the_fingerprint_shows_it_and_is_as_before_where_nothing_is_set_aside(tmp_path: Path) -> None:
    write(tmp_path / "text")
    whole, less = (prepare(corpus(tmp_path, rule=rule), BYTES) for rule in (None, RULE))
    assert whole.fingerprint != less.fingerprint
    report = less.report["parts"]["corpus"]["set_aside"]
    assert (
        report["bytes"] + less.report["parts"]["corpus"]["bytes"] == whole.report["parts"]["corpus"]["bytes"]
    )
    assert whole.report["parts"]["corpus"]["set_aside"] == {"units": 0, "documents": 0, "bytes": 0}


def test_the_choice_is_of_the_text_and_not_of_its_place(tmp_path: Path) -> None:
    write(tmp_path / "text")
    shutil.copytree(tmp_path / "text", tmp_path / "elsewhere")
    here, there = (set_aside(corpus(tmp_path, text=name)) for name in ("text", "elsewhere"))
    assert [u.documents[0].text for u in here] == [u.documents[0].text for u in there]


def test_a_file_near_to_one_that_stays_stays_too_and_near_ones_are_one_group(tmp_path: Path) -> None:
    folder = write(tmp_path / "text")
    names = {Path(unit.name).name for unit in set_aside(corpus(tmp_path))}
    drawn, other = (folder / name for name in sorted(names)[:2])
    stays = next(path for path in sorted(folder.iterdir()) if path.name not in names)
    stays.write_text(drawn.read_text() + stays.read_text())  # all of a drawn one, and more
    (folder / other.name).with_suffix(".md").write_text(other.read_text())  # an exact copy has the same hash
    found = {Path(unit.name).name: unit.group for unit in set_aside(corpus(tmp_path))}
    assert drawn.name not in found
    assert found[other.name] == found[other.with_suffix(".md").name]
    assert len(set(found.values())) == len(found) - 1


def test_documents_of_one_file_are_set_aside_one_by_one_where_it_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "many")
    rows = [path.read_text() for path in sorted((tmp_path / "many").iterdir())]
    (tmp_path / "text").mkdir()
    import json

    (tmp_path / "text" / "all.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"data\.set_aside\.by=document"):
        set_aside(corpus(tmp_path, rule=SetAside(share=0.01)))
    found = set_aside(corpus(tmp_path, rule=SetAside(share=0.3, by="document")))
    assert {u.documents[0].text for u in found} == {
        u.documents[0].text for u in set_aside(corpus(tmp_path, text="many"))
    }


@pytest.mark.slow
def test_of_the_embedded_corpus_a_share_is_set_aside_that_is_near_to_nothing_else() -> None:
    data = Corpus(source=StandardLibrary(), set_aside=SetAside())
    from llmtrain.data.sources.base import Tally

    found = set_aside(data)
    names = {unit.name for unit in found}
    read = list(data.source.documents(Tally()))
    assert 0.08 < len(names) / len(read) < 0.2
    assert not any(data.source.held_out(document) for unit in found for document in unit.documents)
    others = [d.text.encode() for d in read if d.file not in names]
    near = Candidates((unit.documents[0].text.encode() for unit in found), 0.3).near(others)
    assert not near.tainted.any()
