"""Files at an address that pyarrow opens, such as s3://bucket/panel.parquet, in place of a path."""

import errno
import functools
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs


def is_address(place: Path | str) -> bool:
    return "://" in str(place)


def file_name(place: Path | str) -> str:
    return Path(urlsplit(str(place)).path if is_address(place) else place).name


def read(place: Path | str) -> bytes:
    """A whole file. Raises OSError, whose `strerror` says why not, and of an address what to do."""
    if not is_address(place):
        return Path(place).read_bytes()
    uri = str(place)
    try:
        system, path = open_system(uri)
        meet(uri, path)
        with system.open_input_stream(path) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from None
    except (OSError, pa.ArrowException) as error:
        raise OSError(errno.EIO, reason(error) + (fix(uri, error) or "; fix the address"), uri) from None


@functools.lru_cache(8)
def open_system(uri: str, at_once: bool = True) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system and the path in it, opened once in a process: a new client makes new connections.

    `at_once` writes what is less than 10 MiB to S3 in one request, and not in three. Raises OSError or
    pa.ArrowException.
    """
    if at_once and uri.startswith("s3://"):
        uri += f"{'&' if '?' in uri else '?'}allow_delayed_open=true"
    system, path = pyarrow.fs.FileSystem.from_uri(uri)
    return system, path


@functools.lru_cache(32)
def meet(uri: str, path: str) -> None:
    """Raise within seconds where no S3 answers: in all its attempts a request may wait for five minutes."""
    # Of these options the copy below knows nothing, and would refuse a certificate.
    if not uri.startswith("s3://") or "tls_verify_certificates" in uri or "tls_ca_dir_path" in uri:
        return
    make, (options,) = open_system(uri)[0].__reduce__()
    hasty = make({**options, "retry_strategy": pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=2)})
    hasty.get_file_info(path)


def reason(error: Exception) -> str:
    """What a file system says, in one line and without the number that a server gives to a request."""
    return " ".join(re.sub(r"\(Request ID: [^)]*\)", "", str(error)).split()).rstrip(".")


def fix(uri: str, error: Exception) -> str:
    """What to do about an S3 that cannot be used, after a semicolon; empty where it is not known."""
    if not uri.startswith("s3://"):
        return ""
    text = str(error)
    if "NO_SUCH_BUCKET" in text or "not found" in text:
        return "; make the bucket first, or name another"
    if re.search(r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE|CREDENTIAL", text):
        return "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to those of a user who may"
    if "NETWORK_CONNECTION" in text:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return f"; AWS_ENDPOINT_URL is {endpoint}" if endpoint else "; set AWS_ENDPOINT_URL if it is not AWS"
    return ""
