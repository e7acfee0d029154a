"""Secrets that no text shows, and characters that no terminal gets."""

import json
import logging
import sys

import pytest
from rich.markup import escape
from rich.table import Table

from hdm.errors import ConfigError, HdmError, InputError
from hdm.messages import Terminal, guard_output, say, say_json
from hdm.pipelines import load_pipeline
from hdm.redaction import redacted, redacted_value, visible
from hdm.secrets import resolved

STEERING = "\x1b[31mred\x1b[0m \x9b2J \x07 \x7f \r \u202eevil\u2066 \udcff"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://me:hunter2@host/a.csv.", "see https://***@host/a.csv."),
        ("https://token@host:8080/x", "https://***@host:8080/x"),
        ("GET 'https://host/a?sig=abc&x=1' failed", "GET 'https://host/a?***' failed"),
        ("http://a/x?k=1#part next http://b/?z", "http://a/x?*** next http://b/?***"),
        ("s3://bucket/key?versionId=7", "s3://bucket/key?***"),
        ("--set download.token=hf_abc", "--set download.token=***"),
        ("HF_TOKEN=hf_abc, PASSWORD='x y'", "HF_TOKEN=***, PASSWORD='*** y'"),
        ('{"api_key": "abc", "n": 1}', '{"api_key": "***", "n": 1}'),
        ("download.token=env:MINE", "download.token=env:MINE"),
        ("encode.max_tokens=48, is it? Yes: 50 %", "encode.max_tokens=48, is it? Yes: 50 %"),
        ("sqlite+aiosqlite:////srv/a@b/x.db", "sqlite+aiosqlite:////srv/a@b/x.db"),
        ("/data/{000..099}.tar? or me@home", "/data/{000..099}.tar? or me@home"),
    ],
)
def test_what_is_hidden_of_a_text(text, expected):
    assert redacted(text) == expected
    assert redacted(expected) == expected, "again changes nothing"
    assert redacted_value({"a": [text, 1, (text,)]}) == {"a": [expected, 1, (expected,)]}


def test_a_secret_read_by_reference_is_hidden_whole_and_in_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("LIST_A", "https://me:correct%20horse@host/lists/a.csv?sig=c2lnbmF0dXJl%2B")
    assert resolved("env:LIST_A").endswith("%2B")
    assert redacted(f"cannot read {resolved('env:LIST_A')}") == "cannot read env:LIST_A"
    assert redacted("correct horse, c2lnbmF0dXJl+") == "***, ***"
    (tmp_path / "token").write_text("hf_0123456789\n")
    reference = f"file:{tmp_path}/token"
    assert resolved(reference) == "hf_0123456789"
    assert redacted("hub says hf_0123456789 is bad") == f"hub says {reference} is bad"
    monkeypatch.setenv("SOME_SERVICE_PASSWORD", "battery-staple")
    assert redacted("login with battery-staple") == "login with ***"
    assert resolved("/a/plain/path") == "/a/plain/path"


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("env:NOT_THERE_AT_ALL", "no variable NOT_THERE_AT_ALL"),
        ("file:/nowhere/at/all", "No such file"),
        ("env:EMPTY", "is empty"),
        ("vault:x", None),
    ],
)
def test_a_reference_that_leads_nowhere(reference, told, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    if told is None:
        assert resolved(reference) == reference, "no reference at all"
        return
    with pytest.raises(InputError, match=told):
        resolved(reference)


def test_errors_hold_no_secret_however_they_are_kept():
    error = HdmError(
        "GET https://h/x?sig=planted failed",
        where="https://u:planted@h",
        do="--set a.token=planted",
    )
    assert "planted" not in f"{error} {error!r} {error.args} {vars(error)}"
    assert "https://h/x?***" in str(error)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("download.source", "https://host/list.csv?sig=planted"),
        ("download.source", "https://me:planted@host/list.csv"),
        ("download.token", "hf_planted"),
        ("components.autoencoder", "https://me:planted@host/model"),
        ("evaluate.prompts", "http://host/prompts.txt?token=planted"),
    ],
)
def test_a_secret_spelled_out_in_a_setting_is_refused_without_being_repeated(tmp_path, key, value):
    path = tmp_path / "pipelines.yaml"
    path.write_text("pipelines: {mine: {}}")
    stage, field = key.split(".")
    inline = tmp_path / "inline.yaml"
    inline.write_text(f"pipelines:\n  mine:\n    {stage}:\n      {field}: {value}\n")
    sources = [
        (path, [f"{key}={value}"], {}, "--set"),
        (path, [], {f"HDM__{stage}__{field}": value}, "environment"),
        (inline, [], {}, f"{inline}:4"),
    ]
    for file, overrides, environment, place in sources:
        with pytest.raises(ConfigError) as caught:
            load_pipeline("mine", overrides, file, environment)
        told = str(caught.value)
        assert "planted" not in told
        assert place in told
        assert key in told
        assert "env:NAME" in told


def test_references_stay_references_in_the_settings(tmp_path):
    path = tmp_path / "pipelines.yaml"
    path.write_text("pipelines: {mine: {download: {source: 'env:LIST', token: 'block:hub'}}}")
    found = load_pipeline("mine", (), path, {})
    assert (found.download.source, found.download.token) == ("env:LIST", "block:hub")
    assert "token" not in found.download.result_fields()


def test_steering_characters_are_written_out_and_json_reads_them_back():
    assert json.loads(f'"{visible(STEERING)}"') == STEERING
    assert visible("two\nlines\tü 🙂 “quoted”") == "two\nlines\tü 🙂 “quoted”"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_prints_no_steering_characters_but_its_own(capsys, terminal):
    console = Terminal(
        file=sys.stdout, force_terminal=terminal, color_system=None, width=200, highlight=True
    )
    table = Table(STEERING)
    table.add_row(escape(STEERING))
    console.print(escape(STEERING), STEERING.encode(errors="surrogateescape"), table)
    say(STEERING)
    say_json({"caption": STEERING, "url": "http://a/?planted"})
    told = capsys.readouterr().out
    assert visible(told) == told
    assert "\\u001b[31mred" in told
    assert json.loads(told.splitlines()[-1]) == {"caption": STEERING, "url": "http://a/?***"}


@pytest.fixture
def plain_records():
    """Log records as Python makes them, and those of before again in the end."""
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logging.LogRecord)
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("plain_records")
def test_the_log_shows_neither_secrets_nor_steering_characters(caplog, capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    guard_output()
    log = logging.getLogger("somebody.else")
    log.warning("%s from %s", STEERING, "http://u:planted@host/")
    log.warning("fits not %d", STEERING)
    log.warning("plain %s %d", "text", 3)
    try:
        raise ValueError(f"http://host/?planted {STEERING}")
    except ValueError:
        log.exception("it failed")
    assert visible(caplog.text) == caplog.text
    assert "planted" not in caplog.text
    assert "\\u001b[31mred" in caplog.text
    assert caplog.records[2].args == ("text", 3)
    sys.excepthook(ValueError, ValueError(f"http://host/?planted {STEERING}"), None)
    told = capsys.readouterr().err
    assert visible(told) == told
    assert "planted" not in told
