"""Long bytes compared so that a difference is told by its place: pytest prints what differs whole, which buries the rest."""


def first_difference(got: bytes, wanted: bytes) -> str | None:
    """Where `got` first differs from `wanted`, with a little of both; None where they are the same."""
    if got == wanted:
        return None
    at = next(
        (i for i, (one, other) in enumerate(zip(got, wanted, strict=False)) if one != other), min(len(got), len(wanted))
    )
    return (
        f"at {at}: {got[at : at + 20]!r} instead of {wanted[at : at + 20]!r} ({len(got)} bytes, {len(wanted)} wanted)"
    )
