"""What a comparison must state, filled from one: the items are fixed, and what is not known says so."""

from collections.abc import Sequence

from llmtrain.compare import words
from llmtrain.compare.results import Result
from llmtrain.compare.saved import CellAbout, Comparison
from llmtrain.scaling.checklist import NOT_STATED, Item


def checklist(comparison: Comparison) -> list[Item]:
    return [
        Item(topic, question, answer or NOT_STATED)
        for topic, items in (
            ("what is equal", _equal(comparison)),
            ("training", _training(comparison)),
            ("what is measured", _measured(comparison)),
            ("uncertainty", _uncertainty(comparison)),
            ("where it ran", _where(comparison)),
        )
        for question, answer in items.items()
    ]


def _equal(comparison: Comparison) -> dict[str, str]:
    about = comparison.about
    cells = [cell for cell in about.cells if cell.status == "finished"]
    return {
        "matched": words.matched(about).removeprefix("Matched: "),
        "budgets": words.listed([words.budget(about, budget) for budget in about.budgets]),
        "model FLOPs of a cell, over its budget": _span([c.flops_model / c.budget for c in cells], ".3f"),
        "model FLOPs a raw token": _span([c.flops_per_token for c in cells], ".4g"),
        "parameters": _span([c.n_total for c in cells], ",.0f"),
        "active parameters": _span([c.n_active for c in cells], ",.0f"),
        "corpus": f"{about.corpus} ({about.corpus_fingerprint})" if about.corpus else "",
        "tokenizer": f"{about.vocab_size:,} tokens ({about.tokenizer_hash})" if about.tokenizer_hash else "",
        "length of a row": f"{about.seq_len} tokens",
    }


def _training(comparison: Comparison) -> dict[str, str]:
    about = comparison.about
    finished = [cell for cell in about.cells if cell.status == "finished"]
    lost = [cell for cell in about.cells if cell.status != "finished"]
    trials = sorted({len(tuning.losses) for tuning in about.tuning})
    inside = sum(tuning.inside for tuning in about.tuning)
    return {
        "series": words.listed([one.name for one in about.series]),
        "held against": about.baseline,
        "seeds": words.listed([str(seed) for seed in about.seeds]),
        "learning rates tried for a series": words.listed([str(count) for count in trials]) if trials else "",
        "best learning rate between others": f"{inside} of {len(about.tuning)}" if about.tuning else "",
        "learning rate": _span([c.lr for c in finished], ".3g"),
        "raw tokens": _span([c.raw_tokens for c in finished], ",.0f"),
        "epochs": _span([c.epochs for c in finished], ".2f"),
        "steps": _span([c.steps for c in finished], ".0f"),
        "not finished": _lost(lost) if about.cells else "",
    }


def _lost(cells: Sequence[CellAbout]) -> str:
    return "; ".join(f"{cell.run} ({cell.status})" for cell in cells) or "none"


def _measured(comparison: Comparison) -> dict[str, str]:
    about = comparison.about
    main = [one for one in comparison.results if one.main]
    dropped = sum(one.dropped for one in about.overlap.values())
    baselines = dict.fromkeys(r.name for one in main for r in one.references if r.role == "baseline")
    untrained = any(r.role == "untrained" for one in main for r in one.references)
    odd = dict.fromkeys(
        f"{s.series} on {words.label(one)} ({s.note})" for one in main for s in one.standings if not s.common
    )
    documents = ", ".join(f"{count} {split}" for split, count in about.held_out_documents.items())
    return {
        "held out": f"{about.held_out_files} {about.held_out_by}s, never trained on; documents: {documents}"
        if about.held_out_files
        else "",
        "overlap with training": f"{dropped} items that share 50 characters were dropped"
        if about.overlap
        else "",
        "yardsticks": _names([one for one in main if one.summary]),
        "left out of the summary": _names([one for one in main if not one.summary]) or "none",
        "means something else": "; ".join(odd) or "none",
        "baselines": ", ".join([*baselines, *(["untrained models"] if untrained else [])]),
    }


def _names(results: Sequence[Result]) -> str:
    return ", ".join(dict.fromkeys(words.label(one) for one in results))


def _uncertainty(comparison: Comparison) -> dict[str, str]:
    main = [one for one in comparison.results if one.main]
    pooled = sum(one.spread.pooled for one in main)
    groups = [one.groups for one in main if one.groups]
    alone = [one for one in main if one.groups is None]
    return {
        "intervals": "95%, of seeds (pooled within-series variance) and of groups of items (bootstrap) together",
        "variance pooled over series": f"on {pooled} of {len(main)} yardsticks (Bartlett's test)"
        if main
        else "",
        "degrees of freedom of seeds": _span([one.spread.dof for one in main if one.spread.pooled], ".0f"),
        "groups of items": _span(groups, ".0f"),
        "without pairs of items": _names(alone) or "none",
        "several comparisons": "Holm's adjustment over the series of a yardstick; none over yardsticks",
        "power": "the smallest difference shown with a probability of .8 is stated beside each difference",
    }


def _where(comparison: Comparison) -> dict[str, str]:
    about = comparison.about
    seconds = sum(cell.train_seconds for cell in about.cells)
    return {
        "device": about.device,
        "precision": about.precision,
        "time of training": f"{seconds / 60:.0f} minutes of all cells" if about.cells else "",
        "code": about.git or "",
        "versions": ", ".join(f"{name} {version}" for name, version in about.versions.items()),
        "command": about.command,
    }


def _span(values: Sequence[float | int], form: str) -> str:
    if not values:
        return ""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
