"""`mimkit doctor`: a folder and a recipe enter, what is wrong with the pictures and what training would cost leave."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.cli.reading import ReadingFlags
from mimkit.cli.report import refuse_without_jinja2
from mimkit.core.annotation import DenseTask
from mimkit.core.errors import UserError
from mimkit.core.flags import Arguments, parse, refuse_unwritable
from mimkit.recipes import check_recipe

if TYPE_CHECKING:
    from mimkit.analysis.planned import Request

PLANNED = ("gpu", "gpus_per_host", "network", "utilization", "dollars_per_gpu_hour", "pictures")  # settings of a plan


@dataclass(kw_only=True)
class DoctorArguments(Arguments):
    """Read pictures, name the bad ones, and estimate memory, steps and time of a recipe. With --task: examine masks,
    boxes, depths or joints."""

    data: Positional[Annotated[tuple[str, ...], arg(metavar="DATA ... [RECIPE]")]]
    """Pictures, as for pretrain; behind them, a recipe that shall train on them, by default one that fits."""
    task: DenseTask | None = None
    """Examine the annotations of a folder for segment, detect, depth or keypoints, instead of a recipe."""
    labels: str | None = None
    """Where annotations lie, if not below DATA: a folder of masks, depths, boxes or JSON files, or a JSON file."""
    void: int | None = None
    """The number of pixels without a class in masks, besides 255."""
    depth_scale: float | None = None
    """Stored units of a meter in depth maps, if not millimeters: 256 for KITTI."""
    label_column: str | None = None
    """The column of labels in Parquet files, lists and metadata; by default label, labels, fine_label, class, ..."""
    limit: int = 20_000
    """Read at most so many pictures, spread over the set."""
    batch_size: int | None = None
    """Pictures in a step, if other than the recipe's."""
    epochs: int | None = None
    """Passes over the pictures, if other than the recipe's."""
    gpus: int | None = None
    """Plan the recipe for so many GPUs, by arithmetic, instead of timing it here."""
    gpu: str = "h100"
    """Their kind: a100, h100, h200, b200, l40s, 4090."""
    gpus_per_host: int = 8
    """How many of them share a machine."""
    network: float | None = None
    """GB a second that an all-reduce moves across machines: 10 on 100 Gb/s Ethernet; by default as within one, which
    takes a card of 400 Gb/s for each GPU."""
    utilization: float = 0.35
    """Share of a GPU's bfloat16 operations that training shall reach: an assumption; 0.3 to 0.4 is usual."""
    dollars_per_gpu_hour: float | None = None
    """What a GPU costs an hour."""
    pictures: int | None = None
    """Plan as if there were so many pictures like these."""
    images: ReadingFlags = field(default_factory=ReadingFlags)
    """How files become pictures, as for pretrain."""
    html: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write the findings as a self-contained page too, with thumbnails of the pictures that stand out."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return DoctorArguments, None


def run(args: list[str]) -> int:
    """Examine a folder before anything trains."""
    arguments = parse(DoctorArguments, args, "mimkit doctor")
    if arguments.task is not None:
        return _examine_task(arguments, arguments.task)
    for flag, value in (("labels", arguments.labels), ("void", arguments.void), ("depth-scale", arguments.depth_scale)):
        if value is not None:
            raise UserError(f"--{flag} is for annotated pictures: give --task segment, detect, depth or keypoints too")
    if arguments.html is not None:
        refuse_without_jinja2()
        refuse_unwritable(arguments.html)
    from mimkit.analysis.doctor import examine
    from mimkit.data.named import NAMES

    data, recipe = list(arguments.data), None
    if len(data) > 1 and data[-1] not in NAMES and not Path(data[-1]).exists():
        recipe = data.pop()
        check_recipe(recipe)
    examination = examine(
        data,
        recipe,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        reading=arguments.images.reading(arguments.label_column),
        request=_request(arguments),
    )
    show(examination.result, arguments.json, examination.table)
    if arguments.html is not None:
        from mimkit.report.examination import examination_page
        from mimkit.train.run_folder import disk_errors, write_text

        with disk_errors(arguments.html.parent):
            write_text(arguments.html, examination_page(examination))
    if not examination.result["readable"]:
        name = examination.result["data"]
        raise UserError(f"no picture of {name} can be read, for the reasons above: give another folder")
    return 0


def _request(arguments: DoctorArguments) -> "Request | None":
    """The GPUs to plan for, if any."""
    from mimkit.analysis.plan import Cluster
    from mimkit.analysis.planned import Request

    if arguments.gpus is None:
        for name in PLANNED:
            if vars(arguments)[name] != vars(DoctorArguments(data=()))[name]:
                raise UserError(f"--{name.replace('_', '-')} is for a plan: give --gpus too")
        return None
    cluster = Cluster(
        gpus=arguments.gpus, gpu=arguments.gpu, per_host=arguments.gpus_per_host, network=arguments.network
    )
    return Request(
        cluster=cluster,
        utilization=arguments.utilization,
        dollars=arguments.dollars_per_gpu_hour,
        pictures=arguments.pictures,
    )


def _examine_task(arguments: DoctorArguments, task: DenseTask) -> int:
    """Examine the annotations of a folder."""
    from mimkit.analysis.annotations import examine_annotations

    for flag in ("html", "batch_size", "epochs", "label_column", "gpus"):
        if vars(arguments)[flag] is not None:
            raise UserError(f"--{flag.replace('_', '-')} says nothing of annotations: leave it out of --task {task}")
    examination = examine_annotations(
        list(arguments.data),
        task,
        labels=arguments.labels,
        void=arguments.void,
        depth_scale=arguments.depth_scale,
        limit=arguments.limit,
        reading=arguments.images.reading(),
    )
    show(examination.result, arguments.json, examination.table)
    return 0
