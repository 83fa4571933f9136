"""Passwords in addresses, in texts of any kind."""

import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm25 import uri
from pm25.errors import InputError
from pm25.redaction import redacted
from sweeps.spec.tracking_address import shown_override, without_password

CASES = [
    ("http://ana:pw@host:5000/x", "http://ana:***@host:5000/x"),
    ("https://:p@w@host", "https://:***@host"),
    ("https://token@host/api", "https://***@host/api"),
    ("postgresql+psycopg://ana:a/b%40c@host/db", "postgresql+psycopg://ana:***@host/db"),
    ("postgresql://ana@host/db", "postgresql://ana@host/db"),
    ("postgresql:///ana:pw@host/db", "postgresql:///ana:***@host/db"),
    (
        "mysql://host/db?user=ana&password=pw&ssl_key=/k",
        "mysql://host/db?user=ana&password=***&ssl_key=/k",
    ),
    (
        "s3://bucket/x?access_key=AKIA&secret_key=pw&region=eu&session_token=t",
        "s3://bucket/x?access_key=***&secret_key=***&region=eu&session_token=***",
    ),
    ("abfs://c@a.dfs/x?sig=pw&sv=1", "abfs://c@a.dfs/x?sig=***&sv=1"),
    (
        "cannot open 'http://a:b@c/d' (see https://e.org)",
        "cannot open 'http://a:***@c/d' (see https://e.org)",
    ),
    ("sqlite:////home/a:b@c/mlflow.db", "sqlite:////home/a:b@c/mlflow.db"),
    ("file:///a:b@c/x", "file:///a:b@c/x"),
    ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
    ("ana@example.org wrote a:b", "ana@example.org wrote a:b"),
]


@pytest.mark.parametrize(("text", "shown"), CASES, ids=[text for text, _ in CASES])
def test_known_addresses(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


SECRET = st.text(string.ascii_letters + string.digits + "@/:%?#&=+!$~'\"[]ü漢", min_size=6, max_size=20)
SCHEMES = st.sampled_from(
    ["postgresql", "postgresql+psycopg", "mysql", "http", "https", "redis", "s3", "abfss"]
)
USERS = st.sampled_from(["", "ana", "ana.b-c", "a%40b"])


@given(SCHEMES, USERS, SECRET, st.booleans())
def test_no_password_remains(scheme: str, user: str, secret: str, escaped: bool) -> None:
    secret = f"<{secret}>"  # never a part of the rest
    written = quote(secret, safe="") if escaped else secret
    address = f"{scheme}://{user}:{written}@host:5432/db"
    error = InputError(
        f"--set tracking={address}", "tracking", f"{address} does not answer ({address})", address
    )
    shown = (
        redacted(f"refused: {address}"),
        without_password(address),
        shown_override(f"tracking={address}"),
        uri.without_secrets(address),
        str(error),
    )
    for text in shown:
        assert written not in text
        assert secret not in text
        assert "host:5432/db" in text


@given(USERS, SECRET, st.sampled_from(["", "postgresql:", "postgresql:/", "postgresql:///", "postgresql//"]))
def test_no_password_of_a_misspelt_address_remains(user: str, secret: str, scheme: str) -> None:
    secret = f"<{secret}>"
    assert secret not in shown_override(f"tracking={scheme}{user}:{secret}@host/db")


@given(st.sampled_from(["access_key", "secret_key", "password", "sslpassword", "sig", "sas_token"]), SECRET)
def test_no_key_in_an_option_remains(name: str, secret: str) -> None:
    written = f"<{quote(secret, safe='')}>"
    shown = redacted(f"s3://bucket/results?{name}={written}&region=eu: no access")
    assert shown == f"s3://bucket/results?{name}=***&region=eu: no access"
