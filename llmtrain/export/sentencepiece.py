"""A SentencePiece model as the model, normalizer and decoder of ``tokenizers``, with the same ids."""

from collections.abc import Collection, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from llmtrain.data.tokenizers.escape import REQUIRED, escape, unescape
from llmtrain.errors import ConfigError

_SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # SentencePiece's kinds of pieces
NEVER = -1e6  # a score that keeps a piece out of every best path
_LITERALS = [char for char in REQUIRED if not char.isdigit()]  # the escape's own characters, ESCAPE first
_STAND_INS = {unescape(char): char for char in _LITERALS[1:]}


def from_sentencepiece(content: bytes, *, reserved: Sequence[str], shifted: bool, escaped: bool) -> Tokenizer:
    """``reserved`` are the names of our first ids, which a ``shifted`` model knows nothing of.

    Raises ConfigError where the model has what ``tokenizers`` cannot do.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(content)
    odd = {piece.piece for piece in proto.pieces if piece.type not in (_NORMAL, _UNKNOWN, _CONTROL, _BYTE)}
    if odd or proto.trainer_spec.treat_whitespace_as_suffix:
        what = (
            f"pieces of its user's own ({', '.join(sorted(odd)[:3])})"
            if odd
            else "spaces at the ends of pieces"
        )
        raise ConfigError(
            f"the SentencePiece model has {what}, which cannot be exported: train with tokenizer=sentencepiece"
        )
    pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    if shifted:
        pieces = [(name, 0.0, _CONTROL) for name in apart(reserved, [p[0] for p in pieces])] + pieces
    unk = next(i for i, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN)
    make = {1: _unigram, 2: _bpe}.get(proto.trainer_spec.model_type)
    if make is None:
        raise ConfigError(
            "the SentencePiece model is neither BPE nor unigram, and cannot be exported: train with one"
        )
    fast = Tokenizer(make(pieces, unk, any(kind == _BYTE for _, _, kind in pieces)))
    fast.normalizer = _normalizer(proto.normalizer_spec, escaped=escaped)
    fast.decoder = _decoder(proto.normalizer_spec, escaped=escaped)
    return fast


def apart(names: Sequence[str], pieces: Collection[str]) -> list[str]:
    """``names``, changed where a foreign vocabulary has a piece of that name."""
    taken = set(pieces)
    return [f"<reserved_{name[1:]}" if name in taken else name for name in names]


def _unigram(pieces: Sequence[tuple[str, float, int]], unk: int, byte_fallback: bool) -> models.Unigram:
    # text that spells a control piece or a byte is not that piece
    scored = [(piece, score if kind == _NORMAL else NEVER) for piece, score, kind in pieces]
    return models.Unigram(scored, unk_id=unk, byte_fallback=byte_fallback)


def _bpe(pieces: Sequence[tuple[str, float, int]], unk: int, byte_fallback: bool) -> models.BPE:
    """Every pair of pieces that makes a piece is a merge; the better the piece's score, the earlier."""
    normal = {piece: score for piece, score, kind in pieces if kind == _NORMAL}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(normal, key=lambda piece: -normal[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    return models.BPE(
        {piece: i for i, (piece, _, _) in enumerate(pieces)},
        merges,
        unk_token=pieces[unk][0],
        fuse_unk=True,
        byte_fallback=byte_fallback,
    )


def _normalizer(spec: Any, *, escaped: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if escaped:  # as llmtrain.data.tokenizers.escape: literals first, then what stands in for others
        steps += [normalizers.Replace(literal, escape(literal)) for literal in _LITERALS]
        steps += [normalizers.Replace(char, stand_in) for char, stand_in in _STAND_INS.items()]
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex("^ +| +$"), "")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    steps.append(normalizers.Replace(" ", _SPACE))
    return normalizers.Sequence(steps)


def _decoder(spec: Any, *, escaped: bool) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    if escaped:  # the other way around, ESCAPE itself last: nothing that was made is read again
        steps += [decoders.Replace(stand_in, char) for char, stand_in in _STAND_INS.items()]
        steps += [decoders.Replace(escape(literal), literal) for literal in reversed(_LITERALS)]
    return decoders.Sequence(steps)
