"""README's first commands as root in an empty Debian, which has neither Python nor PostgreSQL.

The system comes from debootstrap. Packages come from where this machine gets them, by its resolver and with its
certificates.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.effort import long_only

ROOT = Path(__file__).parents[2]
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
IN_ROOT = (
    "mount -t proc proc {root}/proc && mount --bind /dev {root}/dev && "
    "exec chroot {root} /payagent/scripts/demo {arguments}"
)
pytestmark = [
    long_only,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("debootstrap") is None, reason="it needs root and debootstrap"
    ),
]


@pytest.fixture(params=["bookworm", "trixie"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty Debian with the files of this tree in /payagent."""
    folder = tmp_path / "root"
    subprocess.run(["debootstrap", "--variant=minbase", request.param, folder], check=True)
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={folder}/payagent/"], cwd=ROOT, check=True)
    for lent in ("/etc/resolv.conf", "/etc/hosts"):
        shutil.copy(lent, folder / "etc")
    if CERTIFICATES.exists():
        shutil.copy(CERTIFICATES, folder / "certificates.pem")
    yield folder
    shutil.rmtree(folder)


def demo(root: Path, arguments: str) -> str:
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "TERM": "dumb"}
    if (root / "certificates.pem").exists():
        environ["PIP_CERT"] = "/certificates.pem"
    script = IN_ROOT.format(root=root, arguments=arguments)
    command = ["unshare", "--mount", "--propagation", "private", "bash", "-c", script]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_demo_installs_what_a_bare_debian_lacks(root: Path) -> None:
    for arguments in ("", "--fleet"):
        assert "Every step was verified." in demo(root, arguments)
