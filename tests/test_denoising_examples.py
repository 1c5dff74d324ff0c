"""One example of each way to make training rows of text, spelt out here and in the documentation."""

import numpy as np
import pytest

from llmtrain.objectives.causal import CausalBatch
from llmtrain.objectives.denoising import Denoising
from llmtrain.objectives.fim import FillInTheMiddle
from llmtrain.objectives.layouts import Translated
from llmtrain.objectives.noise import BartNoise, SpanNoise, SuffixNoise
from llmtrain.objectives.prefix import PrefixLM
from llmtrain.types import IGNORE, NO_DOC, PAD
from tests.spelt import DOCS, SPOKEN, row, spelt


def documented(*lines: str) -> bool:
    """Whether the documentation has these lines, what is not scored left out."""
    text = " ".join(DOCS.read_text(encoding="utf-8").replace(".....", "").split())
    return all(" ".join(line.replace(".....", "").split()) in text for line in lines)


GOLDEN = {
    "spans": (Denoising(noise=SpanNoise(rate=0.3, mean=2.0)), 17, 0),
    "prefix": (Denoising(noise=SpanNoise(rate=0.3, mean=2.0), layout="prefix"), 26, 0),
    "causal": (Denoising(noise=SpanNoise(rate=0.3, mean=2.0), layout="causal"), 26, 0),
    "suffix": (Denoising(noise=SuffixNoise(mode="S")), 16, 0),
    "infilling": (Denoising(noise=BartNoise()), 20, 0),
    "deletion": (Denoising(noise=BartNoise(infill=0.0, delete=0.2, permute_sentences=False)), 20, 1),
}
ORIGINAL = "thank you for inviting me to your party . see you there <bos> | we will come at eight <bos>"
LATE = "<bos> thank you for inviting me to your party . see you there | <bos> we will come at eight"
CONTINUED = (
    "thank <0> me to your party . <1> you there <bos> <0> you for inviting <1> | "
    "<bos> we <2> at eight . <bos> <2> will come",
    f"{'..... ' * 10}<0> you for inviting <1> see | {'..... ' * 6}<2> will come <bos>",
)
SAID = {
    "spans": (
        "thank <0> me to your party . <1> you there | <bos> we <2> at eight . <bos>",
        "<bos> <0> you for inviting <1> | <bos> <2> will come",
        "<0> you for inviting <1> see | <2> will come <bos>",
    ),
    "prefix": CONTINUED,
    "causal": CONTINUED,
    "suffix": (
        "[S] thank you for inviting me to your party . | [S] we will come at <bos>",
        "<bos> see you | <bos> eight .",
        "see you there | eight . <bos>",
    ),
    "infilling": (
        "see you there thank you for inviting me to <mask> | <bos> <mask> come at eight <bos>",
        LATE,
        ORIGINAL,
    ),
    "deletion": (
        "thank you for inviting me to your see you there | <bos> will come at eight <bos>",
        LATE,
        ORIGINAL,
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_denoising_example_is_what_is_written_here_and_in_the_documentation(name):
    objective, seq_len, seed = GOLDEN[name]
    raw = row()
    assert objective.raw_len(seq_len) == len(raw.ids) == 19
    made = objective.example(raw, SPOKEN, seq_len=seq_len, rng=np.random.default_rng(seed))
    if isinstance(made, Translated):
        n = int((made.source.doc != NO_DOC).sum())
        found = (spelt(made.source.ids[:n], made.source.doc), spelt(made.target.ids, made.target.doc))
        assert (made.source.ids[n:] == PAD).all()
        found += (spelt(made.targets, made.target.doc),)
    else:
        found = (spelt(made.text.ids, made.text.doc), spelt(made.targets, made.text.doc))
        seen = made.text.ids[made.text.prefix]
        expected = (
            "thank <0> me to your party . <1> you there <bos> we <2> at eight ." if name == "prefix" else ""
        )
        assert spelt(seen) == expected
        assert (made.where == np.flatnonzero(made.targets != IGNORE)).all()
    assert found == SAID[name]
    assert documented(*found)


def spelt_batch(made: CausalBatch) -> tuple[str, str]:
    return spelt(made.text.ids, made.text.doc), spelt(made.targets, made.text.doc)


def test_a_prefix_lm_example_is_what_is_written_here_and_in_the_documentation():
    made = PrefixLM().example(row(), SPOKEN, seq_len=18, rng=np.random.default_rng(0))
    assert spelt_batch(made) == (
        "thank you for inviting me to your party . see you there | <bos> we will come at eight",
        "..... ..... ..... ..... ..... ..... party . see you there <bos> | ..... will come at eight .",
    )
    assert spelt(made.text.ids[made.text.prefix]) == "thank you for inviting me to your <bos> we"
    assert documented(*spelt_batch(made))


THREE = "thank you for inviting me to your party . | <bos> we will come at eight . | <bos> see you there ."
MOVED = {  # both middles by PSM, and by SPM
    0.0: (
        "<prefix> thank you for <suffix> your party . <middle> inviting me to | "
        "<bos> <prefix> we <suffix> at eight <middle> will",
        "thank you for <suffix> your party . <middle> inviting me to <bos> | "
        "<prefix> we <suffix> at eight <middle> will come",
    ),
    1.0: (
        "<prefix> <suffix> your party . <middle> thank you for inviting me to | "
        "<bos> <prefix> <suffix> at eight <middle> we will",
        "<suffix> your party . <middle> thank you for inviting me to <bos> | "
        "<prefix> <suffix> at eight <middle> we will come",
    ),
}


@pytest.mark.parametrize("spm", MOVED)
def test_a_moved_middle_is_what_is_written_here_and_in_the_documentation(spm):
    """The third document and the end of the second make room for the marks."""
    objective = FillInTheMiddle(rate=0.7, spm=spm)
    made = objective.example(row(THREE), SPOKEN, seq_len=21, rng=np.random.default_rng(6))
    assert spelt_batch(made) == MOVED[spm]
    assert documented(*MOVED[spm])
