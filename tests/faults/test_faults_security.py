"""What a run writes tells no secret, stays in its folder, and makes no markup of what others named."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain import cli
from llmtrain.checkpoint import find
from llmtrain.compose import CONFIGS, choices, compose, instantiate, keys
from llmtrain.config import to_plain
from llmtrain.errors import ConfigError, UserError
from llmtrain.loading import load_run
from llmtrain.markup import fenced, inline
from llmtrain.pretrain import train
from llmtrain.redaction import REDACTED, is_secret, redact, redacted
from runs import REPO, overrides, tiny, write_text

SMALL: dict[str, Any] = {"seq_len": 64, "steps": 2, "eval__samples": 1, "eval__rows": 8}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text that is prepared, and a run, as ``whole``."""
    folder = tmp_path_factory.mktemp("security")
    write_text(folder)
    train(tiny(folder, name="whole", **SMALL))
    return folder


# ---- F48: secrets

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_" + "A1b2C3d4" * 4,
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIexampleK7MDENGbPxRfiCY",
    "MY_DB_PASSWORD": "correct-horse-battery",
}


@pytest.mark.fault("F48")
def test_no_secret_is_in_any_file_or_word_of_a_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    word = SECRETS["MY_DB_PASSWORD"]
    words = overrides(home, name="secrets", labels__series=f"https://me:{word}@host/x", **SMALL)
    monkeypatch.setattr("sys.argv", ["train.py", *words, f"token={SECRETS['HF_TOKEN']}"])
    assert cli.main(words) == 0
    assert cli.main([*words, f"optim.api_key={SECRETS['HF_TOKEN']}"]) == 2
    said = "".join(capfd.readouterr())
    files = [p for p in (home / "runs" / "secrets").rglob("*") if p.is_file()]
    texts = {str(p): p.read_bytes().decode(errors="replace") for p in files} | {"the terminal": said}
    del texts[str(home / "runs" / "secrets" / "record.json")]  # series is a name of the user's own
    for value in SECRETS.values():
        assert [where for where, text in texts.items() if value in text] == []
    for name in ("config.yaml", "overrides.yaml", "environment.json"):
        assert REDACTED in (home / "runs" / "secrets" / name).read_text()
    assert cli.main(words) == 0, "the same command still finds its run"
    assert "is finished" in capfd.readouterr().err


@pytest.mark.fault("F48")
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("s3://bucket?X-Amz-Signature=abcdef&x=1", "s3://bucket?" + REDACTED + "&x=1"),
        ("https://me:secret@host/data", f"https://{REDACTED}@host/data"),
        ("sk-" + "a1" * 12, REDACTED),
        ("ghp_" + "a1B2" * 6, REDACTED),
        ("AKIA" + "ABCD1234" * 2, REDACTED),
        ("data.source.token=abc", f"data.source.token={REDACTED}"),
        ("api_key=abc other=x", f"api_key={REDACTED} other=x"),
        ("tokens=1e9 seq_len=256 optim.lr=0.1", "tokens=1e9 seq_len=256 optim.lr=0.1"),
        ("8,192 tokens/s, see https://host/a@b", "8,192 tokens/s, see https://host/a@b"),
    ],
)
def test_a_text_loses_its_secrets_alone(text: str, kept: str) -> None:
    assert redact(text) == kept


@pytest.mark.fault("F48")
def test_no_key_of_the_configs_is_taken_for_a_secret() -> None:
    for group, names in choices().items():
        for name in names:
            plain = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
            assert not [key for key in keys(plain) if is_secret(key)]
    assert redacted({"tokens": "5", "hub": [{"token": "x"}]}) == {"tokens": "5", "hub": [{"token": REDACTED}]}


@pytest.mark.fault("F48")
@pytest.mark.parametrize("word", ["name=${oc.env:HF_TOKEN}", "runs=${oc.env:HOME}", "name=${oc.decode:x}"])
def test_no_resolver_reads_the_environment(word: str) -> None:
    with pytest.raises(ConfigError, match="resolvers are not run"):
        compose([word])


# ---- F50: names stay where they belong

BAD_NAMES = ["../up", "/etc/x", "a/b", "..", ".", "a\\b", "a\nb", "a\0b"]


@pytest.mark.fault("F50")
@pytest.mark.parametrize("key", ["name", "labels__experiment"])
@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_the_folder_of_a_run_is_directly_under_runs(tmp_path: Path, key: str, name: str) -> None:
    plain = to_plain(tiny(tmp_path))
    where = plain if key == "name" else plain["labels"]
    where[key.rpartition("__")[2]] = name
    with pytest.raises(ConfigError, match="must be the name of one folder"):
        instantiate(plain)


@pytest.mark.fault("F50")
@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_the_name_of_a_part_or_a_set_leads_nowhere(tmp_path: Path, name: str) -> None:
    plain = to_plain(tiny(tmp_path))
    plain["data"]["held_out"] = {name: plain["data"]["source"]}
    with pytest.raises(ConfigError):
        instantiate(plain)


@pytest.mark.fault("F50")
def test_a_link_in_the_place_of_a_checkpoints_file_is_refused(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "linked"
    shutil.copytree(home / "runs" / "whole", copy)
    path = find(copy)
    assert path is not None
    moved = tmp_path / "elsewhere.safetensors"
    (path / "model.safetensors").rename(moved)
    (path / "model.safetensors").symlink_to(moved)
    with pytest.raises(UserError):
        load_run(copy)


@pytest.mark.fault("F50")
@pytest.mark.parametrize("suffix", ["tar", "zip", "tar.gz", "tgz", "tar.zst"])
def test_archives_are_not_unpacked(
    home: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"text.{suffix}"
    file.write_bytes(b"PK\3\4" if suffix == "zip" else b"\0" * 1024)
    changes = SMALL | {"data__source__paths": f"[{file}]"}
    assert cli.main(overrides(home, name=f"archive-{suffix}", **changes)) == 3
    assert "the format is not known by its suffix" in capsys.readouterr().err
    used = {
        m
        for p in (REPO / "llmtrain").rglob("*.py")
        for m in re.findall(r"\b(tarfile|extractall|unpack_archive)\b", p.read_text())
    }
    assert not used


# ---- F51: text of others in reports


@pytest.mark.fault("F51")
@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</code><img src=x onerror=y>",
        "```\n<b>",
        "~~~\n````\n<b>",
        "[a](javascript:x)",
        "a\r# b",
    ],
)
def test_text_of_others_ends_no_block_and_makes_no_tag(text: str) -> None:
    from markdown_it import MarkdownIt

    html = MarkdownIt("commonmark", {"html": True}).render(f"# {inline(text)}\n\n{fenced(text)}\n\nend\n")
    assert not re.search(r"<(script|img|b|a)\b", html)
    assert html.count("<h1>") == html.count("<pre>") == 1 and "<p>end</p>" in html


@pytest.mark.fault("F51")
def test_control_characters_are_shown_and_words_are_left_alone() -> None:
    assert fenced("a\x1b[31mb\x00") == "```text\na<U+001B>[31mb<U+0000>\n```"
    assert inline("clm_dense-1a2b: first") == "clm_dense-1a2b: first"
    assert inline('one\'s "own"') == 'one\'s "own"'


@pytest.mark.fault("F51")
def test_samples_and_figures_of_a_run_with_such_a_name_hold_no_tag(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "<script>alert(1)<script>--><b>"
    train(tiny(home, name=name, **SMALL))
    folder = home / "runs" / name
    text = (folder / "samples.md").read_text()
    assert "<script>" not in text.partition("```")[0]
    assert "<script>" not in (folder / "figures" / "loss.svg").read_text()
    assert len(re.findall(r"^`{3,}(?:text)?$", text, re.M)) % 2 == 0
