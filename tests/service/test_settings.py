"""Settings: which source wins, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from pydantic import ValidationError

from muniment_server.errors import SettingsError
from muniment_server.settings import FILE, PREFIX, Settings, read_settings
from muniment_server.sinks import Sink

SECRET = "postgresql://muniment:hunter2@db/muniment"


def write(folder: Path, text: str) -> None:
    (folder / FILE).write_text(text, "utf-8")


def test_defaults_are_those_of_the_manual(tmp_path: Path):
    found = read_settings({"data": tmp_path}, {})
    assert found == Settings(data=tmp_path)
    assert (found.host, found.port, found.database, found.publish_interval) == ("127.0.0.1", 8080, None, 1.0)
    assert found.sqlite == tmp_path / "muniment.sqlite"
    assert found.policy == tmp_path / "policy"
    assert found.guard_file("default") == tmp_path / "guard" / "default.guard"
    assert found.key_file("default") == tmp_path / "keys" / "default.key"


def test_every_setting_says_what_it_is():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_each_source_wins_over_those_before_it(tmp_path: Path):
    assert read_settings({"data": tmp_path}, {}).port == 8080
    write(tmp_path, "port = 1001\nhost = '::1'\nread_only = true\n")
    assert read_settings({"data": tmp_path}, {}).port == 1001
    environment = {PREFIX + "PORT": "1002", PREFIX + "HOST": "0.0.0.0"}
    found = read_settings({"data": tmp_path}, environment)
    assert (found.port, found.host, found.read_only) == (1002, "0.0.0.0", True)
    found = read_settings({"data": tmp_path, "port": 1003, "host": None, "read_only": None}, environment)
    assert (found.port, found.host, found.read_only) == (1003, "0.0.0.0", True)
    assert read_settings({"data": tmp_path, "port": 0}, environment).port == 0, "zero is given, not missing"
    assert read_settings({"data": tmp_path, "read_only": False}, environment).read_only is False


def test_the_data_folder_comes_from_the_flag_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, port in ((one, 1), (two, 2)):
        folder.mkdir()
        write(folder, f"port = {port}\n")
    environment = {PREFIX + "DATA": str(one)}
    assert (read_settings({}, environment).data, read_settings({}, environment).port) == (one, 1)
    assert read_settings({"data": two}, environment).port == 2
    monkeypatch.chdir(two)
    found = read_settings({"data": Path("../one")}, {})
    assert found.data.is_absolute()
    assert found.port == 1
    assert read_settings({}, {}).data == two


def test_the_environment_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PREFIX + "PORT", "1234")
    assert read_settings({"data": tmp_path}).port == 1234


@pytest.mark.parametrize("name", ["PROT", "DATABSE", "", "PORT_", "GUARDS"])
def test_an_unknown_variable_is_refused_by_name(tmp_path: Path, name: str):
    with pytest.raises(SettingsError, match=f"{PREFIX}{name}"):
        read_settings({"data": tmp_path}, {PREFIX + name: "1"})


@pytest.mark.parametrize(("name", "meant"), [("PROT", "PORT"), ("DATABSE", "DATABASE"), ("ZZZ", "docs/reference.md")])
def test_what_an_unknown_variable_may_have_meant(tmp_path: Path, name: str, meant: str):
    with pytest.raises(SettingsError, match=f"did you mean {PREFIX}{meant}|{meant} lists all settings"):
        read_settings({"data": tmp_path}, {PREFIX + name: "1"})


def test_variables_of_others_are_left_alone(tmp_path: Path):
    read_settings({"data": tmp_path}, {"MUNIMENT_URL": "x", "PATH": "y", "MUNIMENT_SERVE": "z"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cors_origins", "*"), ("cors_origins", "https://*.example"), ("cors_origins", "https://app.example/"),
        ("port", "-1"), ("port", "65536"), ("port", "http"), ("port", "80.5"), ("port", ""),
        ("read_only", "perhaps"), ("read_only", ""),
        ("publish_interval", "0"), ("publish_interval", "-1"), ("publish_interval", "nan"), ("publish_interval", "61"),
        ("max_event_bytes", "255"), ("max_event_bytes", "1048577"),
        ("max_batch_entries", "0"), ("max_batch_entries", "10001"),
        ("max_commit_entries", "0"), ("max_queue_entries", "0"), ("idempotency_ttl", "59"), ("cache_bytes", "1"),
        ("shutdown_seconds", "0"), ("shutdown_seconds", "inf"), ("shutdown_seconds", "nan"),
        ("log_format", "xml"), ("log_level", "loud"),
        ("database", ""), ("host", ""),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_by_name(tmp_path: Path, name: str, value: str):
    with pytest.raises(SettingsError, match=name):
        read_settings({"data": tmp_path}, {PREFIX + name.upper(): value})
    with pytest.raises(SettingsError, match=name):
        read_settings({"data": tmp_path, name: value}, {})
    write(tmp_path, f"{name} = {json.dumps(value)}\n")
    with pytest.raises(SettingsError, match=name):
        read_settings({"data": tmp_path}, {})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("colour = 'red'\n", "unknown setting colour"),
        ("port = \n", FILE),
        ("port = 1\nport = 2\n", FILE),
        ("[server]\nport = 1\n", "unknown setting server"),
        ("port = [1]\n", "port"),
        ("read_only = 5\n", "read_only"),
    ],
)
def test_a_file_that_says_nonsense_is_refused(tmp_path: Path, text: str, what: str):
    write(tmp_path, text)
    with pytest.raises(SettingsError, match=what):
        read_settings({"data": tmp_path}, {})


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    (tmp_path / FILE).write_bytes(b"host = '\xff'\n")
    with pytest.raises(SettingsError, match=FILE):
        read_settings({"data": tmp_path}, {})
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    with pytest.raises(SettingsError, match=FILE):
        read_settings({"data": tmp_path}, {})


def test_text_in_the_environment_is_read_as_what_it_means(tmp_path: Path):
    given = {
        "READ_ONLY": "true",
        "METRICS_PORT": "9100",
        "PUBLISH_INTERVAL": "0.5",
        "GUARD_DIR": "/guards",
        "LOG_LEVEL": "debug",
    }
    found = read_settings({"data": tmp_path}, {PREFIX + name: value for name, value in given.items()})
    assert (found.read_only, found.metrics_port, found.publish_interval, found.log_level) == (True, 9100, 0.5, "debug")
    assert found.guard_file("x") == Path("/guards/x.guard")


def test_they_never_change(tmp_path: Path):
    found = read_settings({"data": tmp_path}, {})
    with pytest.raises(ValidationError):
        found.port = 1
    with pytest.raises(ValidationError):
        del found.port


def test_a_password_is_not_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    found = read_settings({"data": tmp_path}, {PREFIX + "DATABASE": SECRET})
    assert found.database == SECRET
    logging.getLogger("test").warning("%s %r", found, found)
    for text in (str(found), repr(found), f"{found}", caplog.text):
        assert "hunter2" not in text
    for bad in ({"port": "x"}, {"database": 5}, {"database": ["postgresql://muniment:hunter2@db"]}):
        with pytest.raises(SettingsError) as caught:
            read_settings({"data": tmp_path} | bad, {PREFIX + "DATABASE": SECRET} if "port" in bad else {})
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__, "the traceback of the cause would quote the value"
    write(tmp_path, f"database = '{SECRET}'\nprot = 5\n")
    with pytest.raises(SettingsError) as caught:
        read_settings({"data": tmp_path}, {})
    assert "hunter2" not in str(caught.value)


# --- sinks ----------------------------------------------------------------------------------------------------------------

HOOK = {"url": "https://siem.example/in", "secrets": ["/etc/secret"]}


def test_sinks_are_tables_of_the_file_or_json_of_the_environment(tmp_path: Path):
    write(
        tmp_path,
        '[push.siem]\nurl = "https://siem.example/in"\nsecrets = ["/etc/secret"]\npayloads = true\nquery = "a:b"\n'
        '[push.archive]\nlog = "other"\nfile = "/var/log/audit.jsonl"\nrotate_daily = true\n',
    )
    found = read_settings({"data": tmp_path}, {}).push
    assert list(found) == ["siem", "archive"]
    assert (found["siem"].log, found["siem"].payloads, found["siem"].receipts) == ("default", True, False)
    assert (found["archive"].log, found["archive"].file) == ("other", Path("/var/log/audit.jsonl"))
    environment = {PREFIX + "PUSH": json.dumps({"one": HOOK})}
    assert list(read_settings({"data": tmp_path}, environment).push) == ["one"]
    assert read_settings({"data": tmp_path}, {PREFIX + "PUSH": "{}"}).push == {}


@pytest.mark.parametrize(
    "sink",
    [
        {}, {"url": "https://siem.example"}, {"secrets": ["/s"]}, HOOK | {"file": "/f"},
        {"file": "relative"}, {"file": "/f", "receipts": True}, {"file": "/f", "ca": "/c"}, {"file": "/f", "secrets": ["/s"]},
        HOOK | {"secrets": ["s"]}, HOOK | {"secrets": ["/s"] * 5}, HOOK | {"ca": "c"},
        HOOK | {"url": "http://siem.example/"}, HOOK | {"url": "http://127.0.0.1.example/"}, HOOK | {"url": "ftp://a/"},
        HOOK | {"url": "https://user:pass@siem.example/"}, HOOK | {"url": "https://@siem.example/"},
        HOOK | {"url": "https://siem.example/#x"}, HOOK | {"url": "https:///x"}, HOOK | {"url": "https://a b/"},
        HOOK | {"url": "https://\xfc.example/"}, HOOK | {"url": "https://[::1/"}, HOOK | {"url": ""},
        HOOK | {"query": "a:b"}, HOOK | {"query": "a:", "payloads": True}, HOOK | {"query": "x" * 5000, "payloads": True},
        HOOK | {"start": -1}, HOOK | {"colour": "red"}, {"file": "/f", "rotate_bytes": 1},
    ],
)  # fmt: skip
def test_a_sink_that_cannot_be_is_refused_by_name(tmp_path: Path, sink: dict[str, object]):
    with pytest.raises(SettingsError, match=r"push\.siem"):
        read_settings({"data": tmp_path}, {PREFIX + "PUSH": json.dumps({"siem": sink})})


@pytest.mark.parametrize("text", ["", "siem", "[]", '{"siem":', '{"a/b": {}}', '{"": {}}', '{"UPPER": {}}'])
def test_what_is_no_table_of_sinks(tmp_path: Path, text: str):
    with pytest.raises(SettingsError, match="push"):
        read_settings({"data": tmp_path}, {PREFIX + "PUSH": text})


def test_two_sinks_have_two_files(tmp_path: Path):
    with pytest.raises(SettingsError, match="two sinks have one file"):
        read_settings({"data": tmp_path}, {PREFIX + "PUSH": '{"a":{"file":"/f"},"b":{"file":"/f"}}'})


@pytest.mark.parametrize("url", ["http://localhost:1/", "http://[::1]:1/in", "http://127.0.0.1/in?x=1"])
def test_a_receiver_on_this_machine_needs_no_tls(tmp_path: Path, url: str):
    text = json.dumps({"siem": HOOK | {"url": url}})
    assert read_settings({"data": tmp_path}, {PREFIX + "PUSH": text}).push["siem"].url == url


def test_a_cursor_belongs_to_what_is_sent():
    one = Sink(**HOOK)
    same = [one, Sink(**HOOK | {"url": "https://other.example", "start": 7, "log": "x"})]
    others = [
        Sink(**HOOK | {"payloads": True}),
        Sink(**HOOK | {"receipts": True}),
        Sink(**HOOK | {"payloads": True, "query": "a:b"}),
        Sink(file="/f"),
    ]
    assert len({sink.mark() for sink in same}) == 1
    assert len({sink.mark() for sink in (one, *others)}) == 5
