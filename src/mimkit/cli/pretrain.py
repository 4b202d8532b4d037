"""`mimkit pretrain`: words enter, a trained run leaves. Wrong words are refused before torch loads."""

from rich.markup import escape

from mimkit.cli.console import show
from mimkit.cli.overview import wanted
from mimkit.core.errors import UserError
from mimkit.core.flags import HELP, Arguments
from mimkit.recipes import check_recipe


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and an instance that gives the defaults: those of MAE."""
    from mimkit.recipes.overrides import PretrainArguments
    from mimkit.train.prepare import Pretrain

    return PretrainArguments, PretrainArguments(config=Pretrain())


def run(args: list[str]) -> int:
    """Train, go on, or say why not; 128 + N when signal N stopped it."""
    if args and not args[0].startswith("-"):
        check_recipe(args[0])
        if args[1:] and not args[1].startswith("-"):
            raise UserError(f"pictures go behind --data: mimkit pretrain {args[0]} --data {args[1]}")
    flags = {arg.partition("=")[0] for arg in args}
    if not flags & {"--data", "--run", *HELP}:
        raise wanted("pretrain")
    from mimkit.cli.train import pretrain

    result, text, json_to = pretrain(args)
    show(result, json_to, escape(text))
    return 128 + result["signal"] if result["signal"] else 0
