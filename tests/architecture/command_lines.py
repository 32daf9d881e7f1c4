"""Command lines as a page of docs has them, held against the commands that there are.

A page shows them in blocks of `sh` and in code within its text. What stands for something else (`APP`, `[-f]`, `…`) is read
as people read it: brackets fall away, `ls|rm` is each of both, and what comes after `--` is another program's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
_ENDS = re.compile(r"\s(?:\||&&|\|\||;|>|<)\s.*|\s#.*")


def command_lines(page: str, programs: frozenset[str]) -> Iterator[list[str]]:
    """The words of each call of one of these programs that a page shows."""
    for block in _BLOCK.finditer(page):
        if block[2] in ("sh", ""):
            for line in block[3].replace("\\\n", " ").splitlines():
                yield from _calls(line, programs)
    for code in _INLINE.finditer(_BLOCK.sub("", page)):
        yield from _calls(re.sub(r"\s+", " ", code[1]), programs)


def _calls(line: str, programs: frozenset[str]) -> Iterator[list[str]]:
    for part in re.split(r"\s(?:&&|\|)\s", line):
        text = _ENDS.sub("", part.strip().removeprefix("$ "))
        try:
            words = shlex.split(re.sub(r"[\[\]…]|\.\.\.", " ", text))
        except ValueError:  # a quote that goes on in the next line
            words = text.split()
        while words and (words[0] == "sudo" or re.fullmatch(r"[A-Z_]+=.*", words[0])):
            words = words[1:]
        if words and words[0] in programs:
            yield words


def faults(root: click.Command, words: list[str]) -> list[str]:
    """What of a command line is not there: commands and options by their names."""
    return list(_faults(root, words[1:], words[:1], {}))


def _faults(
    command: click.Command, words: list[str], path: list[str], options: dict[str, click.Option]
) -> Iterator[str]:
    options = options | {name: each for each in command.params if isinstance(each, click.Option) for name in each.opts}
    options |= {name: each for each in options.values() for name in each.secondary_opts}
    options |= dict.fromkeys(("-h", "--help"), click.Option(["--help"], is_flag=True))
    context = click.Context(command, **command.context_settings)
    while words:
        word, *words = words
        if word == "--":
            return
        if word.startswith("-") and len(word) > 1:
            unknown, takes_next = _option(word, options)
            if unknown and not context.ignore_unknown_options:  # which are another command's
                yield f"{' '.join(path)} has no {unknown}"
            words = words[1:] if takes_next else words
        elif isinstance(command, click.Group):
            for name in word.split("|"):
                own = name in command.list_commands(context)  # pages show a command by its own name, not by another's
                found = command.get_command(context, name) if own else None
                if found is not None:
                    yield from _faults(found, words, [*path, name], options)
                elif name.islower():  # else it stands for any of them
                    yield f"{' '.join(path)} has no command {name}"
            return
        elif not context.allow_interspersed_args:
            return


def _option(word: str, options: dict[str, click.Option]) -> tuple[str, bool]:
    """What of a word is no option, and whether the next word is its value."""
    for each in word.split("|") if "=" not in word else [word]:
        name, given, _ = each.partition("=")
        found = options.get(name)
        if found is None and not name.startswith("--"):
            letters = [f"-{letter}" for letter in name[1:]]
            if f"-{name[1:2]}" in options and not _is_flag(options[f"-{name[1:2]}"]):
                continue  # its value is joined to it: `-n20`
            lacking = [letter for letter in letters if letter not in options]
            if lacking:
                return lacking[0], False
            continue
        if found is None:
            return name, False
        if not given and not _is_flag(found):
            return "", True
    return "", False


def _is_flag(option: click.Option) -> bool:
    return option.is_flag or option.count
