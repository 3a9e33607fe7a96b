"""Reports: one HTML page on a finished run, a study or the demo."""

import tempfile
from pathlib import Path

import numpy as np

from tlcgcnn_jax import plots
from tlcgcnn_jax.analysis import analyse
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import read_json, user_path, write_whole
from tlcgcnn_jax.page import figure, page, paragraph, plus_minus, table
from tlcgcnn_jax.results import STUDY, StudyResults
from tlcgcnn_jax.run_page import run_page
from tlcgcnn_jax.study_page import study_page

DEMO = "demo.json"


def run_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a finished run, of a study or of the demo, as one HTML file that needs no other.

    Args:
        folder: Of the run: config.json, metrics.json, metrics.jsonl, settings.json and test_results.csv; or of the
            demo: demo.json; or of a study, finished or not: study.json and what lies beside it.
        out: HTML file; default: report.html in the folder.

    Returns:
        The file.

    Raises:
        InputError: The folder holds none of them, a file is damaged, or the report cannot be written.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a finished run")
    if (folder / STUDY).is_file():
        results = StudyResults(folder)
        text = study_page(results, analyse(results))
    else:
        with tempfile.TemporaryDirectory() as drawn:
            text = _demo_page(folder, Path(drawn)) if (folder / DEMO).is_file() else run_page(folder, Path(drawn))
    page = folder / "report.html" if out is None else user_path(out)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{page}: cannot be written: {error.strerror or error}") from error
    return write_whole(page, text.encode())


def _demo_page(folder: Path, drawn: Path) -> str:
    demo = read_json(folder / DEMO)
    try:
        rows = list(demo["rows"])
        picture = plots.comparison(rows, drawn / "comparison.png")
        cells = []
        for row in rows:
            values = np.asarray(row["mae"], float)
            values = values[np.isfinite(values)]
            unit = f" {row['unit']}" if row.get("unit") else ""
            mean = plus_minus(float(values.mean()), plots.interval(values)) + unit
            cells.append([row["target"], row["strategy"], mean, len(values), plots.gain_text(row, end=", ")])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{folder / DEMO}: {error}") from error
        raise InputError(f"{folder / DEMO}: damaged: {type(error).__name__}: {error}") from error
    alt = f"Mean absolute errors by property and strategy; the table below holds its {len(rows)} rows."
    header = ("property", "strategy", "test MAE", "repeats", "gain over scratch (lower MAE)")
    parts = [
        *(paragraph(str(text)) for text in demo.get("text", [])),
        figure(picture, alt),
        table(header, cells, "Mean over the repeats ± 95 % interval"),
    ]
    return page(str(demo.get("title") or "Transfer against training from scratch"), parts)
