"""Render the model card, and summarise the results of script 05."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2

from deepfake_detect.first_layers import DARKEST
from deepfake_detect.measures import KINDS, VERDICTS
from deepfake_detect.shipped import find_shipped

TEMPLATES = find_shipped("templates")
FEWEST_FOR_PER_CENT = 30  # with fewer files, a percentage would suggest too much precision


def explain_measures() -> dict[str, str]:
    """Return the explanation of each measure in metrics.json, by its name."""
    return json.loads((TEMPLATES / "about-measures.json").read_text(encoding="utf-8"))


def render(metrics: dict) -> str:
    """Render the model card (Mitchell et al., "Model Cards for Model Reporting", FAT* 2019)."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "measure": format_measure,
        "rate": format_rate,
        "verdict": format_verdict,
        "percent": lambda share: "-" if share is None else f"{100 * share:.0f} %",
        "decimals": lambda number: "-" if number is None else f"{number:.3f}",
        "number": lambda number: f"{number:,}",
        "cell": lambda value: " ".join(str(value).replace("|", "\\|").split()) or "all",
    }
    return environment.get_template("model-card.md").render(metrics, darkest=DARKEST)


def format_measure(row: dict, name: str) -> str:
    """Format a measure, with its interval if it has one: "0.840 (0.822 to 0.857)"."""
    if row[name] is None:
        return "-"
    interval = row[f"{name}_95"]
    return f"{row[name]:.3f}" + (" ({:.3f} to {:.3f})".format(*interval) if interval else "")


def format_rate(row: dict, name: str) -> str:
    """Format a rate by video with its count and exact interval: "2 of 22 (1 to 29 %)"."""
    videos = row["fake videos" if name.startswith("fakes") else "real videos"]
    return count_of(row[name] and round(row[name] * videos), videos, row[f"{name}_95"])


def format_verdict(row: dict, verdict: str) -> str:
    """Format the count of a verdict with its exact interval: "10 of 14 (42 to 92 %)"."""
    return count_of(row[verdict], row["files"], row["intervals_95"][verdict])


def count_of(count: int | None, total: int, interval: list[float] | None) -> str:
    """Format a count with the exact 95 % interval of its share in per cent; "-" if total is 0."""
    if not total or interval is None:
        return "-"
    low, high = (100 * bound for bound in interval)
    counted, between = f"{count or 0:,} of {total:,}", f"{low:.0f} to {high:.0f} %"
    if total < FEWEST_FOR_PER_CENT:
        return f"{counted} ({between})"
    return f"{100 * (count or 0) / total:.0f} % ({between}), {counted}"


def describe_measures(metrics: dict, crops: bool, clips: bool) -> dict[str, str]:
    """Return the most important numbers for the terminal, by label, of crops, clips or both."""
    facts = {}
    for name, folder in metrics["folders"].items() if crops else ():
        count = folder["counts"]
        left_out = f", {len(folder['left_out']):,} left out" if folder["left_out"] else ""
        total = count["fake crops"] + count["real crops"]
        facts[folder["part"] or "all"] = f"{name}: {total:,} crops{left_out}"
    for row in metrics["groups"] if crops else ():
        label = " ".join(filter(None, (row["dataset"], row["method"])))
        facts[label or Path(row["folder"]).name] = describe_group(row)
    return facts | (describe_clips(metrics["clips"]) if clips else {})


def describe_group(row: dict) -> str:
    """Describe the videos of a data set or method in one line."""
    parts = [f"AUC {format_measure(row, 'auc')}"] if row["auc"] is not None else []
    if row["real videos"]:
        parts.append(f"reals called fake {format_rate(row, 'reals_called_fake')}")
    if row["fake videos"]:
        parts.append(f"fakes found {format_rate(row, 'fakes_found')}")
    total, why = row["fake videos"] + row["real videos"], row["undecided_for"]
    parts.append(f"undecided {sum(why.values()):,} of {total:,}")
    if any(why.values()):
        parts[-1] += f" ({why['score']:,} scored between the thresholds"
        parts[-1] += f", {why['crops']:,} with crops too small or blurry)" if why["crops"] else ")"
    return "; ".join(parts)


def describe_clips(clips: dict) -> dict[str, str]:
    """Describe the verdicts on whole files, one line per kind and label."""
    facts = {}
    for kind in KINDS:
        for label in ("real", "fake"):
            row = clips[kind][label]
            counts = [f"{row[v]:,} {v}" for v in VERDICTS if row[v]]
            if row["files"]:
                plural = "s" if row["files"] != 1 else ""
                facts[f"{row['files']:,} {label} {kind}{plural}"] = ", ".join(counts)
    for reasons, name in ((clips["not_checked"], "not checked"), (clips["left_out"], "left out")):
        if reasons:
            file, reason = next(iter(reasons.items()))
            facts[name] = f"{len(reasons):,} files, such as {file}: {reason}"
    return facts
