"""deploy/ and docker-compose.yml: hardened, pinned, consistent with the code; and the entry point run for real, without a container."""

from __future__ import annotations

import asyncio
import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

import asyncpg
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from muniment.policy import Policy
from muniment.receipt import Receipt
from muniment_server.settings import PREFIX, Settings, read_settings
from muniment_server.storage.postgres.connect import PLANS
from muniment_server.telemetry import Metrics, Timings, Told
from muniment_server.web.http.framing import MAX_URL
from muniment_server.web.http.refusals import MIN_RATE
from muniment_server.web.messages import MAX_HEADERS
from muniment_server.web.problems import CODES
from tests import shared
from tests.live import PATIENCE, free_port

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SERVICE, POSTGRES = SERVICES["service"], SERVICES["postgres"]
DOCKERFILE = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
MANUAL = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("install", "run", "incidents", "reference")}
OPERATING = "\n".join(MANUAL.values())


def steps(word: str) -> list[str]:
    """Return the arguments of every Dockerfile instruction called `word`."""
    return re.findall(rf"^{word} (.*)$", DOCKERFILE, re.MULTILINE)


def image_environment() -> dict[str, str]:
    """Return what the Dockerfile sets in the last stage."""
    return dict(pair.split("=", 1) for pair in steps("ENV")[-1].split())


# --- docker-compose.yml -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_container_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert "network_mode" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert service["ulimits"]["core"] == 0
    if name == "migrate":  # runs to its end before the server starts
        assert service["restart"] == "no"
        assert service["command"] == ["migrate"]
        assert SERVICE["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"
    assert all(re.match("/(tmp|var/run/postgresql):.*noexec,nosuid,nodev", mount) for mount in service["tmpfs"])
    volumes = [mount.split(":") for mount in service.get("volumes", ())]
    assert {source for source, _ in volumes} <= set(COMPOSE["volumes"]), "named volumes only"


@pytest.mark.parametrize("image", [*(s["image"] for s in SERVICES.values()), *(f.split()[0] for f in steps("FROM"))])
def test_images_are_pinned(image: str) -> None:
    _, _, tag = image.partition(":")
    assert re.match(r"\d+\.?\d*", tag), image


def test_nothing_is_public_by_default() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["service"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICE["ports"])
    assert COMPOSE["networks"]["database"]["internal"] is True
    assert POSTGRES["networks"] == ["database"]


def test_no_secret_in_the_files() -> None:
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or (name.endswith("_FILE") and value.startswith("/run/secrets/"))
            assert not re.search(r"//[^/@]*:[^/@]*@", value), "a password in a URL"
        assert service.get("command", ["migrate"]) == ["migrate"]
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].startswith("deploy/secrets/")
    assert "/secrets/" in (DEPLOY / ".gitignore").read_text().split()
    assert "deploy/secrets" not in (ROOT / ".dockerignore").read_text()


def test_postgres_is_new_enough_and_waited_for() -> None:
    assert int(re.match(r"postgres:(\d+)", POSTGRES["image"])[1]) >= 15
    assert SERVICE["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert "--host=127.0.0.1" in POSTGRES["healthcheck"]["test"]  # not the socket of the database being set up


def test_volumes_are_where_the_image_writes() -> None:
    mounts = dict(reversed(mount.split(":")) for mount in SERVICE["volumes"])
    environment = image_environment()
    assert mounts == {
        environment["MUNIMENT_SERVER_DATA"]: "data",
        environment["MUNIMENT_SERVER_GUARD_DIR"]: "guard",
    }
    for folder in mounts:
        assert re.search(rf"install -d -o 10001 -g 10001 -m 0700 .*{folder}(\s|$)", DOCKERFILE)


def test_variables_to_set_are_in_the_example() -> None:
    wanted = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    offered = set(re.findall(r"^(\w+)=", (DEPLOY / "env.example").read_text(), re.MULTILINE))
    assert wanted == offered
    head = (ROOT / "docker-compose.yml").read_text().partition("\nname:")[0]
    for source in re.findall(r"\bdeploy/[\w./]+", head):
        assert (ROOT / source).exists() or source.startswith("deploy/secrets"), source


def test_grace_is_longer_than_shutdown() -> None:
    shutdown = Settings.model_fields["shutdown_seconds"].default
    assert int(SERVICE["stop_grace_period"].rstrip("s")) > shutdown
    assert int(unit()["Service"]["TimeoutStopSec"]) > shutdown


def _variables() -> dict[str, str]:
    """Return every MUNIMENT_SERVER_* variable of the image and the compose file, with its value."""
    both = image_environment() | SERVICE["environment"]
    return {name: value for name, value in both.items() if name.startswith(PREFIX)}


def test_variables_are_settings() -> None:
    settings = read_settings({}, _variables())
    assert settings.host == "0.0.0.0"
    assert settings.database == "postgresql://muniment_app@postgres:5432/muniment"
    assert settings.metrics_port == 9464
    assert settings.log_format == "json"


@pytest.mark.parametrize(
    "path",
    [*sorted(path for path in DEPLOY.rglob("*") if path.is_file()), *(ROOT / "docs" / f"{name}.md" for name in MANUAL)],
    ids=str,
)
def test_every_variable_named_anywhere_exists(path: Path) -> None:
    named = set(re.findall(rf"{PREFIX}([A-Z][A-Z_]*[A-Z])\b", path.read_text()))
    assert {name.lower() for name in named} <= set(Settings.model_fields)


# --- Patroni --------------------------------------------------------------------------------------------------------------


AVAILABILITY = (ROOT / "docs" / "high-availability.md").read_text()
PATRONI = sorted((DEPLOY / "patroni").iterdir())


def filled(name: str) -> Any:
    """Return a YAML file of deploy/patroni/ with every name replaced by itself."""
    template = Template((DEPLOY / "patroni" / name).read_text())
    return yaml.safe_load(template.substitute({name: name for name in template.get_identifiers()}))


def test_page_has_every_file_and_every_name_to_fill_in() -> None:
    names = {name for path in PATRONI for name in Template(path.read_text()).get_identifiers()}
    (table,) = re.findall(r"\| name \| what \|.*?\n\n", AVAILABILITY, re.DOTALL)
    assert set(re.findall(r"`([A-Z0-9_]+)`", table)) == names
    assert set(re.findall(r"deploy/patroni/([\w.-]+)\)", AVAILABILITY)) == {path.name for path in PATRONI}


def test_a_new_cluster_is_strict_and_its_times_fit() -> None:
    dcs = filled("patroni.yml")["bootstrap"]["dcs"]
    strict = filled("mode-strict.yml")
    rewind = strict.pop("postgresql")
    assert strict.items() <= dcs.items()
    assert rewind.items() <= dcs["postgresql"].items()
    assert dcs["ttl"] >= dcs["loop_wait"] + 2 * dcs["retry_timeout"]


def test_what_a_pooler_drops_is_set_for_the_role() -> None:
    assert dict(re.findall(r"ALTER ROLE muniment_app SET (\w+) = (\w+);", AVAILABILITY)) == PLANS
    assert re.search(r"ignore_startup_parameters = (\S+)", AVAILABILITY)[1].split(",") == [*PLANS]


# --- image --------------------------------------------------------------------------------------------------------------


def test_image_runs_without_root_and_without_a_shell() -> None:
    assert steps("USER") == ["10001:10001"]
    assert DOCKERFILE.rindex("\nUSER ") > DOCKERFILE.rindex("\nRUN ")
    assert json.loads(steps("ENTRYPOINT")[0]) == ["/usr/local/bin/entrypoint.sh"]
    assert json.loads(steps("CMD")[0]) == ["serve"]
    assert not steps("ADD")
    assert SERVICE["user"] == steps("USER")[0]
    assert len({image.split()[0] for image in steps("FROM")}) == 1


def test_what_the_image_copies_is_there_and_let_through() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert ignore[1] == "*"
    copied = set()
    for step in steps("COPY"):
        words = [word for word in step.split() if not word.startswith("--")]
        if "--from=" not in step:
            copied |= set(words[:-1])
    assert copied == allowed
    for source in copied:
        assert (ROOT / source).exists(), source


def _pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", path.read_text(), re.MULTILINE))


def test_image_installs_the_versions_that_were_tested() -> None:
    tested = _pins(ROOT / "requirements" / "dev.txt")
    for name in ("requirements.txt", "requirements-build.txt"):
        text = (DEPLOY / name).read_text()
        assert _pins(DEPLOY / name).items() <= tested.items(), f"make deploy/{name} again: its first lines say how"
        assert text.count("--hash=sha256:") >= len(_pins(DEPLOY / name))
        assert "http" not in re.sub(r"#.*|^(http\w*)==", "", text, flags=re.MULTILINE)


def _commands(path: Path) -> list[str]:
    """Return the lines of a file, each with those it is continued on, cut where a command ends."""
    return re.split(r"\n|&&|;", path.read_text().replace("\\\n", " "))


def test_pins_are_installed_without_the_resolver() -> None:
    """The resolver takes the newest release of a package of which a pin names an extra, and refuses it for its hash."""
    folders = [ROOT / name for name in (".ci", "deploy", "docs")]
    paths = [*ROOT.glob("*.*"), ROOT / "Makefile", *(path for folder in folders for path in folder.rglob("*"))]
    files = [path for path in paths if path.is_file() and path.suffix != ".pyc"]
    asked = [
        (path.relative_to(ROOT).as_posix(), command)
        for path in files
        for command in _commands(path)
        if "--require-hashes" in command or re.search(r"\binstall\b.* -r ", command)
    ]
    assert {"Makefile", "deploy/Dockerfile"} <= {name for name, _ in asked}
    for name, command in asked:
        assert "--require-hashes" in command, (name, command)
        assert "--no-deps" in command, (name, command)
        assert re.search(r"(pip|PIP\)) check", (ROOT / name).read_text()), f"{name}: is the list full?"


def test_image_installs_all_that_is_needed() -> None:
    wanted = {"muniment-server"}
    pins = {canonicalize_name(name) for name in _pins(DEPLOY / "requirements.txt")}
    seen: set[str] = set()
    while wanted - seen:
        name = (wanted - seen).pop()
        seen.add(name)
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.add(canonicalize_name(requirement.name))
    assert seen - {"muniment", "muniment-server"} <= pins


# --- entry point --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_entry_point_parses(shell: str) -> None:
    subprocess.run([shell, "-n", DEPLOY / "entrypoint.sh"], check=True)
    assert os.access(DEPLOY / "entrypoint.sh", os.X_OK)


class Container:
    """What `docker compose run` and `up` would start, here as a process with the same variables."""

    def __init__(self, folder: Path, database: str | None) -> None:
        self.data, self.guard = folder / "data", folder / "guard"
        secret = folder / "postgres_password"
        secret.write_text("from-a-file\n")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{name: value for name, value in image_environment().items() if name != "PATH"},
            **SERVICE["environment"],
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MUNIMENT_ORIGIN": "example.com/log",
            "MUNIMENT_KIND": "event",
            "MUNIMENT_SERVER_DATA": str(self.data),
            "MUNIMENT_SERVER_GUARD_DIR": str(self.guard),
            "MUNIMENT_SERVER_PORT": str(self.port),
            "MUNIMENT_SERVER_METRICS_HOST": "127.0.0.1",
            "MUNIMENT_SERVER_METRICS_PORT": str(free_port()),
            "PGPASSWORD_FILE": str(secret),
        }
        if database:
            self.environment["MUNIMENT_SERVER_DATABASE"] = database
        else:
            del self.environment["MUNIMENT_SERVER_DATABASE"]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the entry point to its end."""
        return subprocess.run(
            [DEPLOY / "entrypoint.sh", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def server(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run muniment-server itself to its end."""
        return subprocess.run(
            [sys.executable, "-m", "muniment_server.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def healthy(self) -> bool:
        """Run the image's health check."""
        command = json.loads(steps("HEALTHCHECK")[0].partition("CMD ")[2])
        command[0] = sys.executable
        return subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode == 0

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[str]]:
        """Run the default command until the health check passes, and stop it with SIGTERM."""
        process = subprocess.Popen(
            [DEPLOY / "entrypoint.sh", *json.loads(steps("CMD")[0])],
            env=self.environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while not self.healthy():
                assert process.poll() is None, process.stderr.read() if process.stderr else ""
                assert time.monotonic() < deadline, "not healthy"
                time.sleep(0.1)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors

    def post(self, event: dict[str, Any], key: str | None = None) -> tuple[int, dict[str, Any]]:
        """POST an event; return status and body."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"{self.url}/entries", json.dumps(event).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def metrics(self) -> str:
        """GET the metrics, on their own port."""
        url = f"http://127.0.0.1:{self.environment['MUNIMENT_SERVER_METRICS_PORT']}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    def get(self, path: str) -> dict[str, Any]:
        """GET a JSON document."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=PATIENCE) as answer:
            return dict(json.load(answer))


def _first_commands() -> list[list[str]]:
    """Return the arguments of the `docker compose run --rm service` commands that the compose file asks for, in order."""
    head = (ROOT / "docker-compose.yml").read_text().partition("\nname:")[0]
    return [line.partition("  #")[0].split() for line in re.findall(r"docker compose run --rm service (.*)", head)]


def test_first_start_in_the_order_the_compose_file_says(tmp_path: Path, new_database: Callable[[], str]) -> None:
    container = Container(tmp_path, new_database())
    (init, make_key) = _first_commands()

    early = container.run("serve")
    assert early.returncode == 2, early.stderr
    assert "key create" in early.stderr, "the log is there, but nobody could append"

    made = container.run(*init)  # a second time: changes nothing
    assert made.returncode == 0, made.stderr
    assert "example.com/log+" in made.stdout

    created = container.run(*make_key)
    assert created.returncode == 0, created.stderr
    key = created.stdout.split()[0]

    with container.up():
        assert container.post({"action": "test"})[0] == 401
        status, answer = container.post({"action": "test"}, key)
        assert status == 201
        assert Receipt.parse(json.dumps(answer)).verify(Policy.read(container.data / "policy")).complete
        assert 'muniment_writable{log="default"} 1.0' in container.metrics()
    assert sorted(path.name for path in container.data.iterdir()) == ["keys", "policies", "policy"]
    assert [path.name for path in container.guard.iterdir()] == ["default.guard"]


def test_restart_never_makes_a_lost_guard_again(tmp_path: Path) -> None:
    container = Container(tmp_path, None)
    (init, make_key) = _first_commands()
    assert container.run(*init).returncode == 0
    key = container.run(*make_key).stdout.split()[0]
    shutil.rmtree(container.guard)
    with container.up():
        status, problem = container.post({"action": "test"}, key)
        assert (status, problem["code"]) == (503, "guard_missing")
        assert container.get("/readyz")["writes"] == {"default": False}
        assert container.get("/entries/0")["index"] == 0  # reads go on
    assert not container.guard.exists()


def test_entry_point_asks_for_the_origin(tmp_path: Path) -> None:
    container = Container(tmp_path, None)
    del container.environment["MUNIMENT_ORIGIN"]
    for command in (["init"], []):
        run = container.run(*command)
        assert run.returncode == 2
        assert "MUNIMENT_ORIGIN" in run.stderr


# --- roles in Postgres (what they can do: tests/test_roles.py) -----------------------------------------------------------


def test_each_container_connects_as_the_least_role_that_will_do() -> None:
    roles = (DEPLOY / "postgres-roles.sql").read_text()
    for name, role in (("service", "muniment_app"), ("migrate", "muniment_migrate")):
        environment = SERVICES[name]["environment"]
        assert environment["MUNIMENT_SERVER_DATABASE"] == f"postgresql://{role}@postgres:5432/muniment"
        assert f"CREATE ROLE {role} LOGIN" in roles
        secret = environment["PGPASSWORD_FILE"].rpartition("/")[2]
        assert SERVICES[name]["secrets"] == [secret], "no other role's password"
        assert secret == f"{role}_password"
        assert secret in POSTGRES["secrets"]


def test_roles_are_made_when_the_database_is() -> None:
    places = {each["source"]: each["target"] for each in POSTGRES["configs"]}
    files = {name: COMPOSE["configs"][name]["file"] for name in places}
    assert files == {"roles": "deploy/postgres-roles.sql", "passwords": "deploy/postgres-passwords.sh"}
    assert places["roles"] == "/docker-entrypoint-initdb.d/1-roles.sql"  # run in the order of their names
    assert places["passwords"] == "/docker-entrypoint-initdb.d/2-passwords.sh"
    for file in files.values():
        assert (ROOT / file).exists()


def test_passwords_go_from_files_into_the_database(tmp_path: Path, new_database: Callable[[], str]) -> None:
    if not shutil.which("psql"):
        pytest.skip("psql is not installed")
    url = new_database()
    parsed = urllib.parse.urlsplit(url)
    place = dict(urllib.parse.parse_qsl(parsed.query))
    for role in ("muniment_app", "muniment_migrate"):
        (tmp_path / f"{role}_password").write_text(f"it's {role}\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PGHOST": place.get("host") or parsed.hostname or "",
        "PGPORT": str(parsed.port or place.get("port") or 5432),
        "POSTGRES_USER": parsed.username or "postgres",
        "POSTGRES_DB": parsed.path.removeprefix("/"),
        "SECRETS": str(tmp_path),
    }
    with shared.alone("roles"):
        for words in (
            ["psql", "--dbname", url, "--file", str(DEPLOY / "postgres-roles.sql")],
            ["sh", "-eu", str(DEPLOY / "postgres-passwords.sh")],
        ):
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
            assert done.returncode == 0, done.stderr

    async def passwords() -> list[str]:
        connection = await asyncpg.connect(url)
        try:
            rows = await connection.fetch("SELECT rolname FROM pg_authid WHERE rolpassword LIKE 'SCRAM-SHA-256$%'")
            for role in ("muniment_app", "muniment_reader", "muniment_migrate", "muniment_owner"):
                await connection.execute(f"DROP OWNED BY {role} CASCADE")
            return sorted(row["rolname"] for row in rows if row["rolname"].startswith("muniment"))
        finally:
            await connection.close()

    assert asyncio.run(passwords()) == ["muniment_app", "muniment_migrate"]


# --- systemd, Caddy -----------------------------------------------------------------------------------------------------


def unit() -> configparser.ConfigParser:
    """Return the systemd unit."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "muniment.service")
    return parser


def test_unit_never_gives_up_and_is_hardened() -> None:
    service = unit()["Service"]
    assert unit()["Unit"]["StartLimitIntervalSec"] == "0"
    assert service["Restart"] == "always"
    assert service["User"] not in ("", "root")
    assert service["ExecStart"].endswith("muniment-server serve --data /var/lib/muniment")
    assert service["StateDirectory"].split() == ["muniment", "muniment-guard"]
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectKernelTunables"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert service["LimitCORE"] == "0"


def test_unit_keeps_the_guard_out_of_the_folder_of_the_database(tmp_path: Path) -> None:
    """The settings file that the first lines make is one that every command reads."""
    text = (DEPLOY / "muniment.service").read_text()
    written = re.search(r"echo '(guard_dir = \S+)' .*/var/lib/muniment/muniment\.toml$", text, re.MULTILINE)
    assert written
    (tmp_path / "muniment.toml").write_text(written[1])
    settings = read_settings({"data": tmp_path}, {})
    assert settings.guards == Path("/var/lib") / unit()["Service"]["StateDirectory"].split()[1]
    assert unit()["Unit"]["RequiresMountsFor"].split() == ["/var/lib/muniment", str(settings.guards)]


def test_caddy_leaves_refusals_to_the_server() -> None:
    """What the server would take passes, and what it would refuse too: its answer says why."""
    text = (DEPLOY / "Caddyfile").read_text()

    def number(name: str) -> int:
        found = re.search(rf"^\s*{name} (\d+)(m|s|KiB)\b", text, re.MULTILINE)
        assert found, name
        return int(found[1]) * {"m": 60, "s": 1, "KiB": 1024}[found[2]]

    default = {name: field.default for name, field in Settings.model_fields.items()}
    assert number("read_header") >= default["client_seconds"]
    assert number("read_body") >= default["max_batch_bytes"] / MIN_RATE + default["client_seconds"]
    assert number("max_header_size") > MAX_URL + MAX_HEADERS
    assert number("keepalive") < default["keep_alive_seconds"]


def test_caddy_passes_the_largest_batch_on_to_loopback() -> None:
    text = (DEPLOY / "Caddyfile").read_text()
    size = re.search(r"max_size (\d+)MB", text)
    assert size
    assert int(size[1]) * 10**6 > Settings.model_fields["max_batch_bytes"].default
    assert "reverse_proxy 127.0.0.1:{$MUNIMENT_PORT:8080}" in text


LINTERS: dict[str, list[str]] = {
    "shellcheck": ["shellcheck", "deploy/entrypoint.sh"],
    "promtool": ["promtool", "check", "rules", "deploy/prometheus/rules.yml"],
    "what pages": ["promtool", "test", "rules", "deploy/prometheus/rules_test.yml"],
    "caddy": ["caddy", "validate", "--adapter", "caddyfile", "--config", "deploy/Caddyfile"],
}


@pytest.mark.parametrize("name", sorted(LINTERS))
def test_linters_that_happen_to_be_installed(name: str, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # `make promtool` puts it beside this Python
    if not shutil.which(LINTERS[name][0], path=path):
        pytest.skip(f"{LINTERS[name][0]} is not installed")
    environment = {"PATH": path, "HOME": str(tmp_path)}
    run = subprocess.run(LINTERS[name], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


# --- metrics ------------------------------------------------------------------------------------------------------------

RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana" / "muniment.json").read_text())
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


PROCESS = ("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_max_fds")
"""Series about the process, which the client library makes on Linux."""


def _series() -> dict[str, set[str]]:
    """Return every time series the server can make, with its labels."""
    metrics = Metrics()
    found: dict[str, set[str]] = {name: set() for name in PROCESS}
    for collector in vars(metrics).values():
        if collector is metrics.registry:
            continue
        (family,) = collector.describe()
        for suffix in _SUFFIXES[family.type]:
            found[family.name + suffix] = set(_labels_of(collector)) | ({"le"} if suffix == "_bucket" else set())
    return found


def _labels_of(collector: Any) -> tuple[str, ...]:
    if isinstance(collector, Told):
        return ("log",)
    return collector._labels if isinstance(collector, Timings) else collector._labelnames  # type: ignore[no-any-return]


def _expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    queries = [variable["query"] for variable in DASHBOARD["templating"]["list"]]
    return [*(rule["expr"] for rule in ALERTS), *panels, *(query for query in queries if "muniment" in query)]


@pytest.mark.parametrize("expression", _expressions())
def test_alerts_and_panels_use_what_is_measured(expression: str) -> None:
    series = _series()
    for name, selector in re.findall(r"\b((?:muniment|process)_\w+)(?:\{(.*?)\})?", expression):
        assert name in series
        assert set(re.findall(r"(\w+)=", selector)) <= series[name] | {"instance", "job"}
    for names in re.findall(r"\bby \((.*?)\)", expression):
        known = set().union(*(series[name] for name in re.findall(r"(?:muniment|process)_\w+", expression)))
        assert set(names.split(", ")) <= known | {"instance"}
    for codes in re.findall(r'reason=~"(.*?)"', expression):
        assert set(codes.split("|")) <= set(CODES)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alerts_say_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "action", "runbook_url"}
    page, _, place = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert not place or place in anchors, place
    for page, heading in re.findall(r'docs/(\w+)\.md, "(.*?)"', rule["annotations"]["action"]):
        assert f"## {heading}\n" in MANUAL[page]


def test_metrics_follow_the_conventions() -> None:
    """Of Prometheus: what only grows ends in _total, a time in _timestamp_seconds, and nothing is said twice."""
    metrics = Metrics()
    metrics.refused.labels("default", "clock").inc()  # one with labels has no samples before
    metrics.request_seconds.labels("default", "GET /log", 200).observe(0.1)
    families = list(metrics.registry.collect())
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    for name in _series():
        assert not name.endswith("_created")
        assert re.search(r"last|oldest", name) is None or name.endswith("_timestamp_seconds"), name
    samples = [sample.name for family in families for sample in family.samples]
    assert "muniment_refused_total" in samples
    assert not [name for name in samples if name.endswith("_created")]
    assert {"process_resident_memory_bytes", "muniment_build_info"} <= set(names)
    counted = {family.name for family in families if family.type == "counter"}
    assert {"muniment_races_lost", "muniment_guard_refusals", "muniment_appends"} <= counted


def test_prometheus_does_not_scrape_itself() -> None:
    """Its own port is 9090: it would find itself there, and `up` would be 1 while the server is down."""
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    ((target,),) = [config["targets"] for job in scrape["scrape_configs"] for config in job["static_configs"]]
    assert target == f"127.0.0.1:{SERVICES['service']['environment']['MUNIMENT_SERVER_METRICS_PORT']}"
    assert not target.endswith(":9090")


@pytest.mark.parametrize(
    "what", ["disk", "scrub", "anchor", "connections", "process_resident_memory_bytes", "database"]
)
def test_the_dashboard_shows(what: str) -> None:
    assert any(what in target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])


def test_panels_are_different() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel["title"] for panel in DASHBOARD["panels"])


def test_manual_names_every_metric_and_every_refusal_of_the_guard() -> None:
    for name in {re.sub(r"_(bucket|count|sum)$", "", series) for series in _series()}:
        assert f"`{name}`" in OPERATING
    sources = [
        ROOT / "service" / "muniment_server" / f"{name}.py"
        for name in ("write/guard", "write/startup", "write/sequencer", "instance/guard_admin")
    ]
    codes = set()
    for source in sources:
        codes |= set(re.findall(r'(?:GuardRefused|_refuse)\(\s*"(\w+)"', source.read_text()))
    assert {"guard_missing", "database_behind"} <= codes
    for code in codes:
        assert re.search(rf"^\| [^|]*`{code}`[^|]* \|", OPERATING, re.MULTILINE), code


def test_the_unit_of_the_monitor_is_hardened_and_runs_what_there_is() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "muniment-monitor.service")
    service, server = parser["Service"], unit()["Service"]
    hardening = {name for name in server if name.startswith(("Protect", "Restrict", "Private", "NoNew", "Capability"))}
    assert hardening <= set(service)
    assert {name: service[name] for name in hardening} == {name: server[name] for name in hardening}
    assert service["Restart"] == "always"
    words = service["ExecStart"].split()
    assert words[:2] == ["/opt/muniment/bin/muniment", "monitor"]
    assert set(words) & {"--policy", "--state"} == {"--policy", "--state"}
    folder = f"/var/lib/{service['StateDirectory']}"
    assert words[words.index("--state") + 1] == folder
