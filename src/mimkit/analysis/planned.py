"""A recipe, its pictures and a request of GPUs enter; the plan leaves: what is counted, measured and computed."""

from dataclasses import asdict, dataclass
from typing import Any

from mimkit.analysis.counts import count_step
from mimkit.analysis.files import measure_files
from mimkit.analysis.plan import Cluster, plan
from mimkit.core.errors import UserError, at_least
from mimkit.train.prepare import Prepared


@dataclass(frozen=True, kw_only=True)
class Request:
    """GPUs that a run shall be planned for. Raises UserError for numbers that cannot be meant."""

    cluster: Cluster
    utilization: float = 0.35
    """Share of a GPU's operations that training reaches."""
    dollars: float | None = None
    """Of a GPU and hour."""
    pictures: int | None = None
    """As if there were so many pictures like these; by default those that there are."""

    def __post_init__(self) -> None:
        if not 0 < self.utilization <= 1:
            raise UserError(f"--utilization is a share between 0 and 1, got {self.utilization:g}; 0.3 to 0.4 is usual")
        at_least(0, **{"dollars-per-gpu-hour": self.dollars})
        at_least(1, pictures=self.pictures)


def plan_recipe(prepared: Prepared, request: Request) -> dict[str, Any]:
    """The plan of a recipe on its pictures for these GPUs: counted, measured and computed, as JSON.

    Raises:
        UserError: a batch that does not divide, a model that does not fit, a recipe that cannot be counted.
    """
    config = prepared.config
    result = plan(
        count_step(prepared),
        request.cluster,
        batch_size=config.batch_size,
        pictures=request.pictures or prepared.count,
        epochs=config.epochs,
        whole_batch=config.method.needs_whole_batch,
        utilization=request.utilization,
        dollars=request.dollars,
    )
    views = (config.images.view, *config.images.other_views)
    return result | {"files": asdict(measure_files(prepared.pictures, views, prepared.size))}
