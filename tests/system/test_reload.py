"""SIGHUP: other keys and another certificate, without a restart."""

import os
import signal
import ssl
import time
from pathlib import Path

import httpx
from certificates import make_pair, needs_openssl
from command_process import ready_server

WAIT_S = 30


def status(url: str, key: str, trust: ssl.SSLContext) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{url}/v1/models", headers=headers, verify=trust, timeout=10).status_code


@needs_openssl
def test_keys_and_certificate_are_read_again(tmp_path: Path) -> None:
    keys, log = tmp_path / "keys", tmp_path / "log"
    keys.write_text("old-key\n")
    pair = make_pair(tmp_path)
    trusts_old = ssl.create_default_context(cafile=pair.certificate)
    arguments = (
        *("--engine=null", "--mixed=1", f"--api-keys={keys}"),
        *(f"--tls-cert={pair.certificate}", f"--tls-key={pair.key}"),
    )
    keyless = {name: value for name, value in os.environ.items() if name != "SPLITWISE_API_KEY"}
    with ready_server(*arguments, log=log, environment=keyless) as (process, url):

        def hang_up(words: str) -> None:
            seen = log.read_text().count(words)
            process.send_signal(signal.SIGHUP)
            deadline_s = time.monotonic() + WAIT_S
            while log.read_text().count(words) == seen:
                assert time.monotonic() < deadline_s, log.read_text()
                time.sleep(0.02)  # another process's log can only be polled

        assert status(url, "old-key", trusts_old) == 200
        keys.write_text("# nobody\n")
        hang_up("holds no API key")
        assert status(url, "old-key", trusts_old) == 200
        keys.write_text("new-key\n")
        trusts_new = ssl.create_default_context(cafile=make_pair(tmp_path).certificate)
        hang_up("are read again")
        assert status(url, "old-key", trusts_new) == 401
        assert status(url, "new-key", trusts_new) == 200
