"""The table of faults, from the kills and from the report of the tests: what did not hold is in it too."""

import platform
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from llmtrain.campaign.promises import PROMISES
from llmtrain.campaign.series import AT_RANDOM, IN_WRITES, Series
from llmtrain.run_folder import git_commit, versions

BEGIN, END = "<!-- from scripts/bench_faults.py: begin -->", "<!-- end -->"


class Row(NamedTuple):
    """One fault: ``tries`` is kills and tests; ``skipped`` could not be tried on this machine."""

    fault: str
    tries: int
    survived: int
    skipped: int
    failures: list[str]  # by name


def rows_of(tests: Path, series: Sequence[Series]) -> list[Row]:
    """``tests`` is pytest's report in JUnit's XML."""
    passed, failed, skipped = (
        defaultdict[str, int](int),
        defaultdict[str, list[str]](list),
        defaultdict[str, int](int),
    )
    for case in ElementTree.parse(tests).iter("testcase"):
        about = {p.get("value", "") for p in case.iter("property") if p.get("name") == "fault"}
        for fault in {name for names in about for name in names.split()}:
            if case.find("skipped") is not None:
                skipped[fault] += 1
            elif case.find("failure") is None and case.find("error") is None:
                passed[fault] += 1
            else:
                failed[fault].append(f"{case.get('classname')}::{case.get('name')}")
    for one in series:
        for fault, kind in (("F1", AT_RANDOM), ("F2", IN_WRITES)):
            wrong = [*one.failed, *one.differs]
            passed[fault] += 0 if wrong else one.kills[kind]
            failed[fault] += [f"{one.cell}: {wrong[0]}"] * one.kills[kind] if wrong else []
    return [
        Row(fault, passed[fault] + len(failed[fault]), passed[fault], skipped[fault], failed[fault])
        for fault in PROMISES
    ]


def summary(series: Sequence[Series]) -> dict[str, Any]:
    return {
        "kills": sum(sum(one.kills.values()) for one in series),
        "inside_writes": sum(one.kills[IN_WRITES] for one in series),
        "fresh_interpreters": sum(one.fresh for one in series),
        "starts": sum(one.starts for one in series),
        "ends_compared": sum(one.ends for one in series),
        "torn": sum(one.torn for one in series),
        "different": sum(len(one.differs) for one in series),
        "failed_starts": sum(len(one.failed) for one in series),
        "cells": len(series),
    }


def as_json(rows: Sequence[Row], series: Sequence[Series]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "git": git_commit(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": versions(),
        "campaign": summary(series),
        "faults": [
            row._asdict() | dict(zip(("what", "promise"), PROMISES[row.fault], strict=True)) for row in rows
        ],
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The part of ``docs/reliability.md`` between its two marks."""
    done, of = report["campaign"], report["versions"]
    commit = (report["git"] or "unknown")[:12]
    lines = [
        f"{report['date']}, commit {commit}, {report['machine']}, Python {of['python']}, torch {of['torch']}, "
        f"Lightning {of['lightning']}.",
        "",
        f"{done['kills']} kills in {done['cells']} pairs of objective and architecture, {done['inside_writes']} of "
        f"them inside the writing of a checkpoint, {done['fresh_interpreters']} of a fresh interpreter; "
        f"{done['starts']} starts, {done['ends_compared']} runs compared at their end. Torn checkpoints: "
        f"{done['torn']}. Losses, weights or rows that differ: {done['different']}. Starts that failed: "
        f"{done['failed_starts']}.",
        "",
        "| | fault | promise | tries | survived | lost |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in report["faults"]:
        skipped = f" ({row['skipped']} skipped)" if row["skipped"] else ""
        tries = f"{row['tries']}{skipped}" if row["tries"] or skipped else "none"
        lost = row["tries"] - row["survived"]
        lines.append(
            f"| {row['fault']} | {row['what']} | {row['promise']} | {tries} | {row['survived']} | {lost} |"
        )
    if failures := [
        f"- {row['fault']}: {name}" for row in report["faults"] for name in sorted(set(row["failures"]))
    ]:
        lines += ["", "What did not hold:", "", *failures]
    return "\n".join(lines)


def put_into(page: Path, text: str) -> None:
    """Replace what is between the marks of a page."""
    whole = page.read_text(encoding="utf-8")
    between = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    assert between.search(whole), f"{page} has the two marks"
    page.write_text(between.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", whole), encoding="utf-8")
