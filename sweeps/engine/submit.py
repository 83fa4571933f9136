"""`sweep run` as a job on a Ray cluster: submitted, found, followed and stopped through the dashboard."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shlex
import shutil
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

import pm25
import sweeps
from pm25.errors import InputError
from pm25.redaction import redacted
from pm25.scratch import scratch
from pm25.uri import without_secrets
from sweeps.engine import ray_internals, worker
from sweeps.spec.study import Study

SHIPPED = {
    Path(pm25.__file__).parent: ("**/*.py",),
    Path(str(sweeps.__file__)).parent: ("**/*.py", "studies/*.yaml", "report/templates/*.j2"),
}
"""Files that a job is sent, as glob patterns by package folder: the content of a wheel."""

TIMEOUT_S = (10, 60)
"""Longest time to connect to the cluster, and to wait for its answer."""
PATIENCE_S = 600.0
"""Time for which the cluster of a followed job may not answer."""
SILENCE_S = 60.0
"""Time after which a silent log is requested again, because its connection may be dead."""
PAUSE_S = 1.0
"""Time between two requests for a job's status."""
END_S = 30
"""Time that a stopped run has to end by itself, before Ray kills it."""

LOST = (ClientError, requests.RequestException, TimeoutError)
"""Exceptions of a connection that fails after it was established."""

T = TypeVar("T")


@dataclass(frozen=True)
class SubmittedJob:
    """A job, as the cluster describes it."""

    id: str
    status: str
    """One of pending, running, stopped, succeeded and failed."""
    message: str
    """One line; for a failed run, the last line of its log."""
    since: datetime | None
    ended: datetime | None
    exit_status: int | None
    """Exit status of the run; None before its end, or if the cluster does not know it."""

    @classmethod
    def of(cls, details: Any) -> "SubmittedJob":
        """Read Ray's `JobDetails`."""
        status, code = details.status.value.lower(), details.driver_exit_code
        if status == "stopped":  # the status of an interrupted run
            code = 130
        elif code is not None and code < 0:  # killed by a signal; 128 + n, as in a shell
            code = 128 - code
        lines = [line.strip() for line in (details.message or "").splitlines() if line.strip()] or [""]
        message = lines[-1] if "last available logs" in lines[0] else lines[0]
        if code == 127 or message.startswith("ModuleNotFoundError"):
            message += (
                "; on the head node, start Ray where the first `python` on the path has the dependencies"
            )
        since, ended = map(_moment, (details.start_time, details.end_time))
        return cls(details.submission_id, status, message, since, ended, code)

    @property
    def is_running(self) -> bool:
        """True until the job has ended."""
        return self.status in ("pending", "running")

    @property
    def line(self) -> str:
        """Id, status, times and exit status, in one line."""
        words = [f"{self.id}: {self.status}"]
        if self.since:
            words.append(f"since {_format(self.since)}" if self.is_running else f"{_format(self.since)}")
        if self.ended:
            words.append(f"to {_format(self.ended)}")
        if self.exit_status is not None:
            words.append(f"with exit status {self.exit_status}")
        if self.status == "failed":
            words.append(f"({self.message})")
        return " ".join(words)


class Shipment(NamedTuple):
    """Number and size of the files in a folder that is submitted."""

    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.files} files, {self.bytes / 1e6:.1f} MB"


def stage(folder: Path, study: Study, content: Mapping[str, Any]) -> Shipment:
    """Copy this code and the study into an empty folder; data and results are never copied."""
    for package, globs in SHIPPED.items():
        for path in (path for glob in globs for path in package.glob(glob)):
            target = folder / path.relative_to(package.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    (folder / f"{study.study}.yaml").write_text(text, encoding="utf-8")
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Shipment(len(sizes), sum(sizes))


def environment(names: Sequence[str]) -> dict[str, str]:
    """Build the environment of a job: this process's variables of these names, and what a run needs."""
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise InputError(
            f"--env {missing[0]}", problem="no such variable is set here", fix="export it, or leave it out"
        )
    found = {ray_internals.JOB_STOP_WAIT: str(END_S), **{name: os.environ[name] for name in names}}
    if commit := worker.commit():
        found[worker.COMMIT] = json.dumps(commit)
    return found


def command(
    study: Study, *, only: str | None = None, limit: int | None = None, wait_for_nodes: bool = False
) -> str:
    """Build the job's command line; it runs the cluster's `python` in the job's folder."""
    words = ["python", "-m", "sweeps", "run", f"{study.study}.yaml", "--address", "auto"]
    words.append("--require-tracking")
    words += ["--wait-for-nodes"] if wait_for_nodes else []
    words += ["--only", only] if only else []
    words += ["--limit", str(limit)] if limit else []
    return shlex.join(words)


class JobClient:
    """A Ray cluster that is reached through its dashboard."""

    def __init__(self, address: str) -> None:
        """Connect to the dashboard at the URL `address`. Raises InputError when none answers there."""
        self.address = _checked(address)
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # below that, Ray logs every package that it uploads
        try:
            with _without_ray_address():
                self._client = ray_internals.JobClient(self.address, TIMEOUT_S)
                self._version = str(self._client.ray_version())
        except AuthenticationError as error:
            raise self._refused_token(error) from None
        except requests.Timeout:
            raise self._unreachable(f"no answer within {TIMEOUT_S[1]} s") from None
        except (ConnectionError, requests.ConnectionError) as error:
            raise self._unreachable(_reason(error)) from None
        except (RuntimeError, ValueError, KeyError, requests.RequestException) as error:
            raise InputError(
                f"--address {address}",
                problem=f"the server there is not a Ray dashboard ({_short(error)})",
                fix="give the dashboard's URL, as the head node prints it when it starts",
            ) from None

    def jobs(self, study: Study) -> list[SubmittedJob]:
        """List the jobs of this study in this storage, the latest last."""
        wanted = _metadata(study)
        found = [
            SubmittedJob.of(details)
            for details in self._ask(self._client.list_jobs)
            if details.submission_id and wanted.items() <= (details.metadata or {}).items()
        ]
        unique = {job.id: job for job in found}
        return sorted(unique.values(), key=lambda job: (job.since is not None, job.since))

    def job(self, study: Study) -> SubmittedJob | None:
        """Return the study's running job, or else its last one; None if there is none."""
        found = self.jobs(study)
        return next((job for job in found if job.is_running), found[-1] if found else None)

    def check_version(self) -> None:
        """Check that the cluster runs the same version of Ray as this process. Raises InputError."""
        if self._version != ray.__version__:
            raise InputError(
                f"--address {self.address}",
                problem=f"the cluster has Ray {self._version}, and this process has Ray {ray.__version__}",
                fix=f"pip install 'ray[default,tune]=={self._version}' here, or this version on every node",
            )

    def submit(self, folder: Path, study: Study, line: str, variables: Mapping[str, str]) -> str:
        """Send a folder that `stage` filled, start the command `line` in it, and return the job's id."""
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
        """Write the job's log from its beginning and as it grows, until the job has ended.

        A broken connection is opened again as long as the cluster answers within `PATIENCE_S`, and no text
        is written twice.
        """
        log = _Log(write)
        while True:
            try:
                asyncio.run(log.read(self._client.tail_job_logs(name)))
            except (*LOST, RuntimeError):
                pass  # the next request finds out whether the job runs and the cluster answers
            job = SubmittedJob.of(self._ask(lambda: self._client.get_job_info(name), PATIENCE_S))
            if not job.is_running:
                # A broken stream may end like a complete one, so the log is read once more.
                log.add(0, self._ask(lambda: self._client.get_job_logs(name), PATIENCE_S))
                return job
            time.sleep(PAUSE_S)

    def stop(self, name: str) -> SubmittedJob:
        """Ask the job to end, and return when it has. Raises InputError if it does not."""
        until = time.monotonic() + 2 * END_S
        while time.monotonic() < until:
            self._ask(lambda: self._client.stop_job(name))
            for _ in range(10):  # a job that is just starting may miss the request
                job = SubmittedJob.of(self._ask(lambda: self._client.get_job_info(name)))
                if not job.is_running:
                    return job
                time.sleep(PAUSE_S / 2)
        raise InputError(
            f"job {name}",
            problem=f"still {job.status} {2 * END_S} s after it was asked to end",
            fix=f"see {self.page(name)}",
        )

    def page(self, name: str) -> str:
        """URL of a job in the dashboard."""
        return f"{redacted(self.address)}/#/jobs/{name}"

    def _ask(self, question: Callable[[], T], patience_s: float = 0) -> T:
        """Ask until an answer comes, for `patience_s`. Raises InputError for a refusal or no answer."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(LOST),
            wait=tenacity.wait_exponential(max=15),
            stop=tenacity.stop_after_delay(patience_s),
            reraise=True,
        )
        try:
            return retrying(question)
        except LOST as error:
            raise self._unreachable(_reason(error)) from None
        except AuthenticationError as error:
            raise self._refused_token(error) from None
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"--address {self.address}", problem=f"the cluster refused the request ({_short(error)})"
            ) from None

    def _unreachable(self, reason: str) -> InputError:
        return InputError(
            f"--address {self.address}",
            problem=f"no cluster answers there ({reason})",
            fix="start the cluster, make its dashboard reachable, and check the port (8265 by default)",
        )

    def _refused_token(self, error: AuthenticationError) -> InputError:
        text = str(error)
        if "Authentication failed" in text:
            problem = "the cluster has another token than the one sent"
        elif "RAY_AUTH_TOKEN_PATH is set" in text:
            problem = f"RAY_AUTH_TOKEN_PATH names {os.environ.get('RAY_AUTH_TOKEN_PATH')}, which has no token"
        else:
            problem = "the cluster requires a token, and none was sent"
        return InputError(
            f"--address {self.address}",
            problem=problem,
            fix="export RAY_AUTH_MODE=token, and the cluster's token as RAY_AUTH_TOKEN or in the file that "
            "RAY_AUTH_TOKEN_PATH names (~/.ray/auth_token by default)",
        )


class _Log:
    """Writes each part of a growing text once, however often the text is read from its beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._seen = 0

    def add(self, start: int, text: str) -> None:
        """Write the new part of a piece of the text that begins at character `start`."""
        if fresh := text[max(0, self._seen - start) :]:
            self._write(fresh)
            self._seen = start + len(text)

    async def read(self, pieces: AsyncIterator[str]) -> None:
        """Write the text from its beginning. Raises TimeoutError after `SILENCE_S` without a piece."""
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
    """Fill a temporary folder with `stage`; it is deleted with the context."""
    with scratch() as folder:
        package = folder / "package"
        package.mkdir()
        yield package, stage(package, study, content)


def _metadata(study: Study) -> dict[str, str]:
    """Metadata by which the jobs of a study are found; everybody who can open the dashboard reads them."""
    return {"study": study.study, "storage": without_secrets(study.storage)}


def _checked(address: str) -> str:
    """Return a dashboard's URL without a slash at its end. Raises InputError for anything else."""
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise InputError(
            f"--address {address}",
            problem="not the URL of a Ray dashboard",
            fix="write it as http://HOST:8265, or https",
        )
    return address.rstrip("/")


@contextlib.contextmanager
def _without_ray_address() -> Iterator[None]:
    """Unset the variables that take precedence over the address that Ray's client is given."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    unset = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(unset)


def _reason(error: BaseException) -> str:
    """Why a connection failed, in the operating system's words if they are among the causes."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    return _short(error)


def _short(error: BaseException) -> str:
    """Shorten an error to one line; for a traceback, which the cluster may send, the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")] or [type(error).__name__]
    text = lines[-1] if "Traceback (" in str(error) else " ".join(lines)
    return redacted(text)[:300].rstrip(".")


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _format(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
