"""Downloads from a server on this machine: resume, checksums, refusals."""

import base64
import errno
import hashlib
import pathlib
import shutil
import subprocess
import sys
import traceback

import filelock
import pytest

from paligemma_jax.hub import download

DATA = bytes(range(250)) * 4
MD5 = hashlib.md5(DATA)
SHA256 = hashlib.sha256(DATA).hexdigest()
MD5_BASE64 = base64.b64encode(MD5.digest()).decode()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "a.npz"


def test_a_file_arrives_whole_and_alone(server, path):
    seen = []
    download.fetch(server.serve("/a", DATA), path, progress=lambda *counts: seen.append(counts))
    assert path.read_bytes() == DATA
    assert list(path.parent.iterdir()) == [path]
    assert seen == [(done, 1000) for done in range(100, 1001, 100)]


def test_a_cut_connection_goes_on_where_it_stopped(server, path):
    url = server.serve("/a", DATA, cuts=[300, 0, 250])
    download.fetch(url, path)
    assert path.read_bytes() == DATA
    assert [asked for _, asked in server.requests] == [None] + 2 * ["bytes=300-"] + ["bytes=550-"]


def test_a_later_run_goes_on_where_an_earlier_one_gave_up(server, path):
    url = server.serve("/a", DATA, cuts=[300] + download.ATTEMPTS * [0])
    with pytest.raises(download.DownloadError, match=r"was cut; 0\.0 MB are here, the same comm"):
        download.fetch(url, path)
    assert not path.exists()
    server.pages["/a"].cuts.clear()
    server.requests.clear()
    download.fetch(url, path)
    assert path.read_bytes() == DATA
    assert server.requests == [("/a", "bytes=300-")]


def test_a_file_that_changed_in_between_is_fetched_anew(server, path):
    url = server.serve("/a", b"old" * 300, cuts=[300] + download.ATTEMPTS * [0])
    with pytest.raises(download.DownloadError):
        download.fetch(url, path)
    server.serve("/a", DATA, headers={"ETag": '"v2"'})
    download.fetch(url, path)
    assert path.read_bytes() == DATA


def test_a_server_that_knows_no_ranges_sends_all_of_it_again(server, path):
    url = server.serve("/a", DATA, cuts=[300], honours_range=False)
    download.fetch(url, path)
    assert path.read_bytes() == DATA


def test_without_etag_and_date_nothing_is_resumed(server, path):
    url = server.serve("/a", DATA, cuts=[300], headers={})
    download.fetch(url, path)
    assert path.read_bytes() == DATA
    assert server.requests == [("/a", None)] * 2


def test_a_part_that_is_whole_already_is_not_asked_for(server, path):
    def interrupt(done, total):
        if done == total:
            raise KeyboardInterrupt

    url = server.serve("/a", DATA)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(url, path, progress=interrupt)
    download.fetch(url, path)
    assert path.read_bytes() == DATA
    assert server.requests == [("/a", None)]


CHECKSUMS = {
    "x-goog-hash": f"crc32c=AAAAAA==,md5={MD5_BASE64}",
    "Content-MD5": MD5_BASE64,
    "ETag": f'"{MD5.hexdigest()}"',
}


@pytest.mark.parametrize("header", CHECKSUMS)
def test_a_checksum_in_a_header_is_compared(server, path, header):
    headers = {header: CHECKSUMS[header]}
    download.fetch(server.serve("/good", DATA, headers=headers), path)
    damaged = server.serve("/bad", DATA[:-1] + b"\0", headers=headers)
    with pytest.raises(download.DownloadError, match=f"its md5 is .*, but {header} says"):
        download.fetch(damaged, path.with_name("bad.npz"))
    assert list(path.parent.iterdir()) == [path]


def test_a_checksum_is_compared_after_a_resume_too(server, path):
    headers = {"ETag": '"v1"', "Content-MD5": MD5_BASE64}
    url = server.serve("/a", DATA[:-1] + b"\0", headers=headers, cuts=[300])
    with pytest.raises(download.DownloadError, match="Content-MD5 says"):
        download.fetch(url, path)


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"5f-63b1"'},
        {"ETag": f'W/"{"0" * 32}"'},
        {"ETag": f'"{"0" * 32}"', "x-amz-server-side-encryption": "aws:kms"},
        {"Content-MD5": "not base64!"},
        {"x-goog-hash": "crc32c=AAAAAA=="},
    ],
)
def test_what_is_no_md5_is_not_taken_for_one(server, path, headers):
    download.fetch(server.serve("/a", DATA, headers=headers), path)
    assert path.read_bytes() == DATA


def test_the_checksum_of_the_address_goes_before_the_servers(server, path):
    url = server.serve("/a", DATA, headers={"ETag": f'"{"0" * 32}"'})
    download.fetch(f"{url}#sha256={SHA256.upper()}", path)
    assert path.read_bytes() == DATA
    with pytest.raises(download.DownloadError, match=r"its sha256 is .*, but the address says 000"):
        download.fetch(f"{url}#sha256={'0' * 64}", path.with_name("b.npz"))
    with pytest.raises(ValueError, match="expected #sha256= and 64 hexadecimal digits"):
        download.fetch(f"{url}#md5=12", path.with_name("b.npz"))


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final_and_carries_its_status(server, path, status):
    url = server.serve("/a", status=status)
    with pytest.raises(download.DownloadError, match=f"the server answers {status}") as error:
        download.fetch(url, path)
    assert error.value.status == status
    assert len(server.requests) == 1


def test_an_overloaded_server_is_asked_again(server, path):
    url = server.serve("/a", DATA, status=503)
    with pytest.raises(download.DownloadError, match="answers 503"):
        download.fetch(url, path)
    assert len(server.requests) == download.ATTEMPTS


def test_no_network_is_asked_about(server, path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 1)
    server.shutdown()
    server.server_close()
    with pytest.raises(download.DownloadError, match=r"refused; is there a network\?") as error:
        download.fetch(server.url + "/a", path)
    assert error.value.status is None


def test_a_server_that_is_not_there_is_not_waited_for(server, path, monkeypatch):
    tried = []
    real = download._fetch_some
    monkeypatch.setattr(download, "_fetch_some", lambda *a: tried.append(a[0]) or real(*a))
    url = server.serve("/a", DATA, cuts=[0])
    download.fetch(url, path)
    assert len(tried) == 2  # the first attempt was cut, and the server is there
    server.shutdown()
    server.server_close()
    with pytest.raises(download.DownloadError, match="refused"):
        download.fetch(url + "/b", path)
    assert len(tried) == 3


def test_a_proxy_alone_knows_whether_there_is_a_route(server, monkeypatch):
    monkeypatch.setattr(download.urllib.request, "getproxies", lambda: {"no": "localhost"})
    assert download.has_route(server.url)
    server.shutdown()
    server.server_close()
    assert not download.has_route(server.url)
    monkeypatch.setattr(download.urllib.request, "getproxies", lambda: {"https": "http://p:1"})
    assert download.has_route(server.url)


def test_too_little_space_is_an_error_before_the_data_is_fetched(server, path, monkeypatch):
    free = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"needs 1\.0 kB and .* has 0\.0 kB free") as error:
        download.fetch(server.serve("/a", DATA), path)
    assert error.value.errno == errno.ENOSPC


def test_keys_in_an_address_are_in_no_message(server, path):
    server.serve("/a", status=403)
    with_query = server.url + "/a?token=SECRET"
    with_user = with_query.replace("//", "//user:SECRET@") + "#SECRET"
    assert download.public(with_user) == server.url + "/a"
    for url in (with_query, with_user):
        with pytest.raises((download.DownloadError, ValueError)) as error:
            download.fetch(url, path)
        assert "SECRET" not in "".join(traceback.format_exception(error.value))


# Servers that do not come to an end


def test_a_file_of_unknown_size_arrives_with_progress(server, path):
    url = server.serve("/a", DATA, says_size=False)
    seen = []
    download.fetch(url, path, progress=lambda *counts: seen.append(counts))
    assert path.read_bytes() == DATA
    assert seen[-1] == (1000, 0)


@pytest.mark.parametrize(
    ("name", "most"), [("a.model", "MOST_BYTES"), ("a.npz", "MOST_BYTES_OF_LARGE")]
)
def test_a_server_that_never_stops_is_left_and_nothing_of_it_kept(
    server, tmp_path, monkeypatch, name, most
):
    url = server.serve("/a", DATA, every_s=0)
    monkeypatch.setattr(download, most, 5_000_000)
    message = r"/a: the server does not say how large it is, and after 5\.0 MB .* give its path"
    seen = []
    with pytest.raises(download.DownloadError, match=message):
        download.fetch(url + "?key=SECRET", tmp_path / name, progress=lambda *n: seen.append(n))
    assert not list(tmp_path.iterdir())
    assert seen and {total for _, total in seen} == {0}


def test_a_server_that_never_stops_does_not_fill_the_disk(server, path, monkeypatch):
    free = shutil.disk_usage("/")._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(download.DownloadError, match=r"at most 3\.0 MB and"):
        download.fetch(server.serve("/a", DATA, every_s=0), path)
    assert not list(path.parent.iterdir())


def test_after_a_deadline_a_file_of_unknown_size_is_given_up(server, path, monkeypatch):
    monkeypatch.setattr(download, "MOST_S", 0.2)
    with pytest.raises(download.EndlessError, match=r"in 0 s there is no end \(at most"):
        download.fetch(server.serve("/a", DATA, every_s=0.01), path)


@pytest.mark.parametrize("says_size", [True, False])
def test_a_server_that_sends_next_to_nothing_is_given_up(server, path, monkeypatch, says_size):
    monkeypatch.setattr(download, "LEAST_WITHIN_S", 0.2)
    headers = {"ETag": '"v1"'} | ({"Content-Length": "1000000"} if says_size else {})
    url = server.serve("/a", b"x", every_s=0.01, headers=headers)
    with pytest.raises(download.DownloadError, match=r"sent \d+ bytes in 0 s; try again later"):
        download.fetch(url, path)
    assert not path.exists()


# Several processes


FETCH = """
import pathlib, sys
from paligemma_jax.hub import addresses

path = addresses.resolve(sys.argv[1], cache_dir=sys.argv[2])
print(path.read_bytes() == bytes(range(250)) * 4)
"""


def test_processes_that_want_the_same_file_fetch_it_once(server, tmp_path):
    url = server.serve("/a.npz", DATA, cuts=[300])
    command = [sys.executable, "-c", FETCH, url, str(tmp_path)]
    root = pathlib.Path(__file__).parents[2]
    started = [
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in started] == ["True"] * 2
    # One process asked, and went on where it was cut.
    assert [asked for _, asked in server.requests] == [None, "bytes=300-"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.npz"]


def test_who_waits_reports_how_far_the_other_process_is(server, path):
    server.serve("/a", DATA, cuts=[300] + download.ATTEMPTS * [0])
    with pytest.raises(download.DownloadError):
        download.fetch(server.url + "/a", path)
    seen, lock = [], filelock.FileLock(f"{path}.part.lock", thread_local=False)

    def look(*counts):
        seen.append(counts)
        lock.release()

    lock.acquire()
    with download.alone(path, look):
        assert seen == [(300, 1000)]


def test_a_fetch_that_failed_leaves_the_way_free(path):
    with pytest.raises(ZeroDivisionError), download.alone(path):
        raise ZeroDivisionError
    with download.alone(path):
        path.write_bytes(DATA)
    assert list(path.parent.iterdir()) == [path]
