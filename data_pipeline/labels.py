"""The label of a sample, from whichever of its members holds it: `.cls`, `.json` or `.txt`."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.errors import DataError

NO_LABEL = -1
RULES = "cls, txt, json:FIELD, none (unlabelled) or auto (.cls, else `label` in .json, else .txt)"


class Labels:
    """Read by one of RULES: `.cls` holds a number, the others a number or one of `classes` (though it look like a number)."""

    def __init__(self, rule: str = "auto", classes: Sequence[str] = ()) -> None:
        if rule not in ("auto", "none", "cls", "txt") and not rule.startswith("json:"):
            raise DataError(f"label rule {rule!r}: allowed are {RULES}")
        self.rule = rule
        self.numbers = {name: number for number, name in enumerate(classes)}

    def read(self, where: str, members: Mapping[str, bytes]) -> int:
        """The label among a sample's members (extension -> content)."""
        if self.rule == "none":
            return NO_LABEL
        for rule in ("cls", "json:label", "txt") if self.rule == "auto" else (self.rule,):
            extension, _, field = rule.partition(":")
            value = _value(members[extension], field, where) if extension in members else None
            if value is not None:
                return self._number(value, extension, where)
        raise DataError(f"{where}: no label among .{', .'.join(members)} by the rule {self.rule}; allowed are {RULES}")

    def _number(self, value: str | int, extension: str, where: str) -> int:
        if extension != "cls" and value in self.numbers:
            return self.numbers[str(value)]
        try:
            return int(np.int32(int(value)))
        except (ValueError, OverflowError):
            kind = "an integer of 32 bits" + ("" if extension == "cls" else " or one of the class names")
            raise DataError(
                f"{where}: label {value[:40] if isinstance(value, str) else value!r} in .{extension} is not {kind}"
            ) from None


def _value(content: bytes, field: str, where: str) -> str | int | None:
    """What stands in a member, or in a field of one that is JSON; None where it holds nothing."""
    text = content.decode(errors="replace").strip()
    if not field:
        return text
    try:
        value = json.loads(text).get(field)
    except (ValueError, AttributeError, RecursionError):
        raise DataError(f"{where}: its .json is not a JSON object") from None
    return value if value is None or (isinstance(value, int) and not isinstance(value, bool)) else str(value)
