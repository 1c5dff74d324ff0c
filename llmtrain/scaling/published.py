"""What papers state: laws to plan by, and how one of them counts parameters and FLOPs."""

from typing import NamedTuple

# L = E + A N^-alpha + B D^-beta in nats a token, of language models on web text
LAWS: dict[str, dict[str, float]] = {
    # Hoffmann et al. 2022 (arXiv:2203.15556), approach 3
    "hoffmann2022": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    # Besiroglu et al. 2024 (arXiv:2404.10102), the same runs fitted to the end
    "besiroglu2024": {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    # Muennighoff et al. 2023 (arXiv:2305.16264), whose alpha and beta are one
    "muennighoff2023": {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.353},
}


class Counted(NamedTuple):
    n: int  # parameters
    flops: int  # of one sequence, backward included, embeddings and logits left out
    over_6nd: float


def hoffmann_counts(
    n_layers: int, d_model: int, n_heads: int, *, seq_len: int = 2048, vocab_size: int = 32_000
) -> Counted:
    """Of the models of Hoffmann et al. 2022, appendix F: relative positions, a feed-forward layer of 4 d_model."""
    d, t = d_model, seq_len
    attention = 3 * d**2 + 3 * d + d**2 + 2 * d + d**2 + d  # q, k, v; relative positions; output
    n = n_layers * (attention + 8 * d**2 + 5 * d + 4 * d) + 2 * d + vocab_size * d
    projections = 2 * t * (3 * d**2 + d**2 + 8 * d**2)
    pairs = 2 * t**2 * d + 3 * n_heads * t**2 + 2 * t**2 * d  # logits, softmax, values
    flops = 3 * n_layers * (projections + pairs)
    return Counted(n, flops, flops / (6 * n * t))
