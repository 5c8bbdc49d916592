"""Webhooks: which URLs and addresses are allowed, and that a signature proves one body for one URL at one time."""

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance.api import targets
from quittance.limits import WEBHOOK_AGE_MS_MAX, WEBHOOK_URL_CHARS_MAX
from quittance.proof import receipt, statement, verify, webhook
from quittance.proof.statement import CERTIFICATE_SECONDS, Flaw, ProofError, Purpose, StatementType
from tests.proof.roots import NOW_S, Root, parse, part

URL = "https://example.com/hook?for=alice"
NOW_MS = NOW_S * 1_000
BODY = b'{"event":"TaskSettled"}'
ROOT_KEY = Root(purpose=Purpose.WEBHOOK)
KEY = ROOT_KEY.certify()


# The URL.


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "visible ASCII"),
        ("example.com", "https://"),
        ("ftp://example.com/", "https://"),
        ("file:///etc/passwd", "https://"),
        ("HTTPS:example.com", "host"),
        ("https:///path", "host"),
        ("https://", "host"),
        ("https://:443/", "host"),
        ("https://user@example.com/", "user or password"),
        ("https://user:word@example.com/", "user or password"),
        ("https://example.com@169.254.169.254/", "user or password"),
        ("https://example.com/#", "fragment"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com/a b", "visible ASCII"),
        ("https://example.com/\r\nX-Header: 1", "visible ASCII"),
        ("https://example.com\\@10.0.0.1/", "visible ASCII"),
        ("https://exämple.com/", "visible ASCII"),
        ("https://example.com:0/", "host"),
        ("https://example.com:65536/", "port"),
        ("https://example.com:x/", "port"),
        ("https://[::1/", "host"),
        ("https://[v1.a]/", "host"),
        ("https://exa%6dple.com/", "host"),
        ("https://a,b/", "host"),
        ("https://./", "host"),
        ("https://a../", "host"),
        ("https://a..b/", "host"),
        ("https://.a/", "host"),
        (f"https://{'a' * 64}.com/", "host"),
        (f"https://{'a.' * 126}aa/", "host"),
        (f"https://{'a.' * 126}aa./", "host"),
        ("https://example.com/" + "a" * (WEBHOOK_URL_CHARS_MAX - 19), "at most 2000 characters"),
    ],
)
def test_an_ambiguous_url_is_refused_with_the_reason(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        targets.parse_url(url)


def test_a_url_at_the_limit_is_accepted() -> None:
    url = "https://example.com/" + "a" * (WEBHOOK_URL_CHARS_MAX - 20)
    assert len(url) == WEBHOOK_URL_CHARS_MAX
    assert targets.parse_url(url).hostname == "example.com"


@pytest.mark.parametrize("host", ["example.com", "example.com.", "a", f"{'a' * 63}.com", "a." * 126 + "a", "a." * 127])
def test_the_final_dot_of_a_host_name_is_dropped_for_tls(host: str) -> None:
    parts = targets.parse_url(f"https://{host}:443/")
    assert parts.hostname == host
    assert targets.tls_name(parts) == host.rstrip(".")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://example.com", None),
        ("https://example.com./", None),
        ("https://8.8.8.8./", None),
        ("https://127.0.0.1./", "must not be a private address"),
        ("http://10.0.0.1/", "must not be a private address"),
        ("https://EXAMPLE.com:443/a?b", None),
        ("https://8.8.8.8/", None),
        ("https://[2606:4700::1111]/", None),
        ("http://example.com/", "must begin with https://"),
        ("https://example.com:8443/", "must be on port 443"),
        ("https://127.0.0.1/", "must not be a private address"),
        ("https://169.254.169.254/latest/meta-data/", "must not be a private address"),
        ("https://[::ffff:10.0.0.1]/", "must not be a private address"),
    ],
)
def test_an_obviously_private_target_is_refused_before_funding(url: str, sentence: str | None) -> None:
    assert targets.why_refused(url) == sentence


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://localhost:8000/", None),
        ("http://127.0.0.1:8000/", None),
        ("http://127.255.255.254./", None),
        ("https://[::1]:8443/", None),
        ("https://8.8.8.8/", None),
        ("http://8.8.8.8/", "must begin with https://"),
        ("https://8.8.8.8:8443/", "must be on port 443"),
        ("http://10.0.0.1:8000/", "must not be a private address"),
        ("https://169.254.169.254/", "must not be a private address"),
        ("http://0.0.0.0:8000/", "must not be a private address"),
        ("http://[::]:8000/", "must not be a private address"),
        ("http://[::ffff:127.0.0.1]:8000/", "must not be a private address"),
        ("http://[fe80::1]/", "must not be a private address"),
    ],
)
def test_allowing_loopback_allows_nothing_else(url: str, sentence: str | None) -> None:
    assert targets.why_refused(url, loopback=True) == sentence


# The address.


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255"),
        *("192.168.0.1", "169.254.169.254", "169.254.170.2", "100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1"),
        *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "64:ff9b:1::808:808", "100::1"),
        *("2002:7f00:1::", "2002:808:808::", "2001::1", "2001:db8::1", "2001:10::1"),
        *("fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "ff0e::1", "4000::1", "e000::1"),
    ],
)
def test_webhooks_never_call_private_addresses(address: str) -> None:
    assert not targets.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "172.15.0.1",
        "172.32.0.1",
        "100.128.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2606:4700::1",
    ],
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert targets.is_public(ipaddress.ip_address(address))


@given(st.ip_addresses())
def test_loopback_is_127_8_and_its_ipv6_address(address: targets.Address) -> None:
    number = int(address)
    assert targets.is_loopback(address) == (number >> 24 == 127 if address.version == 4 else number == 1)


@given(st.integers(0, 2**24 - 1))
def test_loopback_has_no_other_spelling_in_ipv6(host: int) -> None:
    inner = ipaddress.IPv4Address(0x7F00_0000 | host)
    assert targets.is_loopback(inner)
    for form in (f"::ffff:{inner}", f"64:ff9b::{inner}", f"::{inner}"):
        address = ipaddress.ip_address(form)
        assert not targets.is_loopback(address)
        assert not targets.is_public(address)


@given(st.ip_addresses(v=4))
def test_ipv6_forms_of_a_private_ipv4_address_are_private(inner: ipaddress.IPv4Address) -> None:
    public = targets.is_public(inner)
    for form in (f"::ffff:{inner}", f"64:ff9b::{inner}"):
        assert targets.is_public(ipaddress.ip_address(form)) == public
    assert not targets.is_public(ipaddress.ip_address(f"::{inner}"))
    assert not targets.is_public(ipaddress.ip_address((0x2002 << 112) | (int(inner) << 80)))
    assert not public or inner.is_global


# The signature.


def signed(body: bytes = BODY, url: str = URL) -> str:
    return webhook.sign(body, url=url, event_id="task.a.released", issuer="urn:test", now_ms=NOW_MS, key=KEY)


def check(body: bytes = BODY, signature: str | None = None, **changes: Any) -> webhook.WebhookClaims:
    given: dict[str, Any] = {"url": URL, "jwks": ROOT_KEY.jwks(), "now_ms": NOW_MS} | changes
    return webhook.verify(body, signature or signed(), **given)


def test_a_signature_states_body_url_time_and_sender() -> None:
    stated = check()
    assert (stated.iss, stated.event_id, stated.url, stated.at) == ("urn:test", "task.a.released", URL, NOW_MS)


@pytest.mark.parametrize(
    ("flaw", "changes"),
    [
        (Flaw.DIGEST, {"body": BODY + b" "}),
        (Flaw.DIGEST, {"body": b""}),
        (Flaw.CONTRADICTION, {"url": "https://example.com/hook"}),
        (Flaw.CONTRADICTION, {"url": "https://victim.example/hook?for=alice"}),
        (Flaw.TIMES, {"now_ms": NOW_MS + WEBHOOK_AGE_MS_MAX + 1}),
        (Flaw.TIMES, {"now_ms": NOW_MS - WEBHOOK_AGE_MS_MAX - 1}),
        (Flaw.SIGNATURE, {"jwks": Root("root-1").jwks()}),
        (Flaw.SIGNATURE, {"jwks": {"keys": []}}),
        (Flaw.FORM, {"signature": "nothing"}),
    ],
)
def test_a_signature_proves_nothing_to_another_receiver(flaw: Flaw, changes: dict[str, Any]) -> None:
    with pytest.raises(ProofError) as refused:
        check(**changes)
    assert refused.value.flaw is flaw


@pytest.mark.parametrize("now_ms", [NOW_MS + WEBHOOK_AGE_MS_MAX, NOW_MS - WEBHOOK_AGE_MS_MAX, None])
def test_clocks_may_differ_by_the_limit(now_ms: int | None) -> None:
    assert check(now_ms=now_ms)


def test_another_statement_is_no_webhook_signature() -> None:
    token = parse(signed())
    for payload in ({**token.payload, "url": "https://other.example/"}, {**token.payload, "at": NOW_MS + 1}):
        with pytest.raises(ProofError, match="signature"):
            check(signature=str(token._replace(payload=payload)), url=payload["url"])
    as_receipt = statement.sign(token.payload, KEY, StatementType(receipt.RECEIPT.typ, "", Purpose.WEBHOOK))
    with pytest.raises(ProofError, match="not of the type"):
        check(signature=as_receipt)
    with pytest.raises(ProofError, match="not of the type"):
        statement.verify(signed(), ROOT_KEY.jwks(), receipt.RECEIPT)
    more = statement.sign({**token.payload, "sub": "x"}, KEY, StatementType(webhook.WEBHOOK.typ, "", Purpose.WEBHOOK))
    with pytest.raises(ProofError, match="wrong form"):
        check(signature=more)
    header = f"{part({**token.header, 'alg': 'none'})}.{part(token.payload)}."
    with pytest.raises(ProofError, match="algorithm"):
        check(signature=header)


def test_a_time_beyond_the_keys_certificate_is_refused() -> None:
    late = webhook.sign(BODY, url=URL, event_id="e", issuer="i", now_ms=(NOW_S + CERTIFICATE_SECONDS) * 1_000, key=KEY)
    with pytest.raises(ProofError, match="outside the validity"):
        check(signature=late, now_ms=None)


# The command.


def test_the_verifier_checks_a_stored_delivery(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    paths = {name: tmp_path / name for name in ("body", "signature", "keys")}
    paths["body"].write_bytes(BODY)
    paths["signature"].write_text(signed() + "\n")
    paths["keys"].write_text(json.dumps(ROOT_KEY.jwks()))
    words = ["--webhook", str(paths["body"]), "--signature", str(paths["signature"]), "--keys", str(paths["keys"])]
    assert verify.main([*words, "--url", URL]) == 0
    assert "task.a.released" in capsys.readouterr().out
    assert verify.main([*words, "--url", "https://other.example/"]) == verify.EXITS[Flaw.CONTRADICTION][0]
    paths["body"].write_bytes(BODY + b"\n")
    assert verify.main([*words, "--url", URL]) == verify.EXITS[Flaw.DIGEST][0]
    assert "Not proven" in capsys.readouterr().out
    for wrong in (words, [*words, "--url", URL, "receipt.jws"], ["--keys", str(paths["keys"])]):
        with pytest.raises(SystemExit) as usage:
            verify.main(wrong)
        assert usage.value.code == 2
