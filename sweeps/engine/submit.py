"""The same run as a job on a Ray cluster: sent, found again, followed and stopped through its dashboard."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import ray
import requests
import tenacity
import yaml
from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

import pm25
import sweeps
from pm25.errors import InputError
from sweeps.engine import worker
from sweeps.spec.study import Study

SHIPPED = {
    Path(pm25.__file__).parent: ("**/*.py",),
    Path(str(sweeps.__file__)).parent: ("**/*.py", "studies/*.yaml", "report/templates/*.j2"),
}
"""Files of the two packages that a job is sent, from where they are installed: what a wheel holds."""

TIMEOUT_S = (10, 60)
"""To reach the cluster, and to have its answer."""
PATIENCE_S = 600.0
"""A cluster that a job is followed on may not answer for so long."""
SILENCE_S = 60.0
"""A log in which nothing is written for so long is asked for anew: its connection may be dead."""
PAUSE_S = 1.0
"""Between two questions."""
END_S = 30
"""What a run that is stopped is given to end by itself, before Ray kills it."""

LOST = (ClientError, requests.RequestException, TimeoutError)
"""What is raised when a connection fails that stood before."""

T = TypeVar("T")


@dataclass(frozen=True)
class SubmittedJob:
    """What the cluster says of a job."""

    id: str
    status: str
    """pending, running, stopped, succeeded or failed."""
    message: str
    """One line; of a run that failed the last of its log."""
    since: datetime | None
    ended: datetime | None
    exit_status: int | None
    """The run's own, where it has ended and the cluster knows."""

    @classmethod
    def of(cls, details: Any) -> "SubmittedJob":
        status, code = details.status.value.lower(), details.driver_exit_code
        if status == "stopped":  # as of a run that was interrupted
            code = 130
        elif code is not None and code < 0:  # killed by a signal; as a shell tells it
            code = 128 - code
        said = [line.strip() for line in (details.message or "").splitlines() if line.strip()] or [""]
        told = said[-1] if "last available logs" in said[0] else said[0]
        if code == 127 or told.startswith("ModuleNotFoundError"):
            told += "; on the head node, start Ray where the first `python` on the path has the dependencies"
        since, ended = map(_moment, (details.start_time, details.end_time))
        return cls(details.submission_id, status, told, since, ended, code)

    @property
    def runs(self) -> bool:
        return self.status in ("pending", "running")

    @property
    def line(self) -> str:
        told = [f"{self.id}: {self.status}"]
        if self.since:
            told.append(f"since {_told(self.since)}" if self.runs else f"{_told(self.since)}")
        if self.ended:
            told.append(f"to {_told(self.ended)}")
        if self.exit_status is not None:
            told.append(f"with exit status {self.exit_status}")
        if self.status == "failed":
            told.append(f"({self.message})")
        return " ".join(told)


class Shipment(NamedTuple):
    """What was put into a folder to be sent."""

    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.files} files, {self.bytes / 1e6:.1f} MB"


def stage(folder: Path, study: Study, content: Mapping[str, Any]) -> Shipment:
    """Put the code that runs here, and the study, into an empty folder; never data nor results."""
    for package, globs in SHIPPED.items():
        for path in (path for glob in globs for path in package.glob(glob)):
            target = folder / path.relative_to(package.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    (folder / f"{study.study}.yaml").write_text(text)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Shipment(len(sizes), sum(sizes))


def environment(names: Sequence[str]) -> dict[str, str]:
    """The environment of a job: the named variables of this process's, and what the run is to know."""
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise InputError(f"--env {missing[0]}: no such variable is set here; export it, or leave it out")
    # Ray's 3 s are too few for a driver that has views to close; it reads this in the job's environment.
    found = {"RAY_JOB_STOP_WAIT_TIME_S": str(END_S), **{name: os.environ[name] for name in names}}
    if commit := worker.commit():
        found[worker.COMMIT] = json.dumps(commit)
    return found


def command(
    study: Study, *, only: str | None = None, limit: int | None = None, wait_for_nodes: bool = False
) -> str:
    """What the job runs: `python` is the cluster's, and the job's folder, where it runs, comes first."""
    words = ["python", "-m", "sweeps", "run", f"{study.study}.yaml", "--address", "auto"]
    words.append("--require-tracking")
    words += ["--wait-for-nodes"] if wait_for_nodes else []
    words += ["--only", only] if only else []
    words += ["--limit", str(limit)] if limit else []
    return shlex.join(words)


class JobClient:
    """A Ray cluster whose dashboard answers at a URL. Raises InputError where none does."""

    def __init__(self, address: str) -> None:
        self.address = _checked(address)
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # it tells of every package
        try:
            with _as_given():
                self._client = _Client(self.address)
                self._version = str(self._client.ray_version())
        except AuthenticationError as error:
            raise self._no_entry(error) from None
        except requests.Timeout:
            raise self._nobody(f"no answer within {TIMEOUT_S[1]} s") from None
        except (ConnectionError, requests.ConnectionError) as error:
            raise self._nobody(_reason(error)) from None
        except (RuntimeError, ValueError, KeyError, requests.RequestException) as error:
            raise InputError(
                f"--address {address}: what answers there is no Ray dashboard ({_short(error)}); "
                "give its URL, as the head node prints it when it starts"
            ) from None

    def jobs(self, study: Study) -> list[SubmittedJob]:
        """Of the study in its storage, the latest last."""
        wanted = _metadata(study)
        found = [
            SubmittedJob.of(details)
            for details in self._ask(self._client.list_jobs)
            if details.submission_id and wanted.items() <= (details.metadata or {}).items()
        ]
        unique = {job.id: job for job in found}
        return sorted(unique.values(), key=lambda job: (job.since is not None, job.since))

    def job(self, study: Study) -> SubmittedJob | None:
        """The one that runs, else the last."""
        found = self.jobs(study)
        return next((job for job in found if job.runs), found[-1] if found else None)

    def check_version(self) -> None:
        """Raises InputError where Ray is another one there: code for one may not run on the other."""
        if self._version != ray.__version__:
            raise InputError(
                f"--address {self.address}: Ray {self._version} is there and {ray.__version__} is here; "
                f"pip install 'ray[default,tune]=={self._version}' here, or the same as here on every node"
            )

    def submit(self, folder: Path, study: Study, line: str, variables: Mapping[str, str]) -> str:
        """Send what `stage` put into `folder` and start it there with `line`; returns the job's id."""
        self.check_version()
        name = f"{study.study}-{secrets.token_hex(3)}"
        self._ask(
            lambda: self._client.submit_job(
                entrypoint=line,
                submission_id=name,
                runtime_env={"working_dir": str(folder), "env_vars": dict(variables)},
                metadata=_metadata(study),
                entrypoint_num_cpus=0,  # the driver waits more than it computes
            )
        )
        return name

    def follow(self, name: str, write: Callable[[str], None]) -> SubmittedJob:
        """Write the job's log from its beginning and as it grows; returns when the job has ended.

        A connection that breaks is made anew as long as the cluster answers within PATIENCE_S, and nothing
        is written twice.
        """
        log = _Log(write)
        while True:
            try:
                asyncio.run(log.read(self._client.tail_job_logs(name)))
            except (*LOST, RuntimeError):
                pass  # whether there is more to come is asked next, and whether anybody answers
            job = SubmittedJob.of(self._ask(lambda: self._client.get_job_info(name), PATIENCE_S))
            if not job.runs:
                # A stream that breaks may end like one that is complete.
                log.add(0, self._ask(lambda: self._client.get_job_logs(name), PATIENCE_S))
                return job
            time.sleep(PAUSE_S)

    def stop(self, name: str) -> SubmittedJob:
        """Ask the job to end; returns when it has. Raises InputError where it does not."""
        until = time.monotonic() + 2 * END_S
        while time.monotonic() < until:
            self._ask(lambda: self._client.stop_job(name))
            for _ in range(10):  # one that is only now being started may not have heard it
                job = SubmittedJob.of(self._ask(lambda: self._client.get_job_info(name)))
                if not job.runs:
                    return job
                time.sleep(PAUSE_S / 2)
        raise InputError(
            f"{name}: still {job.status} {2 * END_S} s after it was asked to end; see {self.page(name)}"
        )

    def page(self, name: str) -> str:
        """Of a job, in the dashboard."""
        return f"{self.address}/#/jobs/{name}"

    def _ask(self, question: Callable[[], T], patience_s: float = 0) -> T:
        """The cluster's answer. Raises InputError for a refusal, and when there is none for so long."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(LOST),
            wait=tenacity.wait_exponential(max=15),
            stop=tenacity.stop_after_delay(patience_s),
            reraise=True,
        )
        try:
            return retrying(question)
        except LOST as error:
            raise self._nobody(_reason(error)) from None
        except AuthenticationError as error:
            raise self._no_entry(error) from None
        except (RuntimeError, ValueError) as error:
            raise InputError(f"--address {self.address}: refused ({_short(error)})") from None

    def _nobody(self, reason: str) -> InputError:
        return InputError(
            f"--address {self.address}: nobody answers there ({reason}); is the cluster up, its dashboard "
            "reachable from here, and the port right (8265 unless it was given another)?"
        )

    def _no_entry(self, error: AuthenticationError) -> InputError:
        said = str(error)
        if "Authentication failed" in said:
            what = "the cluster knows another token than the one sent"
        elif "RAY_AUTH_TOKEN_PATH is set" in said:
            what = f"no token is in {os.environ.get('RAY_AUTH_TOKEN_PATH')}, which RAY_AUTH_TOKEN_PATH names"
        else:
            what = "the cluster wants a token, and none was sent"
        return InputError(
            f"--address {self.address}: {what}; export RAY_AUTH_MODE=token, and the cluster's token as "
            "RAY_AUTH_TOKEN or in the file that RAY_AUTH_TOKEN_PATH names (~/.ray/auth_token without)"
        )


class _Client(JobSubmissionClient):
    """Ray's own with an end to its patience, which would hang on an address where packets are lost."""

    def _do_request(self, method: str, endpoint: str, **more: Any) -> requests.Response:
        answer: requests.Response = super()._do_request(method, endpoint, **{"timeout": TIMEOUT_S, **more})
        return answer

    def ray_version(self) -> str:
        return str(self._do_request("GET", "/api/version").json()["ray_version"])


class _Log:
    """Writes what it has not been told before of a text that only grows."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._seen = 0

    def add(self, start: int, text: str) -> None:
        """A piece of the text, and where in it the piece begins."""
        if fresh := text[max(0, self._seen - start) :]:
            self._write(fresh)
            self._seen = start + len(text)

    async def read(self, pieces: AsyncIterator[str]) -> None:
        """The text from its beginning; raises TimeoutError when nothing comes any more."""
        start = 0
        while True:
            try:
                piece = await asyncio.wait_for(anext(pieces), SILENCE_S)
            except StopAsyncIteration:
                return
            self.add(start, piece)
            start += len(piece)


@contextlib.contextmanager
def staged(study: Study, content: Mapping[str, Any]) -> Iterator[tuple[Path, Shipment]]:
    """A folder of its own with what `stage` puts there."""
    with tempfile.TemporaryDirectory(prefix="sweep-submit-") as folder:
        yield Path(folder), stage(Path(folder), study, content)


def _metadata(study: Study) -> dict[str, str]:
    """What a job is found again by."""
    return {"study": study.study, "storage": study.storage}


def _checked(address: str) -> str:
    """A URL that a client takes, or InputError."""
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise InputError(
            f"--address {address}: no URL of a Ray dashboard; write it as http://HOST:8265 (or https)"
        )
    return address.rstrip("/")


@contextlib.contextmanager
def _as_given() -> Iterator[None]:
    """These variables would overrule the address that Ray's client is given."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    held = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


def _reason(error: BaseException) -> str:
    """Why a connection failed: what the operating system said, below what four libraries made of it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    return _short(error)


def _short(error: BaseException) -> str:
    """In one line; of a traceback, which the cluster may send, its last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")] or [type(error).__name__]
    told = lines[-1] if "Traceback (" in str(error) else " ".join(lines)
    return told[:300].rstrip(".")


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _told(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
