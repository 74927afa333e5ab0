"""report.html: one self-contained page, nothing fetched, for light and dark screens and for paper."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ffjax import findings
from ffjax.findings import DIRECTIONS, KINDS, TRUSTED, Story, counts, estimate, groups, number, percent, verdict

METRICS = {
    "attacked_accuracy": ("accuracy %", 100),
    "attacked_balanced_accuracy": ("balanced accuracy %", 100),
    "attacked_fake_called_real": ("fakes called real %", 100),
    "attacked_real_called_fake": ("reals called fake %", 100),
    "fooling_rate": ("verdicts changed %", 100),
    "attacked_auc": ("AUC", 1),
    "attacked_eer": ("EER %", 100),
    "attacked_tpr_at_1fpr": ("TPR at 1 % FPR", 100),
    "refit_balanced_accuracy": ("balanced acc., refitted %", 100),
    "logit_correlation": ("logit corr. with clean", 1),
}
"""Columns of the table of cells: header, and what the value is multiplied by."""


SCREEN = 90
"""Screen pixels for an inch of a figure (150 pixels), so that its letters are as large as those of the page."""

CLASSES = {
    "held": "held",
    "beats noise only": "barely",
    "not held": "failed",
    "no claim": "unfit",
}
"""What may be said of a claim (`findings.verdict`), as the style sheet calls it."""


class Picture(NamedTuple):
    """A figure for the page: png is a whole file."""

    title: str
    caption: str
    png: bytes


def page(folder: Path, config: dict, results: dict, pictures: Sequence[Picture]) -> str:
    """The whole page; of `folder` only the names and sizes of its files are read."""
    title = f"Over-firing {_text(', '.join(results['sources']))}"
    parts = [
        f"<h1>{title}</h1>",
        *(_story(findings.story(results, config, group)) for group in groups(results)),
        HOW_TO_READ,
        *(_picture(picture) for picture in pictures),
        f"<h2>Claims</h2>{_claims(results)}",
        f"<h2>All figures</h2>{ALL_FIGURES}",
        *(_cells(results, data) for data in results["data"]),
        f"<h2>Image quality</h2>{_quality(results)}",
        f"<h2>Patterns</h2>{_patterns(results)}",
        f"<h2>Detectors</h2>{_pairs(_flat(results.get('networks', {})))}",
        f"<h2>Settings</h2>{_pairs(_flat(config))}",
        f"<h2>Environment</h2>{_pairs(results.get('environment', {}).items())}",
        f"<h2>Files in this folder</h2>{_files(folder)}",
        "<p>To make this page again, inside the folder: <code>python -m ffjax.report .</code></p>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{title}</title><style>{CSS}</style>"
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def _story(story: Story) -> str:
    points = "".join(
        f"<li><b>{_text(about)}</b><ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul></li>"
        for about, lines in story.points
    )
    lead = f"<strong>{_text(story.lead)}</strong> {_text(story.made)}"
    return f'<section class="lead"><p>{lead}</p><ul>{points}</ul></section>'


def _claims(results: dict) -> str:
    heads = ("detector", "set", "pattern", "errors", "of", *(f"{name} %" for name in KINDS.values()))
    rows = []
    for row in results["claims"]:
        said = verdict(results, row)
        source = "<small>source</small>" * (row["detector"] in results["sources"])
        words = [f"<td>{_text(row['detector'])}{source}"] + [f"<td>{_text(row[key])}" for key in ("data", "group")]
        words += [f"<td>{DIRECTIONS[row['direction']]}", f"<td class=n>{row['n']}<small>{row['groups']} ids</small>"]
        words += [_ranged(row.get(kind)) for kind in KINDS]
        words += [f"<td class=n>{_split(findings.margin(row[key]))}" for key in ("over_noise", "over_fixed")]
        words += [f'<td class="{CLASSES[said]}">{said}']
        rows.append(words)
    return _table((*heads, "points over noise", "points over fixed", "claim"), rows)


def _ranged(found: dict | None) -> str:
    if found is None:
        return "<td class=n>–"
    ends = f"<small>{number(found['low'])}–{number(found['high'])} ({found['patterns']})</small>"
    return f"<td class=n>{number(found['median'])}{ends if found['patterns'] > 1 else ''}"


def _cells(results: dict, data: dict) -> str:
    """Every metric of one set, folded away: what stands for each kind, through every storage."""
    best = [f"uap-{findings.chosen(results, group)}-" for group in groups(results)]
    shown = [
        c
        for c in sorted(results["conditions"], key=lambda c: list(KINDS).index(c["kind"]))
        if c["kind"] in ("clean", "fixed")
        or c["name"].startswith((*best, *(f"noise-{group}-0-" for group in groups(results))))
    ]
    rows = []
    for detector in results["detectors"]:
        rows.append([f'<th colspan="{len(METRICS) + 2}" scope="rowgroup">{_text(detector)}'])
        for c in shown:
            found = {m: estimate(results, detector, data["name"], c["name"], m) for m in METRICS}
            words = [
                f'<td class="{c["kind"]}">{_text(c["name"].removesuffix("-" + c["storage"]))}',
                f"<td>{c['storage']}",
            ]
            rows.append(words + [_valued(found[m], scale) for m, (_, scale) in METRICS.items()])
    of = {"attacked_fake_called_real": data["fake"], "attacked_real_called_fake": data["real"]}
    heads = [f"{head}<small>of {of.get(m, data['real'] + data['fake'])}</small>" for m, (head, _) in METRICS.items()]
    table = _table(("condition", "storage", *heads), rows)
    return f"<details><summary>Set {_text(data['name'])}: {counts(data)}</summary>{table}</details>"


def _valued(found: Sequence, scale: int) -> str:
    value, low, high = (number(x, scale) for x in found[:3])
    return f"<td class=n>{value}" + ("" if found[1] is None else f"<small>{low}, {high}</small>")


def _quality(results: dict) -> str:
    rows = []
    for row in results["quality"]:
        same = "identical" if row["ssim"] == 1 else "–"
        decibels = same if row["psnr"] is None else f"{row['psnr']:.2f}"
        words = [f"<td>{_text(row['data'])}", f"<td>{_text(row['condition'])}", f"<td class=n>{row['n']}"]
        rows.append([*words, f"<td class=n>{decibels}", f"<td class=n>{number(row['ssim'], 1)}"])
    return "<p>Medians over n images.</p>" + _table(("set", "condition", "n", "PSNR dB", "SSIM"), rows)


def _patterns(results: dict) -> str:
    heads = ("pattern", "bound", "selection score", "ℓ∞, of 255", "ℓ₂", "chosen")
    rows = []
    for row in results["patterns"]:
        values = (f"{row['eps']:.4g}", f"{row['score']:.3f}", f"{255 * row['linf']:.2f}", f"{row['l2']:.2f}")
        cells = [f"<td>{_text(row['name'])}", *(f"<td class=n>{value}" for value in values)]
        rows.append([*cells, f"<td>{'✓' if row['chosen'] else ''}"])
    lines = [
        f"<li>{_text(group)}: {', '.join(f'{_text(way)} {_text(name)}' for way, name in picked.items())}</li>"
        for group, picked in results.get("fixed", {}).items()
    ]
    return _table(heads, rows) + f"<p>Fixed patterns, as validation images chose them:</p><ul>{''.join(lines)}</ul>"


def _files(folder: Path) -> str:
    """Top of the folder, subfolders summed; the page itself apart, whose size is not known yet."""
    rows = []
    for path in sorted(folder.iterdir()):
        inside = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        if path.name != "report.html":
            size = sum(p.stat().st_size for p in inside) / 1024
            name = f"{path.name}/ ({len(inside)} files)" if path.is_dir() else path.name
            rows.append([f"<td>{_text(name)}", f"<td class=n>{size:.1f}"])
    return _table(("name", "KiB"), rows)


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    alt = _text(f"{picture.title}. {picture.caption} The numbers are in the tables below.")
    wide = int.from_bytes(picture.png[16:20], "big") * SCREEN // 150  # the width, as a PNG's header says it
    shown = f'<img src="data:image/png;base64,{data}" width="{wide}" alt="{alt}">'
    return f"<h2>{_text(picture.title)}</h2><figure>{shown}<figcaption>{_text(picture.caption)}</figcaption></figure>"


def _pairs(items: Iterable[tuple[str, Any]]) -> str:
    return _table(("name", "value"), [[f"<td>{_text(name)}", f"<td>{_text(value)}"] for name, value in items])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """heads: markup, aligned as the last row is; rows: cells with their opening tag (HTML closes them by itself)."""
    first = rows[-1] if rows else [""] * len(heads)
    aligned = [" class=n" * ("class=n" in cell) for cell in first]
    head = "".join(f'<th scope="col"{way}>{text}' for way, text in zip(aligned, heads, strict=True))
    body = "\n".join("<tr>" + "".join(row) for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</thead>\n<tbody>\n{body}</tbody></table></div>'


def _split(text: str) -> str:
    value, _, rest = text.partition(" [")
    return f"{value}<small>{rest.rstrip(']')}</small>"


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}" if name else key)


def _text(value: Any) -> str:
    return html.escape(str(value))


HOW_TO_READ = f"""<details class="how"><summary>How to read this</summary><ul>
<li><b class="clean">clean</b>: images as they are. <b class="noise">same-norm noise</b>: random signs, same bound.
<b class="fixed">best fixed pattern</b>: of flat shifts and of waves of every period at the same bound, the one with
most errors of that kind on validation images, over the sources.
<b class="uap">universal perturbation</b>: one pattern added to every image.</li>
<li>The two directions, fakes called real and reals called fake, are reported apart: a pattern that pushes every image
to one side wins one and loses the other, and any single number would hide it.</li>
<li>Points over noise, over fixed: median over seeds minus the noise median, or minus the fixed pattern, with a 95 %
bootstrap interval over identities, seeds and draws. <b>held</b>: more than clean, noise and fixed, the interval of the
smallest difference above 0. <b>beats noise only</b>: so over clean and noise, but it is not shown to beat the fixed
pattern, which may be at the ceiling. <b>no claim</b>: clean balanced accuracy is below {percent(TRUSTED)}, too low
for a claim; changes there are verdict shifts. Among many claims a few hold by chance.</li>
<li>Refitted: the threshold chosen anew on validation images under the same condition. If that restores accuracy, the
perturbation moved the scores of both classes together and did not mix them.</li>
<li>[low, high] is a 95 % interval over identities, low–high (k) the range of k seeds or draws, – undefined.</li>
</ul></details>"""

ALL_FIGURES = """<p>Value, and below it the 95 % interval over identities. Noise is the first draw, the perturbation the
chosen one of its group; other draws and seeds are in results.json. Verdicts changed: against clean in float.</p>"""

CSS = """
:root{color-scheme:light dark;--ink:#1f2933;--soft:#5b6670;--line:#dfe3e7;--back:#fff;--box:#f5f7f8;--uap:#b84a00;
--noise:#0069a6;--fixed:#8a5a00;--held:#00724f}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#a3adb7;--line:#39424b;--back:#14181c;--box:#1e242a;
--uap:#ff8c4a;--noise:#5db8f0;--fixed:#f0b23d;--held:#4fd1a0}}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.55 system-ui,"Segoe UI","Liberation Sans",sans-serif}
main{max-width:1160px;margin:auto;padding:1.5rem}
h1{font-size:1.9rem;margin:.5rem 0 1rem}h2{font-size:1.25rem;margin:2.2rem 0 .6rem}
.lead{background:var(--box);border-left:4px solid var(--uap);padding:.6rem 1.2rem;border-radius:4px;margin:1rem 0}
li{margin:.35rem 0}figure{margin:0}img{max-width:100%;height:auto;background:#fff;border-radius:6px}
figcaption,small,.how{color:var(--soft)}figcaption{font-size:.92rem;max-width:60rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
thead th{border-bottom:2px solid var(--soft);vertical-align:bottom;line-height:1.25}
th[scope=rowgroup]{background:var(--box);padding-top:.8rem}.n{text-align:right}td.n,td.held,td.barely,td.failed,td.unfit{white-space:nowrap}
small{display:block;font-weight:normal;font-size:.76rem}summary{cursor:pointer;margin:.5rem 0}
.uap{color:var(--uap)}.noise{color:var(--noise)}.fixed{color:var(--fixed)}.clean{color:var(--soft)}
td.held{color:var(--held);font-weight:bold}td.barely{color:var(--fixed)}td.unfit{color:var(--soft)}
@media print{:root{color-scheme:light}main{max-width:none;padding:0}figure,tr,.lead{break-inside:avoid}
details::details-content{content-visibility:visible;block-size:auto}.scroll{overflow:visible}table{font-size:.62rem}}
"""
