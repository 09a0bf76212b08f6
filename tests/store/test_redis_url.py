"""What REDIS_URL may say, and what is said of a wrong one."""

import pytest

from common.store.connections.redis_url import parse_url


@pytest.mark.parametrize(
    ("url", "says"),
    [
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
    assert url.plain == "rediss://us%40er:pa%3Ass@localhost/3?ssl_ca_certs=%2Fca.pem"
