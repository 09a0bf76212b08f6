"""What REDIS_URL may say, and what is said of a wrong one."""

from ssl import TLSVersion

import pytest

from common.store.connections.redis_url import RedisUrl, parse_url


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://host/0 ", "begins or ends with a blank"),
        ("http://host", "must start with redis://"),
        ("redis+ring://host", "must start with redis://"),
        ("unix+cluster://host", "cannot have a cluster behind unix://"),
        ("redis+sentinel://host:26379", "must name the service"),
        ("redis+sentinel://host:26379/main/zero", "the database a number"),
        ("redis+sentinel://host:26379/main/0/more", "the database a number"),
        ("redis+sentinel://host:26379,/main", "host:port with commas"),
        ("redis+sentinel://host:port/main", "host:port with commas"),
        ("redis+cluster://", "host:port with commas"),
        ("redis+cluster://host/1", "a cluster has one"),
    ],
)
def test_a_wrong_url(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_url(url)


def test_all_that_fits_into_a_url() -> None:
    url = parse_url(
        "rediss+sentinel://us%40er:pa%3Ass@one,[::1]:2/main/3"
        "?sentinel_username=watch&sentinel_password=s%26t&ssl_ca_certs=/ca.pem"
    )
    assert url.addresses == (("one", 26379), ("::1", 2))
    assert (url.kind, url.service) == ("sentinel", "main")
    assert (url.sentinel_user, url.sentinel_password) == ("watch", "s&t")
    assert url.plain == "rediss://us%40er:pa%3Ass@localhost/3"
    assert url.options == {"ssl_ca_certs": "/ca.pem"}


@pytest.mark.parametrize("kind", ["", "+sentinel", "+cluster"])
@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_options_as_providers_write_them(scheme: str, kind: str) -> None:
    service = "/main" if kind == "+sentinel" else ""
    options = (
        "ssl_cert_reqs=CERT_NONE&ssl_check_hostname=false&ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_min_version=TLSv1.3"
        "&max_connections=10&socket_timeout=5&protocol=3&decode_responses=true&ssl_ca_path="
    )
    url = parse_url(f"{scheme}s{kind}://host{service}?{options}")
    assert url.plain.startswith("rediss://")
    assert url.options == {
        "ssl_cert_reqs": "none",
        "ssl_check_hostname": False,
        "ssl_certfile": "/c.pem",
        "ssl_keyfile": "/k.pem",
        "ssl_min_version": TLSVersion.TLSv1_3,
    }
    assert url.ignored == ("max_connections", "socket_timeout", "protocol", "decode_responses")


@pytest.mark.parametrize("scheme", ["redis", "REDIS", "valkey", "Valkey"])
def test_one_server_by_any_scheme(scheme: str) -> None:
    assert parse_url(f"{scheme}://us@Host:1/2?db=3") == RedisUrl("", "redis://us@Host:1/2", options={"db": 3})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("colour=red", "does not know, colour"),
        ("host=elsewhere", "does not know, host"),
        ("ssl_validate_ocsp=true", "does not know, ssl_validate_ocsp"),
        ("connection_class=x", "does not know, connection_class"),
        ("ssl_cert_reqs=perhaps", "wrong ssl_cert_reqs: it must be none, optional or required"),
        ("ssl_check_hostname=perhaps", "wrong ssl_check_hostname: it must be true or false"),
        ("ssl_min_version=1.0", r"wrong ssl_min_version: it must be 1\.2 or 1\.3"),
        ("ssl_include_verify_flags=[ALL]", "wrong ssl_include_verify_flags"),
        ("ssl_keyfile=/k.pem", "ssl_keyfile without ssl_certfile"),
        ("db=zero", "wrong db: it must be a number"),
    ],
)
@pytest.mark.parametrize("start", ["rediss://host", "rediss+sentinel://host/main", "valkeys+cluster://host"])
def test_an_option_that_cannot_be(start: str, options: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_url(f"{start}?{options}")


def test_an_option_for_tls_without_tls() -> None:
    with pytest.raises(ValueError, match="ssl_ca_certs, which is for TLS: it must start with rediss://"):
        parse_url("redis://host?ssl_ca_certs=/ca.pem")


def test_a_password_with_a_question_mark_is_not_shown_as_an_option() -> None:
    with pytest.raises(ValueError, match="%3F for") as caught:
        parse_url("redis://:12?secret=more@host")
    assert "secret" not in str(caught.value)
