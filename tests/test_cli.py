"""The command itself: its help, its exit codes, and what is said at the end of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain import cli
from llmtrain.compose import choices
from llmtrain.errors import DataError

REPO = Path(__file__).resolve().parents[1]


def run(*words: str, home: Path | None = None, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", code] if code else ["train.py"]), *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | ({"HOME": str(home)} if home else {})
    return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=250)


COMMANDS = [  # words, exit code, what is said
    (["--help"], 0, "experiments"),
    (["-h", "optm.lr=1"], 0, "experiments"),
    (["--cfg", "optim.lr=0.5"], 0, "lr: 0.5"),
    (["optm.lr=1"], 2, "error: unknown key optm.lr: did you mean optim.lr?"),
    (["model=dens"], 2, "error: unknown choice"),
    (["--hepl"], 2, "did you mean --help?"),
    (["-m", "seed=1,2"], 2, "one command is one run"),
    (["logger._target_=os.system"], 2, "outside llmtrain"),
]


def test_help_and_mistakes_need_neither_torch_nor_lightning():
    code = f"""
import contextlib, io, json, sys
from llmtrain.cli import main
for words in {[words for words, _, _ in COMMANDS]!r}:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
    assert not {{'torch', 'lightning', 'datasets', 'transformers'}} & sys.modules.keys(), words
"""
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    answers = map(json.loads, done.stdout.splitlines())
    for (words, exit_code, said), (code, out, err) in zip(COMMANDS, answers, strict=True):
        assert code == exit_code, words
        assert said in out + err
        if exit_code:
            assert (out, err.count("\n")) == ("", 1)


def test_help_names_every_experiment_group_choice_and_key():
    text = run("--help").stdout
    for group, names in choices().items():
        assert group in text
        assert all(name in text for name in names)
    assert all(f"  {key}=" in text for key in ("name", "seed", "seq_len", "steps", "checkpoint.every"))


def test_an_error_ends_with_its_own_exit_code_and_an_interrupt_with_130(monkeypatch, capsys):
    def fails(error):
        def train(run, overrides):
            raise error

        monkeypatch.setattr("llmtrain.pretrain.train", train)
        return cli.main(["name=a"])

    assert fails(DataError("no text")) == 3
    assert capsys.readouterr().err == "error: no text\n"
    assert fails(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(AttributeError):  # a bug keeps its traceback
        fails(AttributeError())


@pytest.mark.slow
def test_a_run_ends_with_a_summary_and_a_second_start_prints_its_record(tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("".join(f"line {i} of some text, which says {i * 7919 % 1000}\n" for i in range(2000)))
    words = [
        *("name=a", "steps=2", "size=d1", "seq_len=32", "batch_rows=2", f"runs={tmp_path}", "eval.samples=0"),
        *("data=text", f"data.source.paths={text}", f"data.cache={tmp_path / 'cache'}", "data.workers=1"),
        *("tokenizer=bytes", "tokenizer.n_sentinels=0", "optim=adamw", "data.validation_min_bytes=2000"),
    ]
    assert cli.main(words) == 0
    summary = capsys.readouterr().out
    for said in ("bits per byte", "tokens/s", "MFU", "samples.md", "loss.png", "record.json"):
        assert said in summary
    assert cli.main(words) == 0
    again = capsys.readouterr()
    assert "is finished" in again.err
    assert json.loads(again.out) == json.loads((tmp_path / "a" / "record.json").read_text())
    assert cli.main([*words, "optim.lr=0.5"]) == 2
    other = capsys.readouterr().err
    assert "optim.lr: 0.003 there, 0.5 now" in other and other.count("error") == 1
