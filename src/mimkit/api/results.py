"""Results that show themselves: what the command line writes as JSON enters; the same as a dict with HTML leaves."""

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from mimkit.core.errors import UserError

WIDTH = 150  # letters of a table in a notebook
SHOWN = 30  # rows of a long list


class Result(dict[str, Any]):
    """The JSON that the command line writes, as a dict; Jupyter shows it as a table."""

    def _repr_html_(self) -> str:
        """A row for each entry that is no list or dict of its own."""
        plain = [(key, value) for key, value in self.items() if not isinstance(value, (dict, list))]
        return html_table(("", ""), plain)


class Evaluation(Result):
    """What `evaluate` gives: accuracies in 0..1 with their intervals."""

    def _repr_html_(self) -> str:
        from mimkit.evaluate.run import table

        return html_of(table([self]))


class DenseEvaluation(Result):
    """What `evaluate` gives of annotated pictures: scores of their pixels with intervals, and baselines beside."""

    def _repr_html_(self) -> str:
        from mimkit.evaluate.dense_table import table

        return html_of(table([self]))


class FineTuning(Result):
    """What a fine-tuning scores on pictures that it has not seen."""

    def _repr_html_(self) -> str:
        from mimkit.evaluate import finetune, transfer

        if "scores" in self:
            return html_of(transfer.table(self))
        return html_of(finetune.table(self)) if "accuracy" in self else super()._repr_html_()


class Analysis(Result):
    """What `analyze` gives: long tables of every layer and head."""

    def _repr_html_(self) -> str:
        from mimkit.analysis.report import tables

        return html_of(tables(self))


class Masks(Result):
    """What `masks` gives: statistics of masks, and `png`, the picture of them."""

    def __init__(self, result: dict[str, Any], png: bytes) -> None:
        super().__init__(result)
        self.png = png

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write the picture as a PNG. Raises UserError when that fails, or for another ending."""
        return _write(Path(file), self.png, ".png")

    def _repr_html_(self) -> str:
        return f"{picture_tag(self.png, 'masks')}{super()._repr_html_()}"


class Page(Result):
    """What `report` gives: what the page was made from, and `html`, the page."""

    def __init__(self, result: dict[str, Any], text: str) -> None:
        super().__init__(result)
        self.html = text

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write the page as one file that needs no other. Raises UserError when that fails, or for another ending."""
        return _write(Path(file), self.html.encode(), ".html")

    def _repr_html_(self) -> str:
        page = html.escape(self.html, quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:800px;border:1px solid #ccc"></iframe>'


class Comparison(Result):
    """What `compare` gives: means, spreads and differences to the first contender."""

    def _repr_html_(self) -> str:
        from mimkit.compare.table import chance, comparison_rows

        heads, *rows = comparison_rows(self)
        return f"{html_table(heads, rows)}<p>{html.escape(chance(self))}</p>"


class Rows(list[dict[str, Any]]):
    """A list of flat dicts, which Jupyter shows as a table."""

    def _repr_html_(self) -> str:
        heads = list(dict.fromkeys(key for row in self for key in row))
        rows = [[row.get(head, "") for head in heads] for row in self[:SHOWN]]
        more = f"<p>and {len(self) - SHOWN:,} more</p>" if len(self) > SHOWN else ""
        return html_table(heads, rows) + more


class Maskers(dict[str, type[Any]]):
    """Classes of maskers by name, which Jupyter shows with the first line of what they say about themselves."""

    def _repr_html_(self) -> str:
        rows = [(name, kind.__name__, (kind.__doc__ or "").splitlines()[0]) for name, kind in self.items()]
        return html_table(("masker", "class", "what it is"), rows)


def html_table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Cells as text in an HTML table; floats in four digits."""
    top = "".join(f"<th>{html.escape(str(head))}</th>" for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table style="text-align:left"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _cell(value: object) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def html_of(renderable: RenderableType) -> str:
    """What rich prints in a terminal, as HTML."""
    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_jupyter=False)
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format='<pre style="line-height:1.2">{code}</pre>')


def picture_tag(png: bytes, text: str, style: str = "max-width:100%") -> str:
    """An HTML picture that holds its own bytes; `text` stands for it where it cannot be seen."""
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(text, quote=True)}" style="{style}">'


def _write(file: Path, data: bytes, ending: str) -> Path:
    if file.suffix.lower() != ending:
        raise UserError(f"{file} must end in {ending}")
    try:
        file.write_bytes(data)
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror or error}): name another file") from error
    return file
