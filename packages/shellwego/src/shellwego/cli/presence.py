"""Whether what a command is to destroy is there: seen before anybody is asked and before the first of several is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shellwego.cli.session import Session


def look_first(session: Session, names: Sequence[str], find: Callable[[str], object]) -> None:
    """End with the first name that nothing has, while all is still there.

    One that is destroyed unasked is not looked for: destroying it tells the same. Nor does it end where none of several can
    be seen: a token may be good for destroying and not for seeing.

    Raises:
        ApiProblem: there is nothing of that name, or looking failed.
    """
    from shellwego.client.transport import ApiProblem  # noqa: PLC0415

    if session.yes and len(names) == 1:
        return
    absent: list[ApiProblem] = []
    for name in names:
        try:
            find(name)
        except ApiProblem as error:
            if error.status == 404:
                absent.append(error)
            elif error.status != 403:
                raise
    if absent and (len(absent) < len(names) or not session.yes):
        raise absent[0]
