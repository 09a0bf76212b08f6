"""Create the Secret `redis` with a random password, unless there is one. Runs once, in the pod of password.yaml.

Its keys: `password`; `url`, what belongs into REDIS_URL; `valkey.conf`, the line that the server reads. Nothing of it is
printed. Standard library only: any image with Python will do.
"""

import json
import os
import secrets
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
TRIES, PAUSE_S = 30, 2.0  # roles and network policies may reach their enforcers after this pod has started


def secret(namespace: str) -> dict[str, object]:
    password = secrets.token_hex(32)  # letters and digits only: it stands in a URL, too
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "redis",
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "foretell"},
        },
        "stringData": {
            "password": password,
            "url": f"redis://:{password}@redis:6379/0",
            "valkey.conf": f"requirepass {password}\n",
        },
    }


def create(body: bytes, namespace: str) -> str:
    """One try. Raises OSError (an HTTPError too) when it should be tried again."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    address = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(
        f"https://{address}:{port}/api/v1/namespaces/{namespace}/secrets",
        data=body,
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=5, context=trust):
            return "The Secret redis has been created."
    except urllib.error.HTTPError as error:
        if error.code == 409:
            return "The Secret redis is there already: nothing to do."
        raise


def main() -> int:
    namespace = (ACCOUNT / "namespace").read_text().strip()
    body = json.dumps(secret(namespace)).encode()  # the same at every try
    for _ in range(TRIES):
        try:
            print(create(body, namespace), flush=True)
            return 0
        except OSError as error:
            print(f"The API server did not create the Secret redis: {error}. Trying again.", flush=True)
            time.sleep(PAUSE_S)
    return 1


if __name__ == "__main__":
    sys.exit(main())
