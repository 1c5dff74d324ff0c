"""Logits equal those of ``transformers``, with the weights carried over in both directions."""

from dataclasses import replace

import pytest
import torch

from llmtrain.errors import ConfigError
from llmtrain.export.base import Public, Use
from llmtrain.export.families import from_hf, to_hf
from llmtrain.nn.init import initialise
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.nn.mixers.ssm import SSM
from llmtrain.nn.mlps.gelu import GELU
from llmtrain.nn.mlps.moe import MoE
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.model import Layer, Model, ModelConfig, TokenHead
from llmtrain.objectives.causal import CausalBatch, CausalLM
from llmtrain.types import NO_DOC, Seq, Visibility
from tests.tiny import VOCAB, noise, stream

transformers = pytest.importorskip("transformers")

CAUSAL = Use(Visibility.CAUSAL)
MASKED = Use(Visibility.BIDIRECTIONAL)
SEQ2SEQ = Use(Visibility.CAUSAL, encoder=True)


def dense(
    *, n_layers: int = 3, mlp: object = None, mixers: int = 1, tie: bool = True, **mixer: object
) -> ModelConfig:
    """Layers of width 64; with several ``mixers`` only the first has a window."""
    kinds = [mixer, *[mixer | {"window": None}] * (mixers - 1)]
    layers = [
        Layer(mixer=Attention(**({"head_dim": 16, "kv_group": 2} | kind)), mlp=mlp or SwiGLU())
        for kind in kinds
    ]
    return ModelConfig(n_layers=n_layers, d_model=64, layers=tuple(layers), tie_embeddings=tie)


def gemma(**model: object) -> ModelConfig:
    plain = dense(n_layers=2, qk_norm=False, mlp=SwiGLU(gate="gelu_tanh"))
    cross = CrossAttention(head_dim=16, kv_group=2, qk_norm=False)
    return replace(plain, **{"norm": "sandwich", "embed_scale": True, "cross": cross} | model)


def hybrid(mlp: object, *, ssm: int = 2, attend: int = 1, **model: object) -> ModelConfig:
    """A pattern of so many layers of each."""
    state = Layer(mixer=SSM(d_state=8, head_dim=16, groups=2, chunk=16), mlp=mlp)
    heads = Layer(mixer=Attention(head_dim=16, kv_group=2, qk_norm=False), mlp=mlp)
    return ModelConfig(n_layers=ssm + attend, d_model=64, layers=(state,) * ssm + (heads,) * attend, **model)


def wide(cfg: ModelConfig) -> ModelConfig:
    """Attention twice as wide as the model, as in small models of Qwen3 and Gemma."""
    layers = tuple(replace(layer, mixer=replace(layer.mixer, expand=2.0)) for layer in cfg.layers)
    return replace(cfg, layers=layers, cross=replace(cfg.cross, expand=2.0))


FAMILIES: dict[str, tuple[str, Use, ModelConfig]] = {
    "qwen3": ("Qwen3ForCausalLM", CAUSAL, dense()),
    "qwen3 untied": ("Qwen3ForCausalLM", CAUSAL, dense(tie=False, rope_base=1e6, kv_group=4)),
    "qwen3 window": ("Qwen3ForCausalLM", CAUSAL, dense(window=5)),
    "qwen3 some windows": ("Qwen3ForCausalLM", CAUSAL, dense(window=5, mixers=2)),
    "qwen3 wide": ("Qwen3ForCausalLM", CAUSAL, wide(dense())),
    "qwen3 both sides": ("Qwen3ForCausalLM", MASKED, dense()),
    "qwen3 both sides, window": ("Qwen3ForCausalLM", MASKED, dense(window=5)),
    "llama": ("LlamaForCausalLM", CAUSAL, dense(qk_norm=False, tie=False, mlp=SwiGLU(gate="gelu"))),
    "mistral": ("MistralForCausalLM", CAUSAL, dense(qk_norm=False, window=5)),
    "eurobert": ("EuroBertForMaskedLM", MASKED, dense(qk_norm=False)),
    "eurobert untied": ("EuroBertForMaskedLM", MASKED, dense(qk_norm=False, tie=False, kv_group=1)),
    "qwen3 moe": ("Qwen3MoeForCausalLM", CAUSAL, dense(mlp=MoE(n_experts=4))),
    "qwen3 moe, plain sums": ("Qwen3MoeForCausalLM", CAUSAL, dense(mlp=MoE(n_experts=4, renormalise=False), window=5)),
    "mixtral": ("MixtralForCausalLM", CAUSAL, dense(qk_norm=False, mlp=MoE(n_experts=4), tie=False)),
    "t5gemma": ("T5GemmaForConditionalGeneration", SEQ2SEQ, gemma()),
    "t5gemma apart": ("T5GemmaForConditionalGeneration", SEQ2SEQ, gemma(share_embeddings=False, tie_embeddings=False)),
    "t5gemma wide": ("T5GemmaForConditionalGeneration", SEQ2SEQ, wide(gemma())),
    "mamba2": ("Mamba2ForCausalLM", CAUSAL, hybrid(None, attend=0)),
    "mamba2 untied": ("Mamba2ForCausalLM", CAUSAL, hybrid(None, attend=0, tie_embeddings=False)),
    "granite": ("GraniteMoeHybridForCausalLM", CAUSAL, hybrid(SwiGLU())),
    "granite moe": ("GraniteMoeHybridForCausalLM", CAUSAL, hybrid(MoE(n_experts=4, n_shared=2), embed_scale=True)),
    "granite of attention": ("GraniteMoeHybridForCausalLM", CAUSAL, hybrid(MoE(n_experts=4, n_shared=1), ssm=0)),
    "granite both sides": ("GraniteMoeHybridForCausalLM", MASKED, hybrid(MoE(n_experts=4, n_shared=1), ssm=0)),
}  # fmt: skip
each_family = pytest.mark.parametrize("name", FAMILIES)


def ours(cfg: ModelConfig, use: Use, *, dtype: torch.dtype = torch.float32) -> Model:
    """Gains differ, so that none can be in another's place."""
    head = TokenHead(cfg.shape[1], VOCAB.size)
    model = Model(cfg, use.visibility, vocab_size=VOCAB.size, head=head, encoder=use.encoder)
    initialise(model, n_layers=cfg.shape[0], seed=0)
    for i, p in enumerate(model.parameters()):
        if p.ndim == 1:
            p.data = p.data + 0.2 * noise(*p.shape, seed=i, dtype=torch.float32)
    return model.to(dtype).eval()


def theirs(public: Public, *, dtype: torch.dtype = torch.float32):
    config = transformers.AutoConfig.for_model(**public.config)
    config._attn_implementation = config._experts_implementation = "eager"
    model = getattr(transformers, public.architecture)(config).to(dtype).eval()
    missing, unexpected = model.load_state_dict(public.state, strict=False)
    tied = {name for name in missing if name.startswith("lm_head.")}
    assert not unexpected and set(missing) == (tied if config.tie_word_embeddings else set())
    return model


def pair(name: str, **kwargs: object) -> tuple[Model, object]:
    architecture, use, cfg = FAMILIES[name]
    model = ours(cfg, use, **kwargs)
    public = to_hf(cfg, use, model.state_dict(), seq_len=256)
    assert public.architecture == architecture
    return model, theirs(public, **kwargs)


def mine(model: Model, text: Seq, source: Seq | None) -> torch.Tensor:
    with torch.no_grad():
        return model.head(model(text, source).h)


def others(other: object, text: Seq, source: Seq | None) -> torch.Tensor:
    """One document a row, with padding after it: what their masks can say."""
    mask = (text.doc != NO_DOC).long()
    with torch.no_grad():
        if source is None:
            return other(input_ids=text.ids, attention_mask=mask).logits
        read = {"input_ids": source.ids, "attention_mask": (source.doc != NO_DOC).long()}
        return other(**read, decoder_input_ids=text.ids, decoder_attention_mask=mask).logits


def streams(use: Use, *, padded: bool = True) -> tuple[Seq, Seq | None]:
    text, source = (((24,), (17,), (1,)), ((14,), (9,), (16,))) if padded else (((24,),) * 2, ((16,),) * 2)
    source = stream(source, 16, Visibility.BIDIRECTIONAL) if use.encoder else None
    return stream(text, 24, use.visibility), source


@each_family
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.float64, 2e-6)], ids=["fp32", "fp64"])
def test_logits_equal_those_of_the_public_model(name, dtype, atol):
    """Norms and softmax of theirs are float32 whatever the rest, and padding with a window makes NaN in float64."""
    model, other = pair(name, dtype=dtype)
    text, source = streams(FAMILIES[name][1], padded=dtype is torch.float32)
    real = text.doc != NO_DOC
    expected = others(other, text, source)[real]
    assert expected.std() > 0.1
    found = mine(model, text, source)[real]
    torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=atol)  # Mamba2's residual is float32


@each_family
def test_a_public_model_becomes_the_one_that_it_was_made_of(name):
    """Config, weights and use; a pattern of layers by what it stands for."""
    _, use, cfg = FAMILIES[name]
    model, other = pair(name)
    read, read_use, state = from_hf(
        other.config.to_dict() | {"architectures": [type(other).__name__]}, other.state_dict()
    )
    again = Model(
        read, read_use.visibility, vocab_size=VOCAB.size, head=TokenHead(64, VOCAB.size), encoder=use.encoder
    )
    again.load_state_dict(state, strict=True)
    assert read_use == use
    text, source = streams(use)
    real = text.doc != NO_DOC
    # gains that are held as differences from 1 are rounded
    torch.testing.assert_close(
        mine(again, text, source)[real], mine(model, text, source)[real], rtol=0, atol=2e-6
    )
    assert (
        to_hf(read, read_use, state, seq_len=256).config
        == to_hf(cfg, use, model.state_dict(), seq_len=256).config
    )


@pytest.mark.parametrize("name", ["qwen3", "eurobert"])
def test_packed_documents_are_those_of_a_mask(name):
    """Theirs is given the mask of several documents in a row, and their positions."""
    model, other = pair(name)
    text = stream(((9, 1, 14), (24,)), 24, FAMILIES[name][1].visibility)
    from llmtrain.types import visible

    mask = torch.zeros(2, 1, 24, 24).masked_fill(
        ~visible(text, text)[:, None], torch.finfo(torch.float32).min
    )
    with torch.no_grad():
        expected = other(input_ids=text.ids, attention_mask=mask, position_ids=text.pos).logits
    torch.testing.assert_close(mine(model, text, None), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_losses_and_their_gradients_equal_those_of_the_public_model(name):
    model, other = pair(name)
    text = stream(((24,), (24,)), 24, Visibility.CAUSAL)
    targets = text.ids.roll(-1, 1)
    logits = other(text.ids).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    CausalLM().loss(model, CausalBatch(text, targets, torch.zeros(2, dtype=torch.long))).loss.backward()
    mine = {n: p.grad for n, p in model.named_parameters()}
    if FAMILIES[name][2].tie_embeddings:
        mine["head.weight"] = mine["embed.weight"]
    _, use, cfg = FAMILIES[name]
    expected = dict(other.named_parameters())
    for key, grad in to_hf(
        cfg, use, mine
    ).state.items():  # a gradient is renamed and split as its parameter is
        torch.testing.assert_close(grad, expected[key].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "use, cfg, says",
    [
        (CAUSAL, dense(mlp=GELU()), r"model.layers.0.mlp is GELU, .* train with SwiGLU or MoE"),
        (Use(Visibility.PREFIX), dense(), "no public class sees a prefix"),
        (CAUSAL, replace(dense(), norm="sandwich"), "model.norm=sandwich .* train with norm=pre"),
        (CAUSAL, replace(dense(), embed_scale=True), "embed_scale=True .* train with embed_scale=false"),
        (SEQ2SEQ, dense(), r"has no normalised queries and keys: train with model.norm=sandwich"),
        (SEQ2SEQ, gemma(norm="pre"), "train with norm=sandwich"),
        (CAUSAL, dense(mlp=MoE(scores="sigmoid")), "mlp.scores=sigmoid .* train with scores=softmax"),
        (CAUSAL, dense(mlp=MoE(n_shared=1)), "mlp.n_shared=1 .* train with n_shared=0"),
        (
            MASKED,
            hybrid(None, attend=0),
            "a bidirectional SSM cannot be exported to mamba2, .* train it causally",
        ),
        (CAUSAL, hybrid(SwiGLU(), attend=0), "no layer has attention"),
        (SEQ2SEQ, hybrid(SwiGLU()), "has no SSM: train with mixer=Attention"),
        (CAUSAL, hybrid(MoE(n_experts=4)), "mlp.n_shared=0 .* train with n_shared=1"),
        (
            CAUSAL,
            replace(dense(), layers=(*hybrid(None, attend=0).layers, *dense(qk_norm=False).layers)),
            r"layers differ in mlp \(NoneType, SwiGLU\), but granitemoehybrid has one for all",
        ),
        (
            CAUSAL,
            replace(dense(), layers=(*hybrid(SwiGLU(), attend=0).layers, *dense().layers)),
            "mixer.qk_norm=True .* train with mixer.qk_norm=False",
        ),
        (
            CAUSAL,
            replace(dense(), layers=(*dense().layers, *dense(head_dim=8).layers)),
            "layers differ in mixer.expand|layers differ in mixer.head_dim",
        ),
    ],
    ids=str,
)
def test_what_has_no_equal_is_refused_with_the_way_out(use, cfg, says):
    model = ours(cfg, use)
    with pytest.raises(ConfigError, match=says):
        to_hf(cfg, use, model.state_dict())


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model_type": "gpt2"}, "model_type=gpt2 is not known here"),
        ({"attention_bias": True}, "attention_bias=True is not known here"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "rope_parameters=.*yarn",
        ),
    ],
    ids=str,
)
def test_what_is_not_known_of_theirs_is_refused(change, says):
    _, other = pair("qwen3")
    with pytest.raises(ConfigError, match=says):
        from_hf(other.config.to_dict() | change, other.state_dict())


def test_weights_that_are_not_those_of_the_config_are_refused():
    _, other = pair("qwen3 untied")
    state = other.state_dict()
    with pytest.raises(ConfigError, match=r"which qwen3 has no place for"):
        from_hf(other.config.to_dict(), state | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})
    state.pop("model.norm.weight")
    with pytest.raises(ConfigError, match=r"the weights have no model\.norm\.weight"):
        from_hf(other.config.to_dict(), state)
