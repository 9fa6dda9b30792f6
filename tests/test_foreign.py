"""Foreign text, JSON and numbers: within the limits they are read, beyond them one line says what is wrong."""

import contextlib
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import memory_below

from bitgolf import foreign
from bitgolf.errors import ForeignError, require_type

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("aé\n"), inner),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_ordinary_json_is_read_as_it_is(value: object) -> None:
    assert foreign.parse_json(json.dumps(value)) == value
    assert foreign.parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ('{"a": 1,}', "not JSON: .* line 1"),
        ("[" * 100_000, "nested"),
        ("[" * 100_000 + "]" * 100_000, "nested"),
        ("[" * 65 + "]" * 65, "more than 64 nested"),
        ('{"a":' * 70 + "1" + "}" * 70, "more than 64 nested"),
        ("9" * 400, "400 digits"),
        ("9" * 5_000, "5,000 digits"),
        ("-" + "9" * 5_000, "digits"),
        ("9223372036854775808", "above 9223372036854775807"),
        ("1e400", "not finite"),
        ("0." + "1" * 5_000, "digits"),
        ("NaN", "NaN is not finite"),
        ("-Infinity", "not finite"),
        ('"\\ud800"', r"lone surrogate U\+D800"),
        ('{"\\udfff": 1}', r"lone surrogate U\+DFFF"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("1.2.3.4", "not JSON"),
        ("\ufeff{}", "not JSON"),
    ],
    ids=lambda value: value[:20],
)
def test_other_json_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(ForeignError, match=words) as caught:
        foreign.parse_json(text)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_the_deepest_allowed_nesting_is_read() -> None:
    text = "[" * 64 + "]" * 64
    assert foreign.parse_json(text) == json.loads(text)


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(ForeignError, match="not UTF-8: byte 0xE9 at position 4"):
        foreign.parse_json(b'"caf\xe9"')


def test_more_bytes_than_allowed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2]")
    assert foreign.read_json(tmp_path / "a.json", max_bytes=6) == [1, 2]
    for read in (foreign.read_json, foreign.read_bytes, foreign.read_text):
        with pytest.raises(ForeignError, match="more than 5 bytes"):
            read(tmp_path / "a.json", max_bytes=5)
    for parse in (foreign.parse_json, foreign.parse_toml):
        with pytest.raises(ForeignError, match="more than 5 bytes"):
            parse("[1, 2]", max_bytes=5)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    for read in (foreign.read_bytes, foreign.require_regular):
        for name in ("file", "link"):
            assert not read(tmp_path / name)
        for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero"), Path("/dev/null")):
            with pytest.raises(ForeignError, match="not a regular file"):
                read(path)
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")


def test_lines_of_json_name_the_bad_line() -> None:
    assert list(foreign.parse_json_lines('{"a": 1}\n\n2\n')) == [{"a": 1}, 2]
    values = foreign.parse_json_lines('1\n{"a"\n')
    assert next(values) == 1
    with pytest.raises(ForeignError, match="line 2: it is not JSON"):
        next(values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = ", "not TOML"),
        ("a = " + "[" * 50_000, "nested|not TOML"),
        ("a = " + "9" * 5_000, "not TOML"),
        ("a = " + "9" * 400, "digits"),
        ("a = nan", "not finite"),
        ('a = "\0"', "not TOML"),
    ],
    ids=lambda value: value[:20],
)
def test_other_toml_is_refused_in_one_line(text: str, words: str) -> None:
    assert foreign.parse_toml("[a]\nb = 1") == {"a": {"b": 1}}
    with pytest.raises(ForeignError, match=words) as caught:
        foreign.parse_toml(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "value"), [("1.5", 1.5), (" -3 ", -3), ("1e-3", 0.001), ("16,000,000", 16e6), (".5", 0.5)]
)
def test_numbers_of_logs(text: str, value: float) -> None:
    assert foreign.parse_number(text) == value


@pytest.mark.parametrize(
    "text", ["", "1.2.3.4", "nan", "inf", "1e999", "9" * 400, "0x10", "1_000", "١", "-", "1e", "1 2"]
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ForeignError, match="is not a number"):
        foreign.parse_number(text)


def test_fields_have_the_kind_that_is_asked_for() -> None:
    record = {"n": 3, "x": 1.5, "s": "a", "l": [1], "o": {}, "b": True, "z": None}
    assert foreign.as_object(record, "it") is record and foreign.field(record, "z") is None
    assert foreign.as_integer(record["n"], "n") == 3 and foreign.as_number(record["n"], "n", 0, 3) == 3.0
    assert (
        foreign.as_text("a", "s") == "a" and foreign.as_list([1], "l", 1) == [1] and foreign.as_bool(True, "b") is True
    )
    for check, values, words in [
        (foreign.as_object, (3, [], None), "must be an object"),
        (foreign.as_list, ({}, "a", None), "must be a list"),
        (foreign.as_text, (3, None, []), "must be a text"),
        (foreign.as_integer, (1.0, True, "3", None), "must be an integer"),
        (foreign.as_number, (True, "3", None, []), "must be a number"),
        (foreign.as_bool, (1, "true", None), "must be true or false"),
    ]:
        for value in values:
            with pytest.raises(ForeignError, match=f"x is .*, it {words}"):
                check(value, "x")
    for refused in (
        lambda: foreign.as_integer(4, "n", 0, 3), lambda: foreign.as_number(-0.1, "n", 0),
        lambda: foreign.as_number(4, "n", 0, 3), lambda: foreign.as_number(float("nan"), "n"),
        lambda: foreign.as_text("ab", "s", 1),
        lambda: foreign.as_list([1, 2], "l", 1), lambda: foreign.field(record, "none"),
    ):  # fmt: skip
        with pytest.raises(ForeignError):
            refused()


def test_what_is_shown_cannot_change_the_terminal_or_the_page() -> None:
    hostile = "a\x1b[31mb\u202ec\r\n\ud800\0é" + "x" * 500
    line = foreign.printable(hostile)
    assert line.isprintable() and "\\x1b[31mb\\u202ec\\r\\n\\ud800" in line and "é" in line and len(line) < 260
    several = foreign.harmless("a\tb\nc\x1b[2J\u202e\x07\u2066\x9b\ud800 😀 é")
    assert several == "a\tb\nc\\x1b[2J\\u202e\\x07\\u2066\\x9b\\ud800 😀 é"


def test_work_is_linear_in_the_size() -> None:
    """Hostile documents of a megabyte take a small part of a second; processor time, not the wall clock."""
    for text in (
        "[" * 500_000,
        "[[],[]" * 1 + ",[]" * 300_000,
        '{"a":"' + "\\u0061" * 150_000 + '"}',
        "[" + "1," * 500_000 + "1]",
    ):
        start = time.process_time()
        with contextlib.suppress(ForeignError):
            foreign.parse_json(text)
        assert time.process_time() - start < 5


def test_values_at_the_limits_are_read(tmp_path: Path) -> None:
    assert foreign.parse_json("9223372036854775807") == 2**63 - 1
    assert foreign.parse_json("-9223372036854775807") == 1 - 2**63
    assert foreign.parse_json("0." + "1" * 62) == float("0." + "1" * 62)
    with pytest.raises(ForeignError, match="65 digits"):
        foreign.parse_json("0." + "1" * 63)
    assert foreign.parse_json("[1]", max_bytes=3) == [1]
    assert list(foreign.parse_json_lines("[1]", max_bytes=3)) == [[1]]
    assert foreign.parse_toml("a=1", max_bytes=3) == {"a": 1}
    (tmp_path / "a").write_bytes(b"abc")
    assert foreign.read_bytes(tmp_path / "a", 3) == b"abc"
    assert foreign.as_text("ab", "s", 2) == "ab" and foreign.as_list([1, 2], "l", 2) == [1, 2]
    assert foreign.as_integer(0, "n", 0, 3) == 0 and foreign.as_integer(3, "n", 0, 3) == 3
    assert foreign.as_number(0, "n", 0, 3) == 0 and foreign.as_number(3, "n", 0, 3) == 3
    assert foreign.printable("a" * 10, 10) == "a" * 10 and foreign.printable("a" * 11, 10) == "a" * 10 + "..."
    for value in (-1, 4):
        with pytest.raises(ForeignError, match="n is"):
            foreign.as_integer(value, "n", 0, 3)
    with pytest.raises(ForeignError, match="more than 2 bytes"):
        list(foreign.parse_json_lines("[1]", max_bytes=2))


def test_a_record_conforms_to_its_kinds() -> None:
    kind = {
        "name": foreign.as_text,
        "seconds?": foreign.as_number,
        "sizes": [foreign.as_integer],
        "by_group": {"*": foreign.as_integer},
        "note": (foreign.as_text, None),
    }
    record = {"name": "a", "sizes": [1, 2], "by_group": {"x": 1}, "note": None, "other": object()}
    foreign.conform(record, kind, "it")
    foreign.conform(record | {"seconds": 1.5, "note": "b"}, kind, "it")
    for change, words in (
        ({"name": 1}, "it.name is a number, it must be a text"),
        ({"seconds": None}, "it.seconds is null"),
        ({"sizes": [1, "2"]}, r"it.sizes\[1\] is a text"),
        ({"sizes": {}}, "it.sizes is an object"),
        ({"by_group": {"x\u202e": None}}, r"it.by_group.x\\u202e is null"),
        ({"by_group": []}, "it.by_group is a list"),
        ({"note": 3}, "it.note is a number"),
    ):
        with pytest.raises(ForeignError, match=words):
            foreign.conform(record | change, kind, "it")
    del record["name"]
    with pytest.raises(ForeignError, match="name is missing"):
        foreign.conform(record, kind, "it")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ForeignError, match=r"it cannot be read: Too many levels of symbolic links"):
        foreign.read_bytes(tmp_path / "loop")


def test_no_memory_is_taken_for_bytes_that_a_file_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with memory_below(4_000_000):
        with (tmp_path / "file").open("rb") as file:
            assert foreign.read_at_most(file, 10) == bytes(range(10))
            assert foreign.read_at_most(file, 1 << 40) == bytes(range(10, 100))
            assert foreign.read_at_most(file, 1 << 40) == b""
        assert foreign.read_bytes(tmp_path / "file") == bytes(range(100))


def test_a_truth_value_is_a_number_only_where_it_is_asked_for() -> None:
    require_type("stream", True, bool, "True or False")
    require_type("stride", 3, (int, str), "a whole number or a text")
    for value, kinds in ((True, int), (False, (int, str)), (1, bool), ("1", int)):
        with pytest.raises(TypeError, match="stride must be a whole number, not"):
            require_type("stride", value, kinds, "a whole number")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b"])
def test_paths_that_no_file_can_have_are_refused(path: str) -> None:
    with pytest.raises(ForeignError, match="characters that no path has"):
        foreign.read_bytes(path)
