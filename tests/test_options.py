"""What an option tells about itself, and how layers are gathered: shown with a toy table."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from relay.errors import ConfigError
from relay.options import Catalog, Draft


def even(value: int) -> None:
    """Refuse odd numbers."""
    if value % 2:
        raise ConfigError(f"{value}: must be even")


class Toy(Struct, kw_only=True):
    """`[toy]`: one setting of each kind."""

    count: Annotated[int, Meta(ge=1, le=9, description="A number.")] = 4
    wait_s: Annotated[float, Meta(ge=0, le=1.5, description="A time.")] = 0.5
    tone: Annotated[Literal["low", "high"], Meta(description="A choice.")] = "low"
    loud: Annotated[bool, Meta(description="A flag.", extra={"flag": "louder"})] = False
    label: Annotated[
        Annotated[str, Meta(min_length=1, max_length=5)] | None,
        Meta(description="A text.", extra={"default": "no label"}),
    ] = None
    evens: Annotated[
        tuple[int, ...],
        Meta(description="A list.", extra={"form": "list of even numbers", "check": even}),
    ] = ()


TOYS = Catalog({"toy": Toy}, Toy)


@pytest.mark.parametrize(
    ("name", "form", "default"),
    [
        ("count", "integer 1 to 9", "4"),
        ("wait_s", "number 0 to 1.5", "0.5"),
        ("tone", '"high" or "low"', '"low"'),
        ("louder", "true or false", "false"),
        ("label", "text of 1 to 5 characters", "no label"),
        ("evens", "list of even numbers", "[]"),
    ],
)
def test_a_field_tells_its_form_and_default(name: str, form: str, default: str) -> None:
    """What docs and messages say is read from the type and its bounds."""
    option = TOYS.find(name)
    assert option is not None
    assert (option.form, option.default_text) == (form, default)


def test_one_name_gives_all_names() -> None:
    """Key, word, option and environment name come from the field, or from its flag."""
    option = TOYS.find("louder")
    assert option is not None
    assert (option.key, option.flag, option.env) == ("toy.loud", "--louder", "RELAY_LOUDER")
    assert TOYS.find("toy.loud") is TOYS.find("--louder") is option
    assert TOYS.find("loud") is None


def test_numbers_come_as_text_only_where_text_is_all_there_is() -> None:
    """A file that says "4" is told so; the environment cannot say it otherwise."""
    draft = Draft(TOYS)
    draft.take_tree({"toy": {"count": "4"}})
    draft.take_environment({"RELAY_COUNT": "5", "RELAY_LOUDER": "1", "RELAY_EVENS": "2,4"})
    assert draft.problems == ['toy.count = "4": must be an integer 1 to 9']
    assert draft.given == {"toy": {"count": 5, "loud": True, "evens": (2, 4)}}


def test_each_wrong_item_of_a_list_has_its_line() -> None:
    """A list is mended in one go."""
    draft = Draft(TOYS)
    draft.take_overrides({"evens": [1, 2, 3], "label": None})
    assert draft.problems == [
        "toy.evens (from evens) = 1: must be even",
        "toy.evens (from evens) = 3: must be even",
    ]


def test_findings_about_broken_keys_are_left_out() -> None:
    """Nobody is told twice about one slip."""
    draft = Draft(TOYS)
    draft.take_overrides({"toy.count": 10})
    draft.note([({"toy.count", "toy.tone"}, "about count"), ({"toy.tone"}, "about tone")])
    with pytest.raises(ConfigError) as caught:
        draft.finish()
    assert caught.value.problems == ("toy.count = 10: must be an integer 1 to 9", "about tone")
