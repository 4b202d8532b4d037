"""Sets put in order on disk: a target and pictures enter, a folder with a contact sheet and a table leaves."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mimkit.api.embed import embed
from mimkit.api.embeddings import Embeddings
from mimkit.api.ordered import Ordered
from mimkit.api.results import Result
from mimkit.core.errors import UserError
from mimkit.train.run_folder import write_text

LIST = "pictures.txt"


def put_in_order(
    target: str,
    data: Sequence[str],
    out: Path,
    kind: str,
    order: Callable[[Embeddings], Ordered],
    **settings: Any,
) -> Result:
    """Embed pictures, order them, and write KIND.csv and index.html into a folder; of `curate` a list of paths too.

    Args:
        target, data, settings: see `embed`.
        out: a new or empty folder.
        kind: `neighbors`, `duplicates`, `clusters`, `outliers` or `curate`.
        order: one of `api.ordered`.

    Returns:
        JSON: out, kind, target, data, and the numbers of the order.

    Raises:
        UserError: anything a person can mend.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: name a new folder with --out")
    embeddings = embed(target, data, **settings)
    if kind == "curate":
        refuse_no_files(embeddings)
    ordered = order(embeddings)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / f"{kind}.csv", as_csv(ordered.table))
        if kind == "curate":
            write_text(out / LIST, "".join(f"{row['path']}\n" for row in ordered.table))
        write_text(out / "index.html", sheet_of(embeddings, ordered, kind))
    except OSError as error:
        raise UserError(f"cannot write into {out} ({error.strerror}): name another folder with --out") from error
    about = {"out": str(out), "kind": kind, "target": target, "data": embeddings.about.data, "lead": ordered.lead}
    return Result(about | ordered.numbers)


def sheet_of(embeddings: Embeddings, ordered: Ordered, kind: str) -> str:
    """The contact sheet of an order."""
    from mimkit.report.contact import Shown, contact_sheet

    assert embeddings.pictures is not None and embeddings.numbers is not None
    groups = [
        Shown(group.title, embeddings.numbers[list(group.rows)].tolist(), group.words) for group in ordered.groups
    ]
    return contact_sheet(
        embeddings.pictures,
        groups,
        kind=kind,
        lead=ordered.lead,
        target=embeddings.about.target,
        file=LIST if kind == "curate" else f"{kind}.csv",
    )


def as_csv(table: list[dict[str, Any]]) -> str:
    """Rows as a CSV with a header; nothing where there are none."""
    if not table:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def refuse_no_files(embeddings: Embeddings) -> None:
    """Raises UserError for pictures that are no files of their own, so that a list of paths cannot name them."""
    missing = next((path for path in embeddings.paths if "\n" in path or not Path(path).is_file()), None)
    if missing is not None:
        raise UserError(
            f"a list cannot name {missing!r}, which is no file of its own: unpack the pictures into a folder"
        )
