"""/metrics: one snapshot of the node's counters, in Prometheus' words.

Rules of this room
  1. A collector over `Facts`, in a registry of its own: nothing global, nothing counted here.
  2. Counters end in _total there and here; all names begin with relay_.
  3. Labels are bounded: `mount` by streams_max, `shard` by the threads, `upstream` by 8.
  4. Histograms are the node's, not the shards': 64 × 85 series would tell nothing more.
  5. What is in no table below is not exposed; docs/http-api.md tells the same (a test sees to it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from relay.web.facts import Facts, StreamFacts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# --- what each metric tells ----------------------------------------------------------------------

_NODE = {
    "listeners": "Listeners attached now, without relays.",
    "listeners_max": "Listeners that fit at once.",
    "listeners_streamed": "Listeners beside these whom the host's own server serves now.",
    "listeners_streamed_total": "Of those, all so far.",
    "relays": "Servers attached now that pass a stream on (Icecast, Relay); not among listeners.",
    "pulls": "Mounts whose stream is fetched over HTTP.",
    "pulls_up": "Of these, those that have audio now.",
    "pull_attempts_total": "Attempts to fetch a stream.",
    "pull_failures_total": "Attempts that failed, and streams that broke off.",
    "pull_redirects_total": "Redirects followed.",
    "pull_loops_total": "Attempts refused because they led back to this node.",
    "pull_received_bytes_total": "Bytes fetched, title blocks among them.",
    "callout_allowed_total": "Listeners that listener_add let in.",
    "callout_denied_total": "Listeners that it refused.",
    "callout_outages_total": "Listeners about whom it did not answer: on_outage decided.",
    "callout_limited_total": "Listeners ended since their time was over.",
    "callout_notes_total": "Call-outs about somebody who left, or a mount, that were taken.",
    "callout_notes_failed_total": "Of these, those that nobody took.",
    "callout_notes_dropped_total": "Of these, those that found no room in the queue.",
    "yp_listed": "Entries of this node in directories now.",
    "yp_added_total": "Entries that directories took.",
    "yp_touched_total": "Entries that were renewed.",
    "yp_removed_total": "Entries that were taken back.",
    "yp_failures_total": "Times that a directory was not there, or refused.",
    "record_files_total": "Recordings that were finished.",
    "record_bytes_total": "Bytes written to recordings.",
    "record_frames_total": "Frames written to recordings.",
    "record_missed_frames_total": "Frames that recordings lack: the disk was slow, full or away.",
    "record_errors_total": "Times that the disk refused a recording something.",
    "record_deleted_total": "Recordings deleted, since there were too many or they were too old.",
    "streams": "Streams that this node knows now.",
    "upstream_up": "1 while an upstream node is heard; absent on a node without one.",
    "directory_known": "1 once the upstream has told which streams it has; absent without one.",
    "heads": "Connections now whose request head is not whole yet.",
    "pages_waiting": "Connections now in the queue to the pages.",
    "sources_waiting": "Connections now in the queue to the source door.",
    "retired": "Pieces of memory now that wait for the last reader to leave.",
    "source_connections": "Connections now at the source door, sources and others.",
    "accepts_total": "Connections accepted.",
    "joins_total": "Listeners that got a stream.",
    "sends_total": "Sends to listeners.",
    "sent_bytes_total": "Bytes sent to listeners.",
    "short_writes_total": "Sends of which a listener's socket took only a part.",
    "skips_total": "Times that a lagging listener skipped to newer audio.",
    "gaps_source_total": "Gaps that listeners could hear, by the fault of a source.",
    "gaps_hop_total": "The same, since frames did not come from an upstream.",
    "gaps_own_overload_total": "The same, since this node was too busy or stood still.",
    "gaps_listener_total": "The same, since listeners were too slow themselves.",
    "recorder_washed_total": "Records of the last ten minutes that newer ones have overwritten.",
    "fallbacks_total": "Times that a listener went over to a fallback.",
    "returns_total": "Times that a listener came back from a fallback.",
    "moves_total": "Listeners that an administrator moved to another mount.",
    "handovers_total": "Connections handed on to pages or the source door.",
    "redirects_total": "Listeners sent to another node, since this one was full or going down.",
    "heads_expired_total": "Connections ended because their head took too long.",
    "heads_evicted_total": "Connections ended because too many heads were unfinished.",
    "parked_ended_total": "Connections that ended while they waited for their stream.",
    "probes_total": "Requests for a few bytes, such as Safari's before it plays.",
    "anchors_given_total": "Listeners sent to the place at which they begin.",
    "anchors_lost_total": "Listeners that named a place and were skipped, or moved to a fallback.",
    "anchored_exact_total": "Joins that began exactly at the byte that they asked for.",
    "anchored_old_total": "Joins for a byte that has left the ring or was lost; live instead.",
    "anchored_ahead_total": "Joins for a byte that did not come in time; live instead.",
    "anchored_epoch_total": "Joins for a byte of an epoch that is not here; live instead.",
    "ended_closed_total": "Listeners that closed their connection.",
    "ended_reset_total": "Listeners whose connection was reset.",
    "ended_stalled_total": "Listeners ended because they took no byte for stall_ms.",
    "ended_torn_total": "Listeners ended because the ring overtook what was being sent.",
    "ended_stream_total": "Listeners ended because their stream was removed.",
    "ended_garbage_total": "Listeners ended because they kept sending bytes.",
    "ended_shutdown_total": "Listeners ended because this node went down.",
    "ended_memory_total": "Listeners ended because memory was short.",
    "ended_killed_total": "Listeners ended by an administrator.",
    "refused_not_found_total": "Requests for a mount that is not here.",
    "refused_full_total": "Listeners refused because the node or the mount was full.",
    "refused_upstream_total": "Listeners refused because the upstream was away.",
    "refused_malformed_total": "Requests that were no request of HTTP/1.",
    "refused_too_large_total": "Requests whose head or path was too long.",
    "refused_method_total": "Requests with a method that a mount does not take.",
    "refused_busy_total": "Requests refused because a queue was full or the node went down.",
    "refused_descriptors_total": "Connections refused because no descriptor was left.",
    "page_displaced_total": "Connections to pages ended because too many were open.",
    "followers": "Connections now that server-sent events of a stream are told on.",
    "followers_dropped_total": "Of these, those that were ended because they did not read.",
    "source_probes_total": "Requests of encoders that asked without a password first.",
    "source_refused_password_total": "Sources refused for their user or password.",
    "source_refused_method_total": "Requests at the source door with another method.",
    "source_refused_400_total": "Sources refused for their request, mount or missing type.",
    "source_refused_403_total": "Sources refused because the mount was in use.",
    "source_refused_410_total": "Framed sources refused because their epoch has lost.",
    "source_refused_415_total": "Sources refused for their content type.",
    "source_refused_431_total": "Sources refused for a head that was too long.",
    "source_refused_501_total": "Sources refused for a transfer coding other than chunked.",
    "source_broken_total": "Sources ended because they sent something else than promised.",
    "source_no_audio_total": "Sources that ended without having sent one frame.",
    "source_silent_total": "Sources ended because they sent no audio for source_timeout_s.",
    "source_displaced_total": "Connections at the source door ended because too many waited.",
}
_BACKBONE = {
    "received_messages_total": "Messages from upstreams.",
    "received_bytes_total": "Bytes from upstreams.",
    "received_frames_total": "Frames from upstreams, those that were here already too.",
    "sent_messages_total": "Runs published, whatever the number of children.",
    "sent_bytes_total": "Bytes published, whatever the number of children.",
    "sent_frames_total": "Frames published, whatever the number of children.",
    "beacons_sent_total": "Signs of life sent to children.",
    "beacons_received_total": "Signs of life heard from upstreams.",
    "joins_asked_total": "Requests for a stream's tail.",
    "repairs_asked_total": "Requests for missing frames.",
    "backfills_asked_total": "Requests for frames from before a stream's base.",
    "answers_later_total": "Answers of an upstream that it has not got it yet.",
    "answers_gone_total": "Answers of an upstream that it has it no more.",
    "timeouts_total": "Requests that an upstream did not answer.",
    "redials_total": "Connections made anew because nothing was heard on them.",
    "wishes_asked_total": "Wishes to upstreams to go on above the epoch of a silent source.",
    "wishes_heard_total": "The same wishes, of children.",
    "endless_total": "Connections that were cut for a message without an end.",
    "deferred_total": "Requests of children put off: they have not read their answers yet.",
    "requests_total": "Requests of children.",
    "told_here_total": "Answers to children with frames.",
    "told_later_total": "Answers to children that it is not here yet.",
    "told_gone_total": "Answers to children that it is here no more.",
    "told_unknown_total": "Answers to children that there is no such stream here.",
    "unsent_total": "Answers that found a child's queue full.",
    "overtaken_total": "Runs that the ring overwrote while they were packed.",
    "unwanted_messages_total": "Messages of streams that this node does not take.",
    "early_frames_total": "Frames further ahead than the ring reaches, fetched later.",
    "mount_conflicts_total": "Upstream streams whose mount has a source on this node.",
    "pages_asked_total": "Requests for a part of an upstream's directory.",
    "upstreams_lost_total": "Times that an upstream was lost.",
    "switches_total": "Times that an upstream was another node than before.",
    "moves_total": "Times that a stream went over to another upstream.",
    "shadowed_total": "Sources elsewhere whose epoch lost against a higher one of the mount.",
    "lost_gone_frames_total": "Missing frames given up because no upstream has them any more.",
    "lost_wait_frames_total": "Missing frames given up because they did not come in time.",
    "lost_outage_frames_total": "Missing frames given up because the ring did not reach so far.",
    "loops_total": "Times that an upstream led back here.",
    "turns_total": "Turns of the backbone thread.",
    "expelled_total": "Children cut for what they subscribed to, each time.",
    "crowded_total": "Connections cut because their child had too many to one port.",
    "silent_total": "Connections of children cut because too many brought no message.",
    "refused_total": "Messages refused, whatever the reason.",
    "refused_short_total": "Messages refused because their fields end too early or too late.",
    "refused_version_total": "Messages refused for their protocol version.",
    "refused_kind_total": "Messages refused for a kind that nobody may send here.",
    "refused_size_total": "Messages refused for their length.",
    "refused_field_total": "Messages refused for a value out of bounds.",
    "refused_text_total": "Messages refused for text that does not belong there.",
    "refused_topic_total": "Subscriptions refused because they are no topic of ours.",
    "refused_full_total": "Messages refused because a bound of this node was reached.",
    "handshakes_total": "Children let in by their key.",
    "handshakes_refused_total": "Handshakes refused, whatever the reason; 0 without keys.",
    "handshakes_refused_key_total": "Handshakes refused for a key that is not listed.",
    "handshakes_refused_turned_away_total": "Handshakes of children that were cut a moment ago.",
    "handshakes_refused_often_total": "Handshakes of children that came too often.",
    "handshakes_refused_none_total": "Handshakes refused because they showed no key.",
    "handshakes_refused_broken_total": "Handshakes that were none, or for another node's key.",
    "handshakes_refused_unfinished_total": "Handshakes that were not finished in 5 s.",
}
_UPSTREAM = {
    "alive": "1 while this upstream is heard.",
    "sign_age_ms": "Time since its last sign of life.",
    "feeds": "Streams that come from it now.",
    "load": "Share of its backbone thread's time that was taken, per mille.",
    "lost_total": "Times that it was lost.",
}
_SHARD = {
    "listeners": "Listeners attached to this shard now.",
    "turns_total": "Turns of this shard.",
    "busy_us_total": "Time that this shard worked, µs.",
    "busy_percent": "Share of its last 100 ms in which this shard worked, %.",
    "late_us_max": "The furthest that this shard ever fell behind a listener's slot, µs.",
    "behind_us_total": "Time by which all listeners were put off because there were too many, µs.",
    "pace_ms": "How often this shard serves a listener now, where pace_ms is auto, ms.",
    "pace_changes_total": "Times that this shard chose another pace.",
    "pace_moves_total": "Listeners that took another pace.",
}
_MEASURED = {  # of Engine.snapshot()["measured"]: name and what it tells
    "join": ("join_seconds", "From accepting a listener to its first audio."),
    "lateness": ("lateness_seconds", "From a frame's arrival in this node's ring to its sending."),
    "gap": ("gap_seconds", "Between two sends of audio to one listener."),
    "skip": ("skip_seconds", "Media time that a skip left out."),
    "busy": ("busy_percent", "Share of 100 ms in which a shard worked, %."),
}
_STREAM = {
    "received_bytes_total": "Bytes of audio that came in.",
    "received_frames_total": "Frames that came in.",
    "epochs_total": "Runs of a source that began.",
    "duplicates_total": "Frames that were here already.",
    "refused_frames_total": "Frames that contradicted the ring.",
    "repaired_frames_total": "Missing frames that came after all.",
    "lost_frames_total": "Missing frames that were given up.",
    "lost_runs_total": "Holes that were given up.",
    "lost_gone_frames_total": "Of these, frames that no upstream has any more.",
    "lost_wait_frames_total": "Of these, frames that did not come in time.",
    "lost_outage_frames_total": "Of these, frames of an outage longer than the ring.",
    "titles_total": "Titles set.",
    "junk_bytes_total": "Bytes between frames that were left out.",
    "sent_bytes_total": "Bytes sent to listeners.",
    "joins_total": "Listeners that joined.",
    "skips_total": "Times that a lagging listener skipped to newer audio.",
    "drops_total": "Listeners that were ended from this side.",
    "fallbacks_total": "Times that one of its listeners went over to a fallback.",
    "returns_total": "Times that one of its listeners came back from a fallback.",
}
_STREAM_GAUGES: dict[str, tuple[str, Callable[[StreamFacts], float | None]]] = {
    "stream_live": (
        "1 while the stream has a source, here or upstream.",
        lambda s: float(s.state in ("live", "ready")),
    ),
    "stream_listeners": ("Listeners attached now.", lambda s: s.listeners),
    "stream_fallback_listeners": (
        "Listeners of the mount that hear a fallback now.",
        lambda s: s.fallback_listeners,
    ),
    "stream_lag_ms": (
        "Media time that upstream has sent and that is not whole here.",
        lambda s: s.lag_ms,
    ),
    "stream_held_ms": ("Media time in the ring.", lambda s: s.held_ms),
    "stream_bitrate_bps": ("Bit rate over the epoch, bit/s.", lambda s: s.bitrate_bps),
    "stream_hops": ("Links between the origin and this node.", lambda s: s.hops),
    "stream_origin_lag_ms": (
        "Age of the newest frame by the origin's clock, if its source plays in real time.",
        lambda s: s.origin_lag_ms,
    ),
    "stream_switches_total": ("Times that another upstream took over.", lambda s: s.switches),
    "stream_head_position": ("Position after the newest frame.", lambda s: s.head_position),
    "stream_head_sequence": ("Sequence after the newest frame.", lambda s: s.head_sequence),
}


def metric(name: str, help_: str, labels: tuple[str, ...] = ()) -> Metric:
    """An empty family: a counter when its name ends in _total, else a gauge."""
    if name.endswith("_total"):
        return CounterMetricFamily(f"relay_{name}", help_, labels=labels)
    return GaugeMetricFamily(f"relay_{name}", help_, labels=labels)


def numbers(values: dict[str, Any]) -> Iterable[tuple[str, float]]:
    """The plain numbers among these, and truth as 0 or 1."""
    for name, value in values.items():
        if isinstance(value, bool | int | float):
            yield name, float(value)


class NodeCollector:
    """Turns facts into metrics whenever somebody scrapes."""

    def __init__(self, facts: Callable[[], Facts]) -> None:
        self._facts = facts

    def collect(self) -> Iterable[Metric]:
        """All families of one moment."""
        facts = self._facts()
        node = metric("node_info", "Which node this is.", ("name", "id", "version"))
        node.add_metric([facts.name, facts.id, facts.version], 1.0)  # type: ignore[attr-defined]
        yield node
        yield _single("uptime_s", "Seconds since the start.", facts.uptime_s)
        yield _single("insecure", "1 where the backbone is open to anyone.", float(facts.insecure))
        backbone = {f"backbone_{name}": help_ for name, help_ in _BACKBONE.items()}
        counters = dict(numbers(facts.counters))
        for name, help_ in (_NODE | backbone).items():
            if name in counters:
                yield _single(name, help_, counters[name])
        yield from _labelled("shard_", "shard", _SHARD, _shards(facts))
        yield from _labelled("upstream_", "upstream", _UPSTREAM, _upstreams(facts))
        for name, (called, help_) in _MEASURED.items():
            if name in facts.measured:
                yield _histogram(called, help_, facts.measured[name])
        of_streams = {stream.mount: stream.counters for stream in facts.streams}
        yield from _labelled("stream_", "mount", _STREAM, of_streams)
        yield _gaps(facts.streams)
        for name, (help_, read) in _STREAM_GAUGES.items():
            known = ((s.mount, read(s)) for s in facts.streams)
            told = {mount: value for mount, value in known if value is not None}
            yield _family(name, help_, "mount", told)


def _gaps(streams: Iterable[StreamFacts]) -> Metric:
    """Gaps of each stream by cause: four a mount at most."""
    family = metric("stream_gaps_total", "Gaps that a listener could hear.", ("mount", "cause"))
    for stream in streams:
        for cause, total in stream.gaps_total.items():
            family.add_metric([stream.mount, cause], total)  # type: ignore[attr-defined]
    return family


def _single(name: str, help_: str, value: float) -> Metric:
    family = metric(name, help_)
    family.add_metric([], value)  # type: ignore[attr-defined]
    return family


def _histogram(name: str, help_: str, seen: dict[str, Any]) -> Metric:
    """All shards together: histograms add up, and a sick shard shows in its own busy share.

    The edges are those of the engine's own buckets (1.024 ms and its doublings up to 33.6 s; tenths
    of a share), so each count is exact.
    """
    below = seen["below_total"]
    if "sum_us" in seen:
        edges = [1024 * 2**i / 1e6 for i in range(len(below))]
        total = seen["sum_us"] / 1e6
    else:
        edges = [100 * (i + 1) / len(below) for i in range(len(below))]
        total = seen["sum_percent"]
    buckets = [(repr(edge), n) for edge, n in zip(edges, below, strict=True)]
    family = HistogramMetricFamily(f"relay_{name}", help_)
    family.add_metric([], [*buckets, ("+Inf", seen["total"])], total)
    return family


def _family(name: str, help_: str, label: str, values: dict[str, float]) -> Metric:
    family = metric(name, help_, (label,))
    for key, value in values.items():
        family.add_metric([key], value)  # type: ignore[attr-defined]
    return family


def _shards(facts: Facts) -> dict[str, dict[str, Any]]:
    return {str(number): told for number, told in enumerate(facts.counters.get("shards", []))}


def _upstreams(facts: Facts) -> dict[str, dict[str, Any]]:
    rows = {}
    for told in facts.upstreams:
        row = dict(numbers(told)) | {"alive": float(told["state"] == "up")}
        rows[told["address"]] = row
    return rows


def _labelled(
    prefix: str, label: str, helps: dict[str, str], rows: dict[str, dict[str, Any]]
) -> Iterable[Metric]:
    """One family for each of these that occurs, with one sample for each row."""
    for name, help_ in helps.items():
        told = {key: float(row[name]) for key, row in rows.items() if name in row}
        if told:
            yield _family(prefix + name, help_, label, told)


def exposition(facts: Callable[[], Facts]) -> Callable[[], bytes]:
    """A function that gives the text of /metrics."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(facts))
    return lambda: generate_latest(registry)
