"""Checks of state dicts from elsewhere, before anything is built from them."""

from collections.abc import Callable, Mapping

import torch


def check_state_dict(
    found: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Size],
    what: str,
    *,
    spare: Callable[[str], object] = lambda key: False,
) -> None:
    """Refuses a state dict that is not exactly what is expected.

    Args:
        found: Tensors by name.
        expected: Shapes by name.
        what: What the tensors belong to, for the messages.
        spare: Whether a tensor of this name may be there as well.

    Raises:
        ValueError: If tensors are missing, too many, of another shape, or not finite; they are listed.
    """
    missing = [name for name in expected if name not in found]
    surplus = sorted(name for name in found if name not in expected and not spare(name))
    if missing or surplus:
        lacks = f"lacks {len(missing)} of its {len(expected)} tensors: {', '.join(missing)}"
        spares = f"has {len(surplus)} tensors too many: {', '.join(surplus)}"
        problems = [lacks] * bool(missing) + [spares] * bool(surplus)
        raise ValueError(f"The {what} {' and '.join(problems)}.")
    wrong = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(shape)}"
        for name, shape in expected.items()
        if found[name].shape != shape
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} tensors of the {what} do not fit the others: {'; '.join(wrong)}.")
    broken = [name for name in expected if not found[name].isfinite().all()]
    if broken:
        raise ValueError(
            f"The {what} has values that are not finite, in {', '.join(broken)}. Did its training diverge?"
        )


__all__ = ["check_state_dict"]
