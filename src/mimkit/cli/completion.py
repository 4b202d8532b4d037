"""Completion: the name of a shell enters, a script that completes mimkit's words behind a Tab leaves."""

import shlex
from collections.abc import Iterable
from typing import Any, get_args

from mimkit.cli.evaluate import Kind
from mimkit.cli.masks import MaskArguments
from mimkit.cli.overview import COMMANDS
from mimkit.cli.reference import declared
from mimkit.core.declaration import Declared, declarations
from mimkit.core.errors import unknown
from mimkit.data.named import NAMES
from mimkit.masks import maskers
from mimkit.methods.targets import targets
from mimkit.recipes import find_recipe, recipes
from mimkit.recipes.overrides import FinetuneArguments, PretrainArguments

SHELLS = ("bash", "zsh")

SCRIPT = """# Completion of mimkit for {shell}: {install}
{preamble}_mimkit() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
    local flags="" words="" values="" argument
    if [ "$word" = "=" ]; then word=""; fi
    if [ "$before" = "=" ]; then before="${{COMP_WORDS[COMP_CWORD-2]}}"; fi
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=( $(compgen -W {commands} -- "$word") )
        return
    fi
    if [ "$command" = "evaluate" ]; then
        for argument in "${{COMP_WORDS[@]}}"; do
            case "$argument" in
                finetune) command="evaluate finetune";;
                segment|depth) command="evaluate segment";;
            esac
        done
    fi
    case "$command" in
{cases}
    esac
    case "$command $before" in
{values}
    esac
    if [ -n "$values" ]; then
        COMPREPLY=( $(compgen -W "$values" -- "$word") )
        case "$before" in --data) COMPREPLY+=( $(compgen -f -- "$word") );; esac
    elif [ "${{word:0:1}}" = "-" ]; then
        COMPREPLY=( $(compgen -W "$flags" -- "$word") )
    else
        COMPREPLY=( $(compgen -W "$words" -- "$word") $(compgen -f -- "$word") )
    fi
}}
complete -o filenames -F _mimkit mimkit
"""
INSTALL = {
    "bash": "mimkit --print-completion bash > ~/.local/share/bash-completion/completions/mimkit",
    "zsh": "mimkit --print-completion zsh > ~/.mimkit.zsh; echo 'source ~/.mimkit.zsh' >> ~/.zshrc",
}
PREAMBLE = {"bash": "", "zsh": "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"}


def completion(shell: str) -> str:
    """The script for `bash` or `zsh`, from the declarations: commands, flags, choices, names of recipes and the like.

    Raises:
        UserError: there is none for this shell.
    """
    if shell not in SHELLS:
        raise unknown("shell with a completion", shell, SHELLS, see=f"Ask for {' or '.join(SHELLS)}.")
    cases, values = [], []
    for command, cls, default in declared():
        listed = every_flag(command, cls, default)
        flags = " ".join(sorted({entry.flag for entry in listed.values() if entry.flag} | {"--help", "--debug"}))
        cases.append(
            f"        {shlex.quote(command)}) flags={shlex.quote(flags)}; words={shlex.quote(words(command))};;"
        )
        for flag, entry in listed.items():
            if entry.flag and (choices := choices_of(entry)):
                values.append(f"        {shlex.quote(f'{command} {flag}')}) values={shlex.quote(' '.join(choices))};;")
    return SCRIPT.format(
        shell=shell,
        install=INSTALL[shell],
        preamble=PREAMBLE[shell],
        commands=shlex.quote(" ".join([*COMMANDS, "--help", "--version", "--print-completion"])),
        cases="\n".join(cases),
        values="\n".join(values),
    )


def every_flag(command: str, cls: type, default: Any) -> dict[str, Declared]:
    """All that a command may take by name, whatever recipe or masker is named."""
    instances: Iterable[Any] = (default,)
    if command == "pretrain":
        instances = (PretrainArguments(config=find_recipe(name)) for name in recipes())
    elif command == "evaluate finetune":
        names = recipes(finetuning=True)
        instances = (FinetuneArguments(config=find_recipe(name, finetuning=True)) for name in names)
    elif command == "masks":
        instances = (MaskArguments(name=name, masker=masker()) for name, masker in maskers().items())
    return {entry.flag or entry.field: entry for instance in instances for entry in declarations(cls, instance)}


def words(command: str) -> str:
    """Words that may stand as positionals, besides files and folders."""
    names = {
        "pretrain": [*recipes()],
        "launch": ["pretrain", "evaluate"],
        "evaluate": [*get_args(Kind), "pixels"],
        "evaluate segment": ["pixels"],
        "evaluate finetune": [*recipes(finetuning=True)],
        "compare": [*recipes()],
        "masks": [*maskers(), *recipes()],
        "doctor": [*NAMES, *recipes()],
        "shards": ["pack", "index", "check"],
    }
    return " ".join(names.get(command, []))


def choices_of(entry: Declared) -> list[str]:
    """Values of a flag that are known before."""
    if entry.choices:
        return [str(choice) for choice in entry.choices]
    if entry.annotation is bool:
        return ["True", "False"]
    return {"--data": [*NAMES], "--masker": [*maskers()], "--target": [*targets()]}.get(entry.flag, [])
