"""Bad pictures of a run: their numbers and reasons enter; skipped.json, or the stop at too many, leaves."""

from mimkit.core import distributed
from mimkit.core.errors import UserError
from mimkit.data.pictures import Pictures
from mimkit.train.run_folder import RunFolder, disk_errors, read_json, write_json


class SkippedPictures:
    """Bad pictures of a run: listed once each in skipped.json, and too many of them stop the run."""

    def __init__(self, run: RunFolder, pictures: Pictures, fraction: float) -> None:
        self.run, self.pictures, self.fraction = run, pictures, fraction
        self.path = run.folder / "skipped.json"
        self.seen: dict[str, str] = read_json(self.path) if self.path.exists() else {}

    def note(self, new: tuple[tuple[int, str], ...]) -> None:
        """Add pictures and their reasons."""
        found = {self.pictures.where(number): reason for number, reason in new}
        if not found.keys() - self.seen.keys():
            return
        self.seen |= found
        if distributed.is_main():
            with disk_errors(self.run.folder):
                write_json(self.path, self.seen)
        if len(self.seen) > self.fraction * len(self.pictures):
            some = "; ".join(f"{name}: {reason}" for name, reason in list(self.seen.items())[:3])
            raise UserError(
                f"{len(self.seen)} of {len(self.pictures)} pictures cannot be read ({some}; all in {self.path}): mend "
                f"or remove them, or allow more with --images.bad-fraction {2 * len(self.seen) / len(self.pictures):.2g}"
            )
