"""``page-server``, ``lazy-pages`` and ``dedup``."""

from __future__ import annotations

from ... import LazyPages, dedup, page_server, page_server_child
from ...enums import Verb
from ...errors import CriuError
from .. import image_summary, json_form, parameters, progress
from ..command import Call, Command
from ..exit_codes import Exit
from ..text import count, safe, size


@Command(
    "page-server",
    verb=Verb.PAGE_SERVER,
    help="Receive the memory pages of one dump or pre-dump on another host, and write them to "
    "the images directory.\n\n"
    "The server prints its port, serves one dump, and ends. Without --tls, any program that "
    "can connect to the port can write images: listen on loopback, or use --tls.\n\n"
    "With --lazy-pages the server sends the pages of the images to a lazy-pages daemon on "
    "another host.",
    examples=[
        "pycriu-native page-server -D ckpt --address 127.0.0.1 --port 0 --json",
        "pycriu-native page-server -D ckpt --port 2700 --tls --tls-cert cert.pem "
        "--tls-key key.pem --tls-cacert ca.pem",
        "",
        "pycriu-native dump 4242 -D local --page-server --address HOST --port 2700",
        "",
        "pycriu-native page-server -D ckpt --lazy-pages --address 127.0.0.1 --port 2700",
    ],
    params=[
        parameters.flag(
            "-d",
            "--daemon",
            help="Return when it listens; the server continues in the background.",
        ),
        parameters.pidfile_option("the page server"),
    ],
).runs
def _page_server(call: Call, daemon: bool, pidfile: str | None) -> Exit:
    parameters.check_pidfile(pidfile)
    if daemon:
        result = page_server(call.opts, via=call.via, deadline=call.deadline)
        parameters.write_pidfile(pidfile, result.pid)
        where = f"page server, pid {result.pid}, listens on port {result.port}"
        return call.out.result(result, where)
    with page_server_child(call.opts, via=call.via, deadline=call.deadline) as server:
        result = server.result
        parameters.write_pidfile(pidfile, result.pid)
        way = "come from" if call.opts.lazy_pages else "go to"
        where = f"listens on port {result.port}, pid {result.pid}; pages {way} {result.images}"
        call.out.event("listening", result, safe(where))
        with progress.shown(call.out) as on_progress:
            status = server.wait(on_progress=on_progress)
    if status:
        message = f"the page server ended with status {status} before the transfer was complete"
        raise CriuError(message, verb="page-server", log=result.log)
    images = image_summary.size_of(result.images)
    body = json_form.plain(result) | {"image_bytes": images.bytes, "image_files": images.files}
    total = f"{size(images.bytes)} in {count(images.files, 'file')}"
    return call.out.result(body, safe(f"the connection has ended; {result.images} holds {total}"))


@Command(
    "lazy-pages",
    verb=Verb.LAZY_PAGES,
    help="Send memory pages to processes that 'restore --lazy-pages' starts without memory.\n\n"
    "The daemon reads the pages from the images, or from a lazy dump on another host, and ends "
    "when it has sent all of them. Start it before the restore, with the same work directory. "
    "If it is ended earlier, the processes lack memory and will crash.",
    examples=[
        "pycriu-native lazy-pages -D ckpt &",
        "pycriu-native restore -D ckpt --lazy-pages",
        "",
        "pycriu-native lazy-pages -D ckpt --page-server --address HOST --port 2700",
    ],
    params=[parameters.pidfile_option("the daemon")],
).runs
def _lazy_pages(call: Call, pidfile: str | None) -> Exit:
    parameters.check_pidfile(pidfile)
    via = call.worker("the daemon is a separate program")
    more = {} if call.deadline is None else {"deadline": call.deadline}
    with LazyPages(call.opts, via=via, **more) as daemon:
        parameters.write_pidfile(pidfile, daemon.pid)
        images = str(call.opts.images_directory or call.opts.images_dir or "")
        body = {"pid": daemon.pid, "images": images}
        call.out.event("listening", body, f"listens, pid {daemon.pid}; restore with --lazy-pages")
        with progress.shown(call.out) as on_progress:
            status = daemon.wait(on_progress=on_progress)
    if status:
        raise CriuError(
            f"the lazy-pages daemon ended with status {status} before all memory had arrived; the "
            "restored processes lack the rest",
            verb="lazy-pages",
        )
    return call.out.result(body | {"status": status}, "all memory has arrived")


@Command(
    "dedup",
    verb=Verb.DEDUP,
    help="Remove the pages that the images replace from the images of their parents.\n\n"
    "--auto-dedup does the same during a dump. The parents can no longer be restored by "
    "themselves.",
    examples=["pycriu-native dedup -D ckpt/2"],
).runs
def _dedup(call: Call) -> Exit:
    via = call.worker("'criu dedup' is a separate program")
    result = dedup(call.opts, via=via, deadline=call.deadline)
    return call.out.result(
        result, f"removed replaced pages from the parents of {safe(result.images)}"
    )
