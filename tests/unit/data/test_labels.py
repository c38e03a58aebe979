"""A label is what stands in the member that the rule names, or an error; never a guess."""

import json

import pytest

from data_pipeline.errors import DataError
from data_pipeline.labels import Labels

CLASSES = ["ant", "bee", "7"]


def read(members: dict[str, str], rule: str = "auto", classes: list[str] = CLASSES) -> int:
    return Labels(rule, classes).read("a.tar: sample x", {name: content.encode() for name, content in members.items()})


@pytest.mark.parametrize(
    ("members", "rule", "label"),
    [
        ({"cls": "5"}, "auto", 5),
        ({"cls": " 5\n"}, "cls", 5),
        ({"cls": "-1"}, "cls", -1),
        ({"cls": "7"}, "auto", 7),  # a number, though there is a class of this name
        ({"txt": "7"}, "auto", 2),  # the class of this name
        ({"txt": "bee\n"}, "auto", 1),
        ({"txt": "6"}, "txt", 6),
        ({"json": '{"label": 3}'}, "auto", 3),
        ({"json": '{"label": "ant"}'}, "auto", 0),
        ({"json": '{"label": 3, "kind": "bee"}'}, "json:kind", 1),
        ({"json": '{"kind": 4}', "cls": "9"}, "json:kind", 4),
        ({"json": '{"label": 3}', "cls": "9", "txt": "ant"}, "auto", 9),
        ({"json": '{"label": 3}', "txt": "ant"}, "auto", 3),
        ({"json": '{"caption": "x"}', "txt": "ant"}, "auto", 0),
        ({"json": '{"label": null}', "txt": "ant"}, "auto", 0),
        ({"cls": "5"}, "none", -1),
        ({}, "none", -1),
        ({"cls": str(2**31 - 1)}, "cls", 2**31 - 1),
    ],
)
def test_by_rule(members, rule, label):
    assert read(members, rule) == label


@pytest.mark.parametrize(
    ("members", "rule"),
    [
        ({}, "auto"),
        ({"jpg": "5"}, "auto"),
        ({"txt": "5"}, "cls"),
        ({"cls": "5"}, "json:label"),
        ({"json": '{"label": 3}'}, "json:kind"),
        ({"cls": ""}, "auto"),
        ({"cls": "1.5"}, "auto"),
        ({"cls": "0x10"}, "auto"),
        ({"cls": "bee"}, "auto"),
        ({"txt": "a photo of a bee"}, "auto"),
        ({"json": '{"label": 1.5}'}, "auto"),
        ({"json": '{"label": true}'}, "auto"),
        ({"json": '{"label": [1]}'}, "auto"),
        ({"json": '{"label": "dog"}'}, "auto"),
        ({"json": "[1, 2]"}, "auto"),
        ({"json": '"label"'}, "json:label"),
        ({"json": "{"}, "auto"),
        ({"json": "[" * 100_000}, "auto"),
        ({"cls": str(2**31)}, "auto"),
        ({"json": json.dumps({"label": -(2**40)})}, "auto"),
    ],
)
def test_what_holds_no_label_is_an_error_with_its_place(members, rule):
    with pytest.raises(DataError, match=r"^a\.tar: sample x: "):
        read(members, rule)


@pytest.mark.parametrize("rule", ["", "json", "class", "cls:0"])
def test_rules_that_do_not_exist(rule):
    with pytest.raises(DataError, match="allowed are cls, txt, json:FIELD, none"):
        Labels(rule)
