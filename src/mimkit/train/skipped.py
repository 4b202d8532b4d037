"""Bad pictures of a run: their numbers and reasons enter; skipped.json, or the stop at too many, leaves."""

from mimkit.core import distributed
from mimkit.core.errors import UserError
from mimkit.core.files import read_json
from mimkit.data.pictures import Pictures
from mimkit.train.run_folder import RunFolder, disk_errors, write_json


class SkippedPictures:
    """Bad pictures of a run: listed once each in skipped.json, and too many of them stop the run."""

    def __init__(self, run: RunFolder, pictures: Pictures, fraction: float) -> None:
        self.run, self.pictures, self.fraction = run, pictures, fraction
        self.path = run.folder / "skipped.json"
        self.reasons: dict[str, str] = read_json(self.path, dict[str, str]) if self.path.exists() else {}

    def add(self, new: tuple[tuple[int, str], ...]) -> None:
        """Add pictures and their reasons."""
        reasons = {self.pictures.where(number): reason for number, reason in new}
        if not reasons.keys() - self.reasons.keys():
            return
        self.reasons |= reasons
        if distributed.is_main():
            with disk_errors(self.run.folder):
                write_json(self.path, self.reasons)
        if len(self.reasons) > self.fraction * len(self.pictures):
            examples = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:3])
            total = len(self.pictures)
            raise UserError(
                f"{len(self.reasons)} of {total} pictures cannot be read ({examples}; all in {self.path}): mend or "
                f"remove them, or allow more with --images.bad-fraction {2 * len(self.reasons) / total:.2g}"
            )
