"""Who is a stranger, from headers alone."""

from __future__ import annotations

import pytest

from agent.errors import FleetError
from odctl.web.access import Access, host_name, is_loopback, make_access

TOKEN = "t" * 43
OWN = {"Host": "127.0.0.1:7117", "Origin": "http://127.0.0.1:7117"}


@pytest.fixture
def access() -> Access:
    return make_access(TOKEN, listen="127.0.0.1")


def refused(access: Access, headers: dict[str, str], *, method: str = "GET", is_websocket: bool = False) -> str:
    refusal = access.refuse_stranger(method, headers, is_websocket=is_websocket)
    return f"{refusal.status} {refusal.reason}" if refusal else ""


@pytest.mark.parametrize("host", ["127.0.0.1:7117", "localhost:7117", "[::1]:7117", "LOCALHOST:9000", "localhost"])
def test_every_name_of_loopback_and_any_port_is_ours(access: Access, host: str) -> None:
    """The port may be another: `ssh -L 9000:…` leads here too."""
    own = {"Host": host, "Origin": f"http://{host.lower()}"}
    assert refused(access, {"Host": host}) == ""
    assert refused(access, own, is_websocket=True) == ""


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.example", "127.0.0.1.evil.example:7117", "localhost.evil.example", "evil.example:7117",
        "user@localhost:7117", "localhost/x", "localhost?x", "localhost:port", "127.0.0.2:7117", "0.0.0.0:7117",
    ],
)  # fmt: skip
def test_a_name_that_is_not_ours_is_refused(access: Access, host: str) -> None:
    assert refused(access, {"Host": host, "Origin": f"http://{host}"}).startswith("403 this server is not called")


@pytest.mark.parametrize(
    "origin",
    [
        "null", "", "http://evil.example", "https://127.0.0.1:7117", "http://127.0.0.1:8000", "http://127.0.0.1",
        "http://localhost:7117", "http://127.0.0.1:7117.evil.example", "http://127.0.0.1:7117/",
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_websocket", [False, True])
def test_a_page_of_any_other_origin_is_refused(access: Access, origin: str, is_websocket: bool) -> None:
    said = refused(access, OWN | {"Origin": origin}, is_websocket=is_websocket)
    assert said.startswith("403 a page of")
    assert said.endswith("may not speak to http://127.0.0.1:7117")


def test_a_websocket_needs_an_origin_and_a_page_does_not(access: Access) -> None:
    assert refused(access, {"Host": OWN["Host"]}) == ""
    assert refused(access, {"Host": OWN["Host"]}, is_websocket=True).startswith("403 a websocket without an Origin")


def test_nothing_is_posted_here(access: Access) -> None:
    assert refused(access, OWN, method="POST") == "405 POST is not for this server"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_may_link_to_the_page_and_load_nothing_of_it(access: Access, site: str) -> None:
    """`same-site` is another port of this machine."""
    fetched = {"Host": OWN["Host"], "Sec-Fetch-Site": site}
    assert refused(access, fetched | {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}).startswith("403")
    assert refused(access, fetched | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}).startswith("403")
    assert refused(access, fetched | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}) == ""


def test_a_proxy_is_named_by_its_origin_and_speaks_tls() -> None:
    access = make_access(TOKEN, listen="127.0.0.1", origins=("https://Lab.example/",))
    behind = {"Host": "lab.example", "Origin": "https://lab.example"}
    assert refused(access, behind, is_websocket=True) == ""
    assert access.base_url("lab.example") == "https://lab.example"
    assert refused(access, behind | {"Origin": "http://lab.example"}).startswith("403")


@pytest.mark.parametrize(
    "origin", ["lab.example", "ftp://lab.example", "https://lab.example/odctl", "https://", "*"]
)
def test_what_is_no_origin_is_told(origin: str) -> None:
    with pytest.raises(FleetError, match="is no origin") as caught:
        make_access(TOKEN, listen="127.0.0.1", origins=(origin,))
    assert caught.value.code == "E120"
    assert "https://lab.example" in caught.value.hint


def test_a_given_address_is_a_name_and_a_wildcard_is_none() -> None:
    assert refused(make_access(TOKEN, listen="10.0.0.5"), {"Host": "10.0.0.5:7117"}) == ""
    assert refused(make_access(TOKEN, listen="0.0.0.0"), {"Host": "0.0.0.0:7117"}).startswith("403")


def test_token_and_cookie_are_two_secrets_and_neither_is_printed(access: Access) -> None:
    assert access.is_token(TOKEN)
    assert access.is_session(access.session)
    assert not access.is_session(TOKEN)
    assert not access.is_token(access.session)
    assert not access.is_token("")
    assert not access.is_token("\udcff")
    assert TOKEN not in repr(access)
    assert access.session not in repr(access)
    assert make_access(TOKEN, listen="127.0.0.1").session != access.session


@pytest.mark.parametrize(
    ("listen", "is_ours"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.5", False), ("lab.example", False), ("", False)],
)  # fmt: skip
def test_loopback_is_this_machine_alone(listen: str, is_ours: bool) -> None:
    assert is_loopback(listen) is is_ours


def test_a_host_is_read_without_port_brackets_and_case() -> None:
    assert [host_name(host) for host in ("[::1]:80", "LocalHost.:1", "a:b:c")] == ["::1", "localhost", ""]
