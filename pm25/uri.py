"""Files at a URI that pyarrow opens, such as s3://bucket/panel.parquet, in place of a path."""

import errno
import functools
import os
import re
from pathlib import Path
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.fs

from pm25 import files
from pm25.errors import InputError
from pm25.redaction import redacted

NO_BUCKET = "the address names no bucket"
"""Problem of an address such as s3://."""

GOOGLE_S = 5.0
"""Seconds for which a first request to Google Cloud Storage is repeated."""


def is_uri(place: Path | str) -> bool:
    """Tell whether `place` is a URI and not a path."""
    return "://" in str(place)


def file_name(place: Path | str) -> str:
    """Last part of a path, or of the path in a URI."""
    return Path(urlsplit(str(place)).path if is_uri(place) else place).name


def without_secrets(place: Path | str) -> str:
    """Return a path or a URI for messages, without the user, password and keys that a URI may have."""
    return redacted(re.sub(r"^([\w+.-]+://)(?:[^/@]*:(?!\d{1,5}/).*|[^/@]*)@", r"\1", str(place)))


def escaped(uri: str) -> str:
    """Return a URI with escapes for the characters of its path that a URI cannot have, such as a blank.

    A `#` belongs to the path, because a file system has no fragments. Escapes that are there remain.
    """
    scheme, _, rest = uri.partition("://")
    path, question, options = rest.partition("?")
    bucket, slash, path = path.partition("/")
    path = quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", path), safe="/%:@!$&'()*+,;=~")
    return f"{scheme}://{bucket}{slash}{path}{question}{options}"


def read(place: Path | str) -> bytes:
    """Read a complete file. Raises OSError, whose `strerror` gives the reason (see `unreadable`)."""
    if not is_uri(place):
        return files.read_bytes(Path(place))
    uri = str(place)
    try:
        system, path = open_system(uri)
        check_server(uri, path)
        if not isinstance(system, pyarrow.fs.LocalFileSystem):
            with system.open_input_stream(path) as stream:
                return bytes(stream.read())
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from None
    except (OSError, pa.ArrowException) as error:
        raise OSError(errno.EIO, reason(error), uri) from None
    return files.read_bytes(Path(path))


def unreadable(place: Path | str, error: OSError) -> InputError:
    """Error to raise for a file that `read` could not read."""
    fix = advice(str(place), error) or f"give {'a URI' if is_uri(place) else 'a file'} that can be read"
    return InputError(str(place), "", f"cannot be read ({error.strerror})", fix)


@functools.lru_cache(8)
def open_system(uri: str, at_once: bool = True) -> tuple[pyarrow.fs.FileSystem, str]:
    """Open the file system of a URI, and return it with the path in it.

    Each is opened once in a process, because a new client opens new connections. With `at_once`, a file
    smaller than 10 MiB is written to S3 in one request instead of three. Raises OSError or pa.ArrowException,
    also for an address of object storage without a bucket, which pyarrow would take for all buckets.
    """
    if re.fullmatch(r"(s3|gs|gcs|abfss?)://([^/?]*@)?([/?].*)?", uri):
        raise OSError(NO_BUCKET)
    if at_once and uri.startswith("s3://"):
        uri += f"{'&' if '?' in uri else '?'}allow_delayed_open=true"
    system, path = pyarrow.fs.FileSystem.from_uri(escaped(uri))
    return system, path


@functools.lru_cache(32)
def check_server(uri: str, path: str) -> None:
    """Raise OSError within seconds if no server of S3 or of Google Cloud answers.

    With its default number of attempts, a request would wait for up to 15 minutes.
    """
    if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in uri:
        limited = f"{escaped(uri)}{'&' if '?' in uri else '?'}retry_limit_seconds={GOOGLE_S:g}"
        pyarrow.fs.FileSystem.from_uri(limited)[0].get_file_info(path)
    # The copy below loses these two options, and would refuse a certificate that they allow.
    if not uri.startswith("s3://") or "tls_verify_certificates" in uri or "tls_ca_dir_path" in uri:
        return
    make, (options,) = open_system(uri)[0].__reduce__()
    hasty = make({**options, "retry_strategy": pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=2)})
    hasty.get_file_info(path)


def reason(error: Exception) -> str:
    """Message of a file system in one line, without passwords and the number of a server's request."""
    text = re.sub(r"\(Request ID: [^)]*\)", "", str(error))
    return redacted(" ".join(text.split())).rstrip(".")


def advice(uri: str, error: Exception) -> str:
    """Instruction that may solve an error of object storage; empty for other and unknown errors."""
    text = str(error)
    if NO_BUCKET in text:
        return f"write it as {uri.partition(':')[0]}://BUCKET/PATH"
    if "OAuth2 access token" in text:
        return (
            "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or write gs://anonymous@BUCKET/PATH if public"
        )
    if not uri.startswith("s3://"):
        return ""
    if "NO_SUCH_BUCKET" in text or "not found" in text:
        return "make the bucket first, or name another"
    if re.search(r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE|CREDENTIAL", text):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to those of a user who has access"
    if "NETWORK_CONNECTION" in text:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return f"check AWS_ENDPOINT_URL ({endpoint})" if endpoint else "set AWS_ENDPOINT_URL if it is not AWS"
    return ""
