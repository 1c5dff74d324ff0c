"""Exported folders: opened as others open them, equal, and back again."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.errors import ConfigError
from llmtrain.export.folder import Trained, export
from llmtrain.export.pretrained import behind_reserved, load_pretrained
from llmtrain.nn.init import initialise
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.nn.mixers.ssm import SSM
from llmtrain.nn.mlps.gelu import GELU
from llmtrain.nn.mlps.moe import MoE
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.model import Layer, ModelConfig
from llmtrain.objectives.base import Objective
from llmtrain.objectives.causal import CausalLM
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.denoising import Denoising
from llmtrain.objectives.masked import MaskedLM
from llmtrain.pretrain import train
from runs import REPO, tiny, write_text

transformers = pytest.importorskip("transformers")

TEXT = "def f(x):\n\treturn 'naïve 東京 🙂'"


def dense(mlp: object = None, *, qk_norm: bool = True, **model: object) -> ModelConfig:
    layer = Layer(mixer=Attention(head_dim=8, kv_group=2, qk_norm=qk_norm), mlp=mlp or SwiGLU())
    return ModelConfig(n_layers=2, d_model=32, layers=(layer,), **model)


def state(mlp: object = None) -> Layer:
    return Layer(mixer=SSM(d_state=8, head_dim=16, chunk=16), mlp=mlp)


RUNS: dict[str, tuple[Objective, ModelConfig, str]] = {
    "clm": (CausalLM(), dense(), "Qwen3ForCausalLM"),
    "clm untied": (CausalLM(), dense(qk_norm=False, tie_embeddings=False), "LlamaForCausalLM"),
    "clm moe": (CausalLM(), dense(MoE(n_experts=4)), "Qwen3MoeForCausalLM"),
    "clm mixtral": (CausalLM(), dense(MoE(n_experts=4), qk_norm=False), "MixtralForCausalLM"),
    "clm ssm": (CausalLM(), ModelConfig(n_layers=2, d_model=32, layers=(state(),)), "Mamba2ForCausalLM"),
    "clm hybrid": (
        CausalLM(),
        ModelConfig(n_layers=2, d_model=32, layers=(state(SwiGLU()), *dense(qk_norm=False).layers)),
        "GraniteMoeHybridForCausalLM",
    ),
    "mlm": (MaskedLM(), dense(qk_norm=False), "EuroBertForMaskedLM"),
    "mlm qk_norm": (MaskedLM(), dense(), "Qwen3ForCausalLM"),
    "denoising": (
        Denoising(),
        dense(
            qk_norm=False,
            norm="sandwich",
            embed_scale=True,
            cross=CrossAttention(head_dim=8, kv_group=2, qk_norm=False),
        ),
        "T5GemmaForConditionalGeneration",
    ),
    "readout": (CausalLM(), dense(readout=0.25), "Qwen3ForCausalLM"),
    "contrastive": (Contrastive(), dense(qk_norm=False), "EuroBertModel"),
    "contrastive qk_norm": (Contrastive(pooling="first", projection=12), dense(), "Qwen3Model"),
    "contrastive causal": (Contrastive(visibility="causal", pooling="last"), dense(), "Qwen3Model"),
    "contrastive moe": (Contrastive(), dense(MoE(n_experts=4)), "Qwen3MoeModel"),
    "contrastive aux": (Contrastive(aux="mlm"), dense(qk_norm=False, tie_embeddings=False), "EuroBertModel"),
}  # fmt: skip


def trained(objective: Objective, cfg: ModelConfig, folder: Path) -> Trained:
    """A run that has not learnt anything; sentinels make reserved ids more than the fixed ones."""
    folder.mkdir()
    tokenizer = Bytes(n_sentinels=16).build(lambda: iter(()), folder)
    model = objective.build(cfg, tokenizer.vocab_size)
    initialise(model, n_layers=cfg.shape[0], seed=0)
    return Trained(cfg, model, objective, tokenizer, folder, seq_len=256)


@pytest.mark.parametrize("name", RUNS)
def test_a_folder_opens_with_equal_results_and_leads_back(name, tmp_path):
    objective, cfg, architecture = RUNS[name]
    if isinstance(objective, Contrastive):
        pytest.importorskip("sentence_transformers")
    run, out = trained(objective, cfg, tmp_path / "tokenizer"), tmp_path / "out"
    report = export(run, out)  # which compares what it has written
    assert report.architecture == architecture
    assert report.difference < 1e-5
    assert bool(report.note) == (name == "mlm qk_norm")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == ["out"]

    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    plain = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert plain == run.tokenizer.encode(TEXT).tolist()
    assert tokenizer(TEXT)["input_ids"] == [1, *plain, *([1] if objective.encoder else [])]
    assert (
        tokenizer.decode(plain)
        == tokenizer.decode(tokenizer(TEXT)["input_ids"], skip_special_tokens=True)
        == TEXT
    )
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 1)
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("<mask>", 2)

    found = load_pretrained(out)
    mine = run.model.state_dict()
    assert (found.use.visibility, found.use.encoder) == (objective.sees, objective.encoder)
    assert found.vocab_size == run.tokenizer.vocab_size
    assert set(found.state) >= {key for key in mine if not key.startswith("head.")}
    for key, tensor in found.state.items():
        if key in mine:  # gains of T5Gemma are held as differences from 1
            expected = mine[key] * (cfg.readout if key == "trunk.norm.weight" else 1.0)
            torch.testing.assert_close(tensor, expected, rtol=0, atol=2e-7 if objective.encoder else 0)


def test_an_exported_model_goes_on_with_a_prompt_as_ours_does(tmp_path):
    """Greedy, reserved ids aside; BOS ends it on both sides."""
    from llmtrain import philox
    from llmtrain.nn.generate import Sampling, generate

    objective, cfg, _ = RUNS["clm"]
    run = trained(objective, cfg, tmp_path / "tokenizer")
    export(run, tmp_path / "out")
    prompt = [1, *run.tokenizer.encode(TEXT).tolist()]
    n = run.tokenizer.n_reserved
    mine = generate(
        run.model,
        prompt,
        n_tokens=20,
        n_reserved=n,
        sampling=Sampling(temperature=0),
        rng=philox.generator(0, "t"),
    )
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (other.generation_config.eos_token_id, other.generation_config.pad_token_id) == (1, 0)
    never = [i for i in range(n) if i != 1]
    theirs = other.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, suppress_tokens=never)
    assert [i for i in theirs[0, len(prompt) :].tolist() if i != 1] == [i for i in mine if i != 1]


def test_an_exported_encoder_decoder_starts_its_answers_with_bos(tmp_path):
    objective, cfg, _ = RUNS["denoising"]
    export(trained(objective, cfg, tmp_path / "tokenizer"), tmp_path / "out")
    other = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    made = other.generate(**tokenizer([TEXT, "x"], return_tensors="pt", padding=True), max_new_tokens=4)
    assert made[:, 0].tolist() == [1, 1]


def test_embeddings_of_text_are_of_unit_length_and_as_wide_as_ours(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    objective, cfg, _ = RUNS["contrastive qk_norm"]
    export(trained(objective, cfg, tmp_path / "tokenizer"), tmp_path / "out")
    z = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(
        ["one", "two, longer"]
    )
    assert z.shape == (2, 12)
    torch.testing.assert_close(torch.from_numpy(z).norm(dim=1), torch.ones(2))


def test_a_folder_that_exists_is_left_alone(tmp_path):
    objective, cfg, _ = RUNS["clm"]
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists: give another name"):
        export(trained(objective, cfg, tmp_path / "tokenizer"), tmp_path / "out")


def test_a_model_that_is_not_equal_is_not_left(tmp_path, monkeypatch):
    """As if the mapping had a fault: two rules changed places."""
    from llmtrain.export import dense as module

    right = module.projections

    def wrong(*args):
        qkv, out = right(*args)
        yield qkv._replace(theirs=(qkv.theirs[1], qkv.theirs[0], qkv.theirs[2]))
        yield out

    monkeypatch.setattr(module, "projections", wrong)
    cfg = replace(
        dense(qk_norm=False), layers=(Layer(mixer=Attention(head_dim=8, qk_norm=False), mlp=SwiGLU()),)
    )
    with pytest.raises(ConfigError, match="the exported model is not equal: logits differ by"):
        export(trained(CausalLM(), cfg, tmp_path / "tokenizer"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer"]


def test_what_has_no_equal_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="GELU"):
        export(trained(CausalLM(), dense(GELU()), tmp_path / "tokenizer"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda out: (out / "config.json").unlink(), "cannot be read"),
        (lambda out: (out / "config.json").write_text('{"model_type": "gpt2"}'), "model_type=gpt2"),
        (lambda out: (out / "model.safetensors").rename(out / "pytorch_model.bin"), "holds no safetensors"),
        (lambda out: change(out, architectures=["pipeline"]), "is a pipeline"),
        (lambda out: change(out, num_hidden_layers=3), "must be equal to the number of"),
        (lambda out: change(out, vocab_size=300), "weights are not those of its config|cannot be opened"),
        (lambda out: (out / "model.safetensors").write_bytes(b"x" * 99), "cannot be opened"),
        (lambda out: change(out, auto_map={"AutoConfig": "evil.Config"}), None),
    ],
    ids=[
        "config gone",
        "other model",
        "no safetensors",
        "odd class",
        "layers missing",
        "larger table",
        "damaged",
        "code named",
    ],
)
def test_a_folder_is_read_only_if_it_is_whole_known_and_plain(spoil, says, tmp_path):
    objective, cfg, _ = RUNS["clm"]
    out = tmp_path / "out"
    export(trained(objective, cfg, tmp_path / "tokenizer"), out)
    (out / "evil.py").write_text("raise SystemExit('executed')")
    spoil(out)
    if says is None:
        assert load_pretrained(out).cfg.n_layers == 2
    else:
        with pytest.raises(ConfigError, match=says):
            load_pretrained(out)


def test_a_foreign_table_comes_behind_the_reserved_rows(tmp_path):
    objective, cfg, _ = RUNS["clm untied"]
    run = trained(objective, cfg, tmp_path / "tokenizer")
    export(run, tmp_path / "out")
    found = load_pretrained(tmp_path / "out")
    fresh = {key: torch.full((found.vocab_size + 30, 32), 7.0) for key in ("embed.weight", "head.weight")}
    placed = behind_reserved(found, fresh, n_reserved=40)  # so that 10 rows of theirs are of no token
    for key in fresh:
        assert (placed[key][:40] == 7).all()
        assert torch.equal(placed[key][40:], found.state[key][:-10])
    assert placed["trunk.norm.weight"] is found.state["trunk.norm.weight"]
    with pytest.raises(ConfigError, match="use the tokenizer of that folder"):
        behind_reserved(found, fresh, n_reserved=10)


def change(out: Path, **values: object) -> None:
    path = out / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.slow
def test_the_command_exports_a_run_or_says_in_a_line_why_not(tmp_path, monkeypatch, capsys):
    write_text(tmp_path)
    train(tiny(tmp_path, name="a", optim__ema=0.5))
    command = runpy.run_path(str(REPO / "scripts" / "export.py"))["main"]

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["export.py", *words])
        code = command()
        return (code, *capsys.readouterr())

    code, said, _ = run(f"{tmp_path}/runs/a", f"{tmp_path}/out")
    assert code == 0
    assert "Qwen3ForCausalLM, opened by AutoModelForCausalLM; largest difference" in said
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 272
    code, _, said = run(f"{tmp_path}/runs/a", f"{tmp_path}/out")
    assert (code, said.count("error: ")) == (2, 1)
    assert "exists" in said.splitlines()[-1]
    train(tiny(tmp_path, name="b", model="dense_gelu", steps=2))
    code, _, said = run(f"{tmp_path}/runs/b", f"{tmp_path}/b")
    assert (code, said.count("error: ")) == (2, 1)
    assert "GELU" in said.splitlines()[-1]
