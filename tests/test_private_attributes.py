"""What we use of the insides of uvicorn, starlette, websockets and redis-py. An upgrade that removes or renames a part
fails here, with a sentence that names it and our file, before it fails somewhere else in a stranger way.

A part that stays may change its meaning: that is for the tests of the file that uses it.
"""

import ast
import inspect
import textwrap
import tomllib
from collections.abc import Callable, Coroutine
from operator import attrgetter
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn
from unittest.mock import DEFAULT, Mock

import pytest
import uvicorn
from starlette import routing
from starlette.applications import Starlette

ROOT = Path(__file__).resolve().parents[1]
BOUNDED = ("redis", "starlette", "uvicorn")

HTTP_PROTOCOL = "common/http/http_protocol.py"
WEBSOCKET_PROTOCOL = "common/http/websocket_protocol.py"
SERVER_STATE = "common/http/server_state.py"
SERVER = "common/http/server.py"
LINK = "common/store/connections/link.py"
SUBSCRIPTION = "common/store/connections/subscription.py"
ERRORS = "common/store/connections/errors.py"
DIAL = "common/store/connections/dial.py"
CLUSTER = "common/store/connections/cluster.py"


# -- instances of theirs, because some attributes are only there


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Never run."""


def connection(kind: str, first: bytes) -> Any:
    """One of uvicorn's protocols, with a request under way that no app is asked."""

    def no_task(coroutine: Coroutine[Any, Any, None]) -> Any:
        coroutine.close()
        return DEFAULT

    loop = Mock(**{"create_task.side_effect": no_task})
    transport = Mock(**{"get_extra_info.return_value": None})
    protocol = resolve_name(kind)(uvicorn.Config(app, log_config=None), server_state(), {}, loop)
    protocol.connection_made(transport)
    protocol.data_received(first)
    return protocol


def http_connection() -> Any:
    request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    return connection("uvicorn.protocols.http.httptools_impl:HttpToolsProtocol", request)


def web_socket() -> Any:
    request = (
        b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    kind = "uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol"
    return connection(kind, request)


def handshake() -> Any:
    return resolve_name("websockets.server:ServerProtocol")()


def server_state() -> Any:
    return resolve_name("uvicorn.server:ServerState")()


def server() -> Any:
    return uvicorn.Server(uvicorn.Config(app, log_config=None))


def redis_connection() -> Any:
    return resolve_name("redis.asyncio:Connection")()


def moved() -> Any:
    return resolve_name("redis.exceptions:MovedError")("1 localhost:6379")


# -- the tables

#: our file, a module or an instance, and what we use, override or set there
USED: list[tuple[str, str | Callable[[], Any], str]] = [
    (HTTP_PROTOCOL, "uvicorn.protocols.http.httptools_impl", "HttpToolsProtocol"),
    (
        HTTP_PROTOCOL,
        http_connection,
        "connection_made data_received connection_lost pause_writing resume_writing "
        "on_url on_headers_complete on_message_complete on_response_complete "
        "_unset_keepalive_if_required _should_upgrade handle_websocket_upgrade "
        "connections headers loop scope server_state timeout_keep_alive_task transport url "
        "cycle.more_body cycle.response_complete cycle.response_started cycle.scope cycle.keep_alive "
        "flow.read_paused pipeline.popleft "
        "parser.feed_data parser.get_http_version parser.get_method parser.set_dangerous_leniencies parser.should_upgrade",
    ),
    (WEBSOCKET_PROTOCOL, "uvicorn.protocols.websockets.websockets_sansio_impl", "WebSocketsSansIOProtocol"),
    (
        WEBSOCKET_PROTOCOL,
        web_socket,
        "connection_made data_received connection_lost pause_writing resume_writing "
        "handle_connect handle_cont handle_ping handle_parser_exception "
        "send_receive_event_to_app on_task_complete keepalive_timeout "
        "close_sent curr_msg_data_type frames handshake_initiated logger scope transport "
        "response.headers response.serialize response.status_code writable.is_set writable.wait "
        "conn.data_to_send conn.fail conn.handshake_exc conn.reject",
    ),
    (WEBSOCKET_PROTOCOL, "websockets.frames", "CloseCode.INVALID_DATA CloseCode.POLICY_VIOLATION Frame"),
    (WEBSOCKET_PROTOCOL, "websockets.http11", "Request Response"),
    (WEBSOCKET_PROTOCOL, "websockets.server", "ServerProtocol"),
    (WEBSOCKET_PROTOCOL, handshake, "reject"),
    (SERVER_STATE, "uvicorn.server", "ServerState"),
    (SERVER_STATE, server_state, "connections"),
    (SERVER, server, "capture_signals should_exit server_state"),
    (SERVER, http_connection, "cycle.keep_alive transport.abort"),
    (SERVER, web_socket, "transport.abort"),
    ("gateway/app.py", Starlette, "router.redirect_slashes"),
    ("gateway/security.py", Starlette, "routes"),
    ("gateway/security.py", "starlette.routing", "BaseRoute.matches Match.NONE"),
    (LINK, "redis.crc", "key_slot"),
    (LINK, "redis.asyncio", "Connection"),
    (LINK, redis_connection, "disconnect is_connected read_response"),
    (DIAL, "redis.asyncio", "Connection SSLConnection"),
    (DIAL, "redis.exceptions", "ConnectionError InvalidResponse TimeoutError"),
    (DIAL, redis_connection, "connect disconnect host port read_response send_packed_command"),
    (DIAL, "redis.asyncio.connection", "parse_url"),
    (DIAL, "redis.asyncio.retry", "Retry"),
    (DIAL, "redis.backoff", "NoBackoff"),
    (DIAL, "hiredis", "pack_command"),
    (CLUSTER, moved, "host port"),
    (
        ERRORS,
        "redis.exceptions",
        "AskError AuthenticationError AuthorizationError BusyLoadingError ClusterDownError ConnectionError MovedError "
        "NoPermissionError OutOfMemoryError ReadOnlyError RedisError ResponseError TimeoutError TryAgainError",
    ),
    ("common/store/script.py", "redis.exceptions", "NoScriptError"),
    ("common/store/claims.py", "redis.exceptions", "NoScriptError"),
]

#: our file, a function or class, and the parameters that are passed to it by name
PASSED = [
    (
        SERVER,
        "uvicorn:Config",
        "http ws loop lifespan log_config access_log server_header proxy_headers timeout_keep_alive ws_max_size "
        "ws_ping_interval ws_ping_timeout ws_per_message_deflate",
    ),
    ("gateway/service.py", "uvicorn:Server.serve", "sockets"),
    ("processor/service.py", "uvicorn:Server.serve", "sockets"),
    (
        WEBSOCKET_PROTOCOL,
        "uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol",
        "server_state",
    ),
    (WEBSOCKET_PROTOCOL, "websockets.server:ServerProtocol", "max_size logger"),
    (DIAL, "redis.asyncio:Connection", "host port protocol socket_timeout retry legacy_responses"),
    (DIAL, "redis.asyncio:Connection", "username password db"),
    (
        "common/store/connections/url_options.py",
        "redis.asyncio:SSLConnection",
        "ssl_cert_reqs ssl_check_hostname ssl_ca_certs ssl_ca_path ssl_ca_data ssl_certfile ssl_keyfile ssl_password "
        "ssl_ciphers ssl_min_version ssl_include_verify_flags ssl_exclude_verify_flags",
    ),
    (DIAL, "redis.asyncio:Connection.send_packed_command", "check_health"),
    (DIAL, "redis.asyncio:Connection.disconnect", "nowait"),
    (DIAL, "redis.asyncio:Connection.read_response", "disable_decoding timeout"),
    (LINK, "redis.asyncio:Connection.disconnect", "nowait"),
    (SUBSCRIPTION, "redis.asyncio:Connection.read_response", "disable_decoding timeout disconnect_on_error"),
]

#: our file, a class, and what of it must stay a subclass: the file names only the class
CAUGHT = [
    (ERRORS, "ConnectionError", "BusyLoadingError"),
    (ERRORS, "AskError", "MovedError"),
    (ERRORS, "ClusterDownError", "MasterDownError"),
    (
        ERRORS,
        "ResponseError",
        "AskError ClusterDownError NoPermissionError NoScriptError OutOfMemoryError ReadOnlyError TryAgainError",
    ),
]

#: our subclass, and the instance of theirs whose row must have all that it inherits, and nothing else
SUBCLASSES = [
    ("common.http.http_protocol:JsonHttpProtocol", http_connection),
    ("common.http.websocket_protocol:JsonWebSocketProtocol", web_socket),
    ("common.http.websocket_protocol:_JsonHandshake", handshake),
    ("common.http.server_state:SharedServerState", server_state),
    ("common.http.server:Server", server),
]


def gone(file: str, owner: str, part: str) -> NoReturn:
    pytest.fail(f"{owner} has no {part} any more, and {file} needs it: repair that file, then this table.")


def find(file: str, name: str) -> Any:
    """A module, or something of theirs in one."""
    try:
        return resolve_name(name)
    except (ImportError, AttributeError):
        return gone(file, name.partition(".")[0].partition(":")[0], name)


def has(owner: Any, path: str) -> bool:
    try:
        attrgetter(path)(owner)
    except AttributeError:
        return False
    return True


def test_our_files_are_there() -> None:
    assert not [file for file, *_ in (*USED, *PASSED, *CAUGHT) if not (ROOT / file).is_file()]


def short(value: Any) -> str | None:
    """A row's words in the name of its test."""
    return value.partition(" ")[0] if isinstance(value, str) else None


@pytest.mark.parametrize(("file", "owner", "paths"), USED, ids=short)
def test_the_parts_that_we_use_are_there(file: str, owner: str | Callable[[], Any], paths: str) -> None:
    if isinstance(owner, str):
        found, name = find(file, owner), owner
    else:
        found = owner()
        name = f"{type(found).__module__}.{type(found).__name__}"
    for path in paths.split():
        if not has(found, path):
            gone(file, name, path)


@pytest.mark.parametrize(("file", "function", "names"), PASSED, ids=short)
def test_the_parameters_that_we_pass_by_name_are_there(file: str, function: str, names: str) -> None:
    found = find(file, function)
    # a class passes on to its bases what it does not take itself
    takers = inspect.getmro(found) if isinstance(found, type) else [found]
    taken = {name for taker in takers for name in inspect.signature(taker).parameters}
    for name in names.split():
        if name not in taken:
            gone(file, function, f"parameter {name}")


@pytest.mark.parametrize(("file", "kind", "names"), CAUGHT, ids=short)
def test_errors_are_still_of_the_kind_that_we_catch(file: str, kind: str, names: str) -> None:
    caught = find(file, f"redis.exceptions:{kind}")
    for name in names.split():
        if not issubclass(find(file, f"redis.exceptions:{name}"), caught):
            gone(file, kind, f"subclass {name}")


@pytest.mark.parametrize(("ours", "theirs"), SUBCLASSES)
def test_the_table_has_exactly_what_our_subclasses_inherit(ours: str, theirs: Callable[[], Any]) -> None:
    kind, base = resolve_name(ours), theirs()
    names = set(vars(kind)) | {
        node.attr
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind))))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()")
    }
    rows = [paths.split() for _, owner, paths in USED if owner is theirs]
    listed = {path.partition(".")[0] for row in rows for path in row}
    inherited = {name for name in names if not name.startswith("__") and hasattr(base, name)}
    assert inherited == listed, f"the row of {theirs.__name__} is not what {ours} uses"


# -- what a name does not show


def test_uvicorn_queues_the_newest_request_on_the_left() -> None:
    """`JsonHttpProtocol._refuse` takes back the last one."""
    protocol = http_connection()
    for _ in range(2):
        protocol.data_received(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert protocol.pipeline[0][0] is protocol.cycle
    assert protocol.cycle.scope is protocol.scope


def test_uvicorn_offers_the_extensions_that_we_use() -> None:
    """`gateway/security.py` refuses a handshake with an answer, `JsonWebSocketProtocol` adds an extension."""
    extensions = web_socket().scope["extensions"]
    assert isinstance(extensions, dict)
    assert "websocket.http.response" in extensions


def test_redis_py_names_the_class_that_a_url_needs() -> None:
    """`common/store/connections/dial.py` makes the connection itself."""
    assert "connection_class" in resolve_name("redis.asyncio.connection:parse_url")("unix:///socket")


def test_starlette_hands_an_object_the_raw_request() -> None:
    """All of our endpoints are such objects; `gateway/observed.py` asks them for their route."""

    class Endpoint:
        __call__ = staticmethod(app)

    endpoint = Endpoint()
    route = routing.Route("/predict/{prediction_id}", endpoint, methods=["PUT"])
    assert route.app is endpoint
    scope = {"type": "http", "path": "/predict/x", "method": "PUT"}
    found = {"endpoint": endpoint, "path_params": {"prediction_id": "x"}}
    assert route.matches(scope) == (routing.Match.FULL, found)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_library_whose_insides_we_use_has_an_upper_bound(name: str) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (entry,) = [entry for entry in dependencies if entry.startswith(name)]
    assert ",<" in entry, f"give {name} an upper bound in pyproject.toml: we use its insides"
